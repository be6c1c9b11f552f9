"""The two backends of an upgrade: native, under this package's uvicorn class, and ASGI messages, on any server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..connection.adopt import DetachedStreams
from ..connection.aio.api import AsyncConnection
from ..connection.base import ConnectionInfo, logger
from ..core.handshake.negotiation import Agreement
from ..core.message_protocol import MessageProtocol
from ..core.states import Role
from ..errors import ConnectionClosed, HandshakeError, UnsupportedServerError
from ..options import ConnectionOptions
from ..runtime.interrupts import failure, is_interrupt
from ..sockets.tls_views import address
from .channels import App, Channels, Scope
from .policy import UpgradePolicy
from .servers import ASGIServer, server_of

if TYPE_CHECKING:
    import socket

    from anyio.abc import TaskGroup

    from .portable import PortableConnection  # needs anyio, which the package itself does not

__all__ = ["Answer", "Backend", "MessageBackend", "NativeBackend", "backend_of"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A 101 to send.

    Attributes:
        agreement: the negotiated parameters.
        headers: additional header fields.
        send: sends it.
    """

    agreement: Agreement
    headers: list[tuple[str, str]]
    send: Callable[[], Awaitable[None]]


_NATIVE = ASGIServer("uvicorn with WatershedProtocol")


class Backend:
    """Sends the answer to an upgrade and makes the connection, as far as the server allows.

    In the methods, ``answer`` is the 101, and ``options`` are the options of that accept.
    """

    __slots__ = ()

    native: ClassVar[bool]
    """Whether frames bypass ASGI messages after the accept."""

    @property
    def server(self) -> ASGIServer:
        """The server and its limitations."""
        raise NotImplementedError

    @property
    def connect_received(self) -> bool:
        """Whether the server reports that the application has received ``websocket.connect``."""
        return False

    async def accept(self, answer: Answer, options: ConnectionOptions, request: Any) -> AsyncConnection:
        """Send the answer, and return the connection with this ``request``. Raises as ``ASGIUpgrade.accept``."""
        raise NotImplementedError

    async def detach(self, answer: Answer, options: ConnectionOptions) -> socket.socket | DetachedStreams:
        """Send the answer, and return the raw stream. Raises as ``ASGIUpgrade.accept``."""
        raise self._no_socket()

    async def hand_over(self, answer: Answer, fields: list[tuple[str, str]], relay: Callable[[Any], Any]) -> None:
        """Send the answer with ``fields`` of another server's 101, and give the raw stream to a relay."""
        raise self._no_socket()

    def _no_socket(self) -> UnsupportedServerError:
        return UnsupportedServerError(
            f"expected a server that hands over its socket (detached=True), got {self.server.name}, which offers only "
            "ASGI messages: run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol (docs/servers.md)"
        )

    def response_fields(self, error: HandshakeError) -> list[tuple[str, str]]:
        """The header fields of a refusal, without those that the server sets itself."""
        raise NotImplementedError

    def reset(self) -> None:
        """Reset the client's connection, if the server allows that."""

    def serve(self, app: App, scope: Scope, channels: Channels) -> Awaitable[None]:
        """Run the application, and the tasks that its connection needs."""
        raise NotImplementedError


class NativeBackend(Backend):
    """The backend for this package's uvicorn class, through its :class:`~watershed_mw.uvicorn.NativeDoor`."""

    # No __dict__: an instance lives as long as its connection.
    __slots__ = ("_door", "_policy")

    native: ClassVar[bool] = True

    def __init__(self, door: Any, policy: UpgradePolicy) -> None:
        self._door = door
        self._policy = policy

    @property
    def server(self) -> ASGIServer:
        """As the base class says."""
        return _NATIVE

    @property
    def connect_received(self) -> bool:
        """As the base class says."""
        return bool(self._door.connected)

    async def accept(self, answer: Answer, options: ConnectionOptions, request: Any) -> AsyncConnection:
        """As the base class says."""
        outcome = self._door.connect(self._policy.settings_under(self._door, options))
        await answer.send()
        connection = cast(AsyncConnection, outcome.result)
        connection.request = request
        return connection

    async def detach(self, answer: Answer, options: ConnectionOptions) -> socket.socket | DetachedStreams:
        """As the base class says."""
        outcome = self._door.detach(self._policy.settings_under(self._door, options))
        await answer.send()
        return cast("socket.socket | DetachedStreams", outcome.result)

    async def hand_over(self, answer: Answer, fields: list[tuple[str, str]], relay: Callable[[Any], Any]) -> None:
        """As the base class says."""
        outcome = self._door.hand_over(fields)
        await answer.send()
        self._door.keep(relay(outcome.result))

    def response_fields(self, error: HandshakeError) -> list[tuple[str, str]]:
        """As the base class says."""
        return list(error.headers)

    def reset(self) -> None:
        """As the base class says."""
        self._door.reset()

    def serve(self, app: App, scope: Scope, channels: Channels) -> Awaitable[None]:
        """As the base class says: runs only the application."""
        return app(scope, channels.receive, channels.send)


class MessageBackend(Backend):
    """The backend for any other server, over ASGI messages.

    Args:
        policy: the middleware's.
        scope: the request's scope.
        channels: the request's channels.
    """

    native: ClassVar[bool] = False

    def __init__(self, policy: UpgradePolicy, scope: Scope, channels: Channels) -> None:
        self._server = server_of(scope, channels.receive, channels.send)
        self._policy = policy
        self._scope = scope
        self._channels = channels
        self._tasks: TaskGroup | None = None
        self._connection: PortableConnection | None = None

    @property
    def server(self) -> ASGIServer:
        """As the base class says."""
        return self._server

    async def accept(self, answer: Answer, options: ConnectionOptions, request: Any) -> AsyncConnection:
        """As the base class says."""
        settings = self._policy.settings(options)
        tasks = self._check_server(answer.headers)
        from .portable import PortableConnection

        await answer.send()
        remote, local = (address(tuple(self._scope.get(end) or ())) for end in ("client", "server"))
        info = ConnectionInfo(Role.SERVER, answer.agreement, settings.limits, request, remote, local, settings.trace)
        core = MessageProtocol(settings.limits, time.monotonic())
        self._connection = PortableConnection(info, core, self.server)
        self._connection.start(tasks, self._channels.receive, self._channels.send)
        return self._connection

    def _check_server(self, headers: list[tuple[str, str]]) -> TaskGroup:
        server = self.server.name
        if self._tasks is None:
            raise UnsupportedServerError(
                f"expected the package anyio, which connections under {server} need: install it, or run uvicorn with "
                "--ws watershed_mw.uvicorn:WatershedProtocol"
            )
        if headers and not self.server.accept_headers:
            raise UnsupportedServerError(
                f"expected a server that sends header fields with the 101, got {server}, which drops them: "
                "leave out headers=, or run another server (docs/servers.md)"
            )
        return self._tasks

    def response_fields(self, error: HandshakeError) -> list[tuple[str, str]]:
        """As the base class says."""
        return [pair for pair in error.headers if pair[0].lower() not in ("connection", "upgrade")]

    async def serve(self, app: App, scope: Scope, channels: Channels) -> None:
        """As the base class says: runs the connection's tasks beside the application, and finally closes it."""
        channels.receive = channels.watched()
        try:
            import anyio
        except ImportError:
            await app(scope, channels.receive, channels.send)
            return
        from .tasks import ends_task, running_task

        raised: BaseException | None = None
        task = running_task()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await app(scope, channels.receive, channels.send)
            except BaseException as error:
                if ends_task(error, task) and not is_interrupt(error):
                    raise
                raised = error  # re-raised outside the group, which would wrap it
            if self._connection is not None and (raised is None or not is_interrupt(raised)):
                failed = raised is not None and not isinstance(raised, ConnectionClosed)
                await self._connection.finish(1011 if failed else 1000)
            tasks.cancel_scope.cancel()
        if raised is None:
            return
        if is_interrupt(raised) or isinstance(raised, Exception):
            raise raised
        # Logged here, as not every server logs the cause of an exception.
        logger.error("the application on %s raised", scope.get("path"), exc_info=raised)
        raise failure(raised)


def backend_of(policy: UpgradePolicy, scope: Scope, channels: Channels) -> Backend:
    """The backend for one request."""
    door = (scope.get("extensions") or {}).get("watershed_mw")
    return MessageBackend(policy, scope, channels) if door is None else NativeBackend(door, policy)
