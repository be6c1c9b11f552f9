"""One websocket scope that waits for the application's decision."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Unpack, cast, overload
from weakref import WeakKeyDictionary

from ..connection.adopt import DetachedStreams
from ..connection.aio.api import AsyncConnection
from ..connection.base import ConnectionInfo, logger
from ..core.handshake.headers import check_outgoing
from ..core.handshake.negotiation import Agreement, Request
from ..core.message_protocol import MessageProtocol
from ..core.states import Role
from ..errors import ConnectionClosed, HandshakeError, LocalProtocolError, UnsupportedServerError
from ..http.adapt import as_request
from ..http.refusals import log_scope_refused
from ..http.write import check_status
from ..options import ConnectionOptions, Options, Settings, check_options
from ..runtime.interrupts import failure, is_interrupt
from ..sockets.tls_views import address
from ..watershed import Watershed
from .servers import TEST_CLIENT, ASGIServer, server_of, with_handshake

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .portable import PortableConnection  # needs anyio, which the package itself does not

__all__ = ["ASGIUpgrade", "App", "Receive", "Scope", "Send", "UpgradePolicy"]


Scope: TypeAlias = MutableMapping[str, Any]


Message: TypeAlias = MutableMapping[str, Any]


Receive: TypeAlias = Callable[[], Awaitable[Message]]


Send: TypeAlias = Callable[[Message], Awaitable[None]]


App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


Fields: TypeAlias = Iterable[tuple[str, str]]


_OUR_CLASS = ASGIServer("uvicorn with our class")


class UpgradePolicy:
    """What a middleware decides upgrades by: its options, before those of the server's door.

    Args:
        options: see :class:`~watershed_mw.Options`.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.shed = Watershed(**options)
        self._native: WeakKeyDictionary[object, Settings] = WeakKeyDictionary()

    def settings_under(self, door: Any, options: ConnectionOptions) -> Settings:
        """Options of one accept before those of the middleware, and these before those of the server's door."""
        if options:
            return Settings.of(cast(Options, {**door.options, **self.options, **options}))
        settings = self._native.get(door.key)
        if settings is None:
            settings = self._native[door.key] = Settings.of(cast(Options, {**door.options, **self.options}))
        return settings


class ASGIUpgrade:
    """One upgrade request that waits for the application's decision.

    Attributes:
        accepted: whether it has been answered with the 101.
        refused: whether it has been refused already.
    """

    # One of these lives as long as its connection.
    __slots__ = (
        "_as_request",
        "_connected",
        "_connection",
        "_door",
        "_key",
        "_receive",
        "_request",
        "_scope",
        "_send",
        "_server",
        "_tasks",
        "accepted",
        "policy",
        "refused",
    )

    def __init__(self, policy: UpgradePolicy, scope: Scope, receive: Receive, send: Send) -> None:
        self._request: Request | None = None
        self.accepted = False
        self.refused = False
        self.policy = policy
        self._scope = scope
        self._receive = receive
        self._send = send
        self._key = ""
        self._connected = False
        self._door = (scope.get("extensions") or {}).get("watershed_mw")
        self._server = _OUR_CLASS if self._door is not None else server_of(scope, receive, send)
        self._tasks: TaskGroup | None = None
        self._connection: AsyncConnection | None = None
        self._as_request: Any = scope

    def __deepcopy__(self, memo: object) -> Self:
        """The same upgrade: applications copy scopes, and there is one request to answer."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: applications pickle scopes, and nothing can be answered where such a one is read."""
        return type(None), ()

    @property
    def native(self) -> bool:
        """Whether the connection needs no ASGI messages after the accept."""
        return self._door is not None

    @property
    def server(self) -> ASGIServer:
        """What is known of the server."""
        return self._server

    @property
    def key(self) -> str:
        """The request's Sec-WebSocket-Key, until it is answered; empty over HTTP/2."""
        return self._key

    @property
    def request(self) -> Request:
        """The request, checked."""
        # Not kept beyond the answer: a connection lives for hours, and its request is there in the scope as well.
        return self._request or as_request(self._scope)

    @property
    def over(self) -> bool:
        """Whether the client has left, or was sent a Close: then :class:`ConnectionClosed` is no surprise."""
        connection = self._connection
        return connection is None or not connection.sending

    def check(self) -> None:
        """Judge the request. Raises :class:`HandshakeError`."""
        request: Any = self._scope
        if self._server is TEST_CLIENT:
            request = with_handshake(as_request(request))
        self._request, self._key = self.policy.shed.check(request)

    def through(self, receive: Receive, send: Send, request: Any = None) -> Self:
        """Let the answer travel through these instead of the middleware's own, and return this object.

        A handler that gives its own lets every middleware between see the answer, and add headers to it:
        ``scope["watershed"].through(receive, send)``, or ``.through(websocket.receive, websocket.send)`` with
        Starlette. :class:`~watershed_mw.starlette.WatershedRoute` does so by itself.

        Args:
            receive, send: ASGI channels of the handler.
            request: what the connection's ``request`` will be; the scope unless given.
        """
        self._receive, self._send = receive, send
        self._as_request = self._scope if request is None else request
        return self

    @overload
    async def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: Literal[False] = False,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncConnection: ...

    @overload
    async def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), *, detached: Literal[True]
    ) -> socket.socket | DetachedStreams: ...

    async def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: bool = False,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncConnection | socket.socket | DetachedStreams:
        """Answer with the 101.

        Args:
            protocols: subprotocols that are supported here; the middleware's own unless given.
            headers: further header fields of the answer.
            detached: return what is raw here, which is then the caller's own: the non-blocking ``socket.socket``
                or, for TLS, a (StreamReader, StreamWriter) pair. Both have ``.head``.
            options: options of this connection alone, such as ``ping_interval=5.0``.

        Returns:
            the connection, or what is raw.

        Raises:
            HandshakeError: no subprotocol in common; the client has been told so.
            ConnectionClosed: the client has gone.
            LocalProtocolError: the request has been answered before.
            UnsupportedServerError: the server cannot do this; nothing has been answered.
            TypeError, ValueError: an option is unknown or cannot have its value, or a header field cannot be written;
                nothing has been answered.
        """
        self._check_unanswered("accept")
        check_options(options, ConnectionOptions.__optional_keys__, "accept()")
        headers = list(headers)
        check_outgoing(headers)
        try:
            agreement, _ = self.policy.shed.agree(self.request, self._key, protocols)
        except HandshakeError as error:
            await self.refuse(error)
            raise
        if not detached:
            return await self._accept(agreement, headers, options)
        if self._door is None:
            raise self._no_socket()
        outcome = self._door.detach(self.policy.settings_under(self._door, options))
        try:
            await self._answer(agreement, headers)
        except HandshakeError as error:
            await self.refuse(error)
            raise
        return cast("socket.socket | DetachedStreams", outcome.result)

    async def _accept(
        self, agreement: Agreement, headers: list[tuple[str, str]], options: ConnectionOptions
    ) -> AsyncConnection:
        if self._door is not None:
            outcome = self._door.connect(self.policy.settings_under(self._door, options))
            await self._answer(agreement, headers)
            self._connection = cast(AsyncConnection, outcome.result)
            self._connection.request = self._as_request
            return self._connection
        settings = Settings.of(cast(Options, {**self.policy.options, **options}))
        self._check_server(headers)
        await self._answer(agreement, headers)
        return self._connect(agreement, settings)

    def _no_socket(self) -> UnsupportedServerError:
        return UnsupportedServerError(
            f"expected a server that gives its socket away for detached=True, got {self._server.name}, which has only "
            "ASGI messages: run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol (docs/servers.md)"
        )

    def _check_server(self, headers: list[tuple[str, str]]) -> None:
        server = self._server.name
        if self._tasks is None:
            raise UnsupportedServerError(
                f"expected the package anyio, which connections under {server} need: install it, or run uvicorn with "
                "--ws watershed_mw.uvicorn:WatershedProtocol"
            )
        if headers and not self._server.accept_headers:
            raise UnsupportedServerError(
                f"expected a server that sends header fields with the 101, got {server}, which leaves them "
                "out: leave out headers=, or run another server (docs/servers.md)"
            )

    async def hand_over(self, answer: list[tuple[str, str]], headers: Fields, relay: Callable[[Any], Any]) -> None:
        """Answer with the 101 that another server has given, and let a relay have what is raw (proxy mode).

        Args:
            answer: fields of the opening handshake itself, such as ``Sec-WebSocket-Accept``.
            headers: the other header fields.
            relay: called with the socket or the streams; what it returns is told when uvicorn stops.

        Raises:
            UnsupportedServerError: there is nothing raw here, see :attr:`native`; nothing has been answered.
            ConnectionClosed: the client has gone.
        """
        self._check_unanswered("hand_over")
        if self._door is None:
            raise self._no_socket()
        headers = list(headers)
        check_outgoing(headers)
        outcome = self._door.hand_over(answer)
        subprotocol = next((value for name, value in answer if name.lower() == "sec-websocket-protocol"), None)
        await self._answer(Agreement(subprotocol), headers)
        self._door.keep(relay(outcome.result))

    async def accept_as(
        self, subprotocol: str | None, headers: Fields = (), **options: Unpack[ConnectionOptions]
    ) -> AsyncConnection:
        """As :meth:`accept` with a subprotocol, or none, that another server has chosen. Raises as that."""
        self._check_unanswered("accept")
        headers = list(headers)
        check_outgoing(headers)
        return await self._accept(Agreement(subprotocol), headers, options)

    def _check_unanswered(self, what: str) -> None:
        if self.accepted or self.refused:
            raise LocalProtocolError(f"expected one answer to a request, got {what} after another one")

    async def _answer(self, agreement: Agreement, headers: list[tuple[str, str]]) -> None:
        await self.take_connect()
        await self._send(
            {
                "type": "websocket.accept",
                "subprotocol": agreement.subprotocol,
                "headers": _as_bytes(headers),
            }
        )
        self.accepted = True
        self._request, self._key = None, ""

    def _connect(self, agreement: Agreement, settings: Settings) -> AsyncConnection:
        from .portable import PortableConnection

        assert self._tasks is not None
        remote, local = (address(tuple(self._scope.get(end) or ())) for end in ("client", "server"))
        info = ConnectionInfo(Role.SERVER, agreement, settings.limits, self._as_request, remote, local, settings.trace)
        core = MessageProtocol(settings.limits, time.monotonic())
        self._connection = connection = PortableConnection(info, core, self._receive, self._send, self._server)
        connection.start(self._tasks)
        return connection

    async def reject(self, status: int, body: bytes | AsyncIterable[bytes] = b"", headers: Fields = ()) -> None:
        """Answer with an HTTP response instead of the 101.

        Args:
            status: 200 to 599; a server without the ``websocket.http.response`` extension sends 403.
            body: body of the response, whole or in parts.
            headers: header fields of the response.

        Raises:
            LocalProtocolError: the request has been answered before.
            ValueError: there is no such status, or a header field cannot be written; nothing has been answered.
        """
        self._check_unanswered("reject")
        check_status(status)
        headers = list(headers)
        check_outgoing(headers)
        parts = None if isinstance(body, bytes) else aiter(body)
        # A body that cannot even begin must not leave half an answer: what it raises is the server's to tell.
        first = cast(bytes, body) if parts is None else await anext(parts, b"")
        await self.take_connect()
        self.refused = True
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            await self._send({"type": "websocket.close", "code": 1008})
            return
        await self._send(
            {"type": "websocket.http.response.start", "status": status, "headers": _as_bytes(headers)},
        )
        if parts is None:
            await self._send({"type": "websocket.http.response.body", "body": first})
            return
        await self._send({"type": "websocket.http.response.body", "body": first, "more_body": True})
        async for part in parts:
            await self._send({"type": "websocket.http.response.body", "body": part, "more_body": True})
        await self._send({"type": "websocket.http.response.body", "body": b""})

    async def refuse(self, error: HandshakeError, *, log: bool = True) -> None:
        """Answer with what ``error`` says, and log it unless that is done elsewhere."""
        if log:
            log_scope_refused(self._scope, error)
        fields = [pair for pair in error.headers if pair[0].lower() not in ("connection", "upgrade")]
        if self._door is not None:
            fields = list(error.headers)
        await self.reject(error.status, error.body, [*fields, ("content-type", "text/plain; charset=utf-8")])

    def abort(self) -> None:
        """Reset the client's connection in the midst of an answer; where it cannot be had the server ends it."""
        if self._door is not None:
            self._door.reset()

    async def wait_disconnected(self) -> None:
        """Wait until the client leaves, or the server refuses it, after :meth:`take_connect` and before an answer.

        To be cancelled before that answer, as nobody else may receive meanwhile.
        """
        while (await self._receive())["type"] != "websocket.disconnect":
            pass

    async def take_connect(self) -> None:
        """Take the first message, unless the application has. Raises ConnectionClosed: the client has gone."""
        if self._connected or (self._door is not None and self._door.connected):
            return
        self._connected = True
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ConnectionClosed(1006, "the client has gone before the answer")

    # --- around the application --------------------------------------------------------------------------

    async def serve(self, app: App) -> None:
        """Run the application beside the tasks that its connection will need, where there is no door of ours."""
        receive, send = self._watched(self._receive), self._send
        try:
            import anyio
        except ImportError:
            await app(self._scope, self._receive, send)
            return
        from .portable import ends_task, running_task

        self._receive = receive
        raised: BaseException | None = None
        task = running_task()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await app(self._scope, receive, send)
            except BaseException as error:
                if ends_task(error, task) and not is_interrupt(error):
                    raise
                raised = error  # raised again outside, where no group wraps it
            if self._connection is not None and (raised is None or not is_interrupt(raised)):
                failed = raised is not None and not isinstance(raised, ConnectionClosed)
                await cast("PortableConnection", self._connection).finish(1011 if failed else 1000)
            tasks.cancel_scope.cancel()
        if raised is None:
            return
        if is_interrupt(raised) or isinstance(raised, Exception):
            raise raised
        # Here, as not every server shows the cause of an exception.
        logger.error("the application on %s raised", self._scope.get("path"), exc_info=raised)
        raise failure(raised)

    def _watched(self, receive: Receive) -> Receive:
        """``receive`` as the application gets it: it may take the connect message before it looks at us."""

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.connect":
                self._connected = True
            return message

        return watched


def _as_bytes(headers: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
