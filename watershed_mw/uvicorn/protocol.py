"""uvicorn's door: ``uvicorn main:app --ws watershed_mw.uvicorn:WatershedProtocol``.

uvicorn hands over the transport and the request head. The handshake (``handshake.py``) lasts until the application has
answered; from an accept on, an :class:`~watershed_mw.AsyncConnection` owns the transport, and ``messages.py``
translates between it and the ASGI messages. An application that knows :class:`~watershed_mw.WatershedASGI` gets that
connection itself, without the translation.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import struct
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..connection.adopt import AsyncioTransport
from ..connection.aio.connection import AsyncioConnection
from ..core.codes import CloseCode
from ..errors import HandshakeError
from ..options import ConnectionOptions
from .application import code_after
from .handshake import Handshake, Stage
from .header_cache import share_fields
from .log import RequestLog
from .messages import ASGIMessages
from .native_door import NativeDoor
from .options import check_class_options, settings_of
from .outcomes import Connected, Detached, Outcome, Relayed, RunningRelay
from .request import make_scope, scope_of_refused
from .shutdown import Shutdown

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["WatershedProtocol"]


class WatershedProtocol(asyncio.Protocol):
    """One upgrade request under uvicorn, and the ASGI application that answers it.

    A subclass may set what uvicorn has no setting for, and is named in ``--ws`` as ``module:Class``.

    Args:
        config: uvicorn's configuration.
        server_state: what its server knows of all connections.
        app_state: state of the application's lifespan.
    """

    options: ClassVar[ConnectionOptions] = {}
    """Options of every connection, such as ``{"close_timeout": 5.0}``; they override uvicorn's settings."""

    log_query: ClassVar[bool] = False
    """Whether the values in a request's query string are logged; they are hidden unless this is True."""

    # One of these lives as long as its connection. First there is a handshake, then the outcome of the accept.
    __slots__ = (
        "_app_state",
        "_handshake",
        "_loop",
        "_lost",
        "_messages",
        "_outcome",
        "_scope",
        "_server_state",
        "_shutdown",
        "_task",
        "_transport",
        "config",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        planned = Connected(settings_of(config, type(self), self.options))
        self.config = config
        self._app_state = app_state
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._scope: dict[str, Any] = {}
        self._handshake: Handshake | None = Handshake(self._loop, server_state, planned, self._accepted)
        self._outcome: Outcome | None = None
        self._messages: ASGIMessages | None = None
        self._task: asyncio.Task[None] | None = None
        self._shutdown: Shutdown | None = None
        self._transport: asyncio.Transport
        self._lost = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_class_options(cls, cls.options)

    # --- asyncio and uvicorn call these ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        if self._handshake is not None:
            self._handshake.transport = self._transport
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes alone

    def data_received(self, data: bytes) -> None:
        """Take the request head, which uvicorn gives at once, and anything that comes before the accept."""
        handshake = self._handshake
        if handshake is not None:
            if handshake.stage is Stage.HEAD:
                self._begin(handshake, data)
            else:
                handshake.keep_early(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; after the accept, the connection reports it."""
        if self._task is None and not self._outlives_transport:
            self._server_state.connections.discard(self)
        if self._handshake is not None:
            self._handshake.connection_lost()
        elif self._connection is not None:
            self._log.closed(self._connection)
        self._lost = True
        self._let_go()

    def pause_writing(self) -> None:
        """The client reads a denial response slower than the application writes it."""
        if self._handshake is not None:
            self._handshake.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._handshake is not None:
            self._handshake.resume_writing()

    def shutdown(self) -> None:
        """Uvicorn is stopping: end the connection with 1012 (service restart), or refuse it."""
        if self._shutdown is None:
            self._shutdown = Shutdown(self._loop)
        if self._lost and not self._outlives_transport:
            pass  # only its application is left
        elif self._outcome is not None:
            self._outcome.shut_down()
        elif self._handshake is not None:
            self._handshake.shut_down()
        self._limit_app()

    # --- the native door calls these -----------------------------------------------------------------------

    @property
    def transport(self) -> AsyncioTransport:
        """The transport, as an outcome takes it over."""
        return AsyncioTransport(self._transport)

    @property
    def connect_received(self) -> bool:
        """Whether the application has received ``websocket.connect``, or has answered without it."""
        return self._handshake is None or self._handshake.connect_received

    def plan(self, outcome: Outcome) -> None:
        """Have the coming accept make this; without effect once there was one."""
        if self._handshake is not None:
            self._handshake.outcome = outcome

    def keep(self, relay: RunningRelay) -> None:
        """As :meth:`NativeDoor.keep`, until the application returns."""
        if isinstance(self._outcome, Relayed):
            self._outcome.relay = relay
            if self._shutdown is not None:  # it came between the 101 and this
                self._outcome.shut_down()
                self._limit_app()

    def reset(self) -> None:
        """As :meth:`NativeDoor.reset`."""
        _reset(self._transport)

    # --- the request, and the outcome of its handshake ---------------------------------------------------------

    def _begin(self, handshake: Handshake, data: bytes) -> None:
        try:
            fields, subprotocols = handshake.read_head(data)
            _check_concurrency(self.config.limit_concurrency, self._server_state)
        except HandshakeError as error:
            handshake.log = RequestLog(scope_of_refused(self._transport, handshake.request), self.log_query)
            handshake.refuse_and_log(error)
            return
        assert handshake.request is not None
        handshake.stage = Stage.DECIDING
        state, door = self._app_state.copy(), NativeDoor(self)
        scope = make_scope(self.config, self._transport, handshake.request, fields, subprotocols, state, door)
        share_fields(scope["headers"])
        self._scope = scope
        handshake.log = self._log
        fresh = getattr(self.config, "reset_contextvars", False)
        context = contextvars.Context() if fresh else contextvars.copy_context()
        if self._loop.get_task_factory() is None:
            self._start_app(handshake, context)
        else:
            # A task may begin at once (asyncio.eager_task_factory). It must not: uvicorn makes this object the
            # transport's protocol when this call returns, in place of a connection that has been accepted already.
            self._loop.call_soon(self._start_app, handshake, context)

    def _accepted(self, outcome: Outcome) -> None:
        self._handshake = None
        self._outcome = outcome
        if outcome.connection is not None:
            assert self._messages is not None
            self._messages.open(outcome.connection)
        elif isinstance(outcome, Detached):
            self._server_state.connections.discard(self)
        self._messages = None

    @property
    def _log(self) -> RequestLog:
        return RequestLog(self._scope, self.log_query)  # made when it is needed: an idle connection logs nothing

    @property
    def _connection(self) -> AsyncioConnection | None:
        return None if self._outcome is None else self._outcome.connection

    @property
    def _outlives_transport(self) -> bool:
        return self._outcome is not None and self._outcome.outlives_transport

    # --- the application ----------------------------------------------------------------------------------

    def _start_app(self, handshake: Handshake, context: contextvars.Context) -> None:
        if handshake.stage is not Stage.DECIDING:
            return  # the client has left, or the server stops: it has been answered
        # What it would get by itself is a name and a second context for each connection.
        messages = self._messages = ASGIMessages(handshake)
        running = messages.run(self.config.loaded_app, self._scope, self)
        self._task = self._loop.create_task(running, name="WebSocket", context=context)
        self._server_state.tasks.add(self._task)
        self._task.add_done_callback(self._forget_task, context=context)

    def application_ended(self, result: object, error: BaseException | None) -> bool:
        """The application has returned or raised: nothing that it began may stay open.

        Returns:
            whether its task is to raise that as well.
        """
        connection = self._connection
        stage = Stage.ACCEPTED if self._handshake is None else self._handshake.stage
        code = code_after(result, error, self._task, stage, connection)
        cancelled = code is CloseCode.SERVICE_RESTART
        if self._handshake is not None:
            self._handshake.finish(code)
        elif connection is not None and not self._lost:
            if code is CloseCode.NORMAL:
                connection.warn_if_never_run()
            connection.end(code=code.value)
            if cancelled and self._shutdown is not None:
                # The grace period is over, and the event loop about to close: what is queued is flushed, and the
                # client's part of the closing handshake is not awaited.
                self._transport.close()
        return cancelled

    def _limit_app(self) -> None:
        outcome = self._outcome if self._handshake is None else self._handshake.outcome
        if self._shutdown is not None and self._task is not None and not self._task.done():
            assert outcome is not None  # until the application has returned
            self._shutdown.limit(self._task, outcome.seconds_to_return, self._log)

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._server_state.tasks.discard(task)
        self._task = None
        if self._shutdown is not None:
            self._shutdown.stop()
        if self._lost or self._outlives_transport:
            # As long as it ran, uvicorn had to find it here: an application that still waits holds up the shutdown.
            self._server_state.connections.discard(self)
        if isinstance(self._outcome, Relayed):
            self._outcome.relay = None
        if self._connection is not None:
            self._connection.abandon()
        self._let_go()

    def _let_go(self) -> None:
        """Free what transport and application held, once both are gone, without a garbage collection."""
        if self._lost and self._task is None:
            self._scope = {}
            self._handshake = self._outcome = self._messages = None


def _check_concurrency(limit: int | None, state: ServerState) -> None:
    """Hold ``--limit-concurrency``, which counts as it does for HTTP requests: this one included."""
    if limit is not None and (len(state.connections) >= limit or len(state.tasks) >= limit):
        raise HandshakeError(
            f"expected fewer than {limit} connections and requests at once (--limit-concurrency), got more: "
            "try again later",
            status=503,
            headers=[("Retry-After", "1")],
        )


def _reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        # With no time to linger the kernel sends an RST in place of a FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
