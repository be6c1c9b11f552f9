"""uvicorn's door: ``uvicorn main:app --ws watershed_mw.uvicorn:WatershedProtocol``.

uvicorn hands over the transport and the request head; from the accept on an
:class:`~watershed_mw.AsyncConnection` owns the transport, and this class translates between it and
the ASGI WebSocket messages. An application that knows :class:`~watershed_mw.WatershedASGI` gets that
connection itself, without the translation.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import struct
import time
from collections.abc import MutableMapping
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakKeyDictionary

from ..connection.adopt import AsyncioTransport
from ..connection.aio.connection import AsyncioConnection
from ..core.handshake.headers import RESPONSE_FIELDS
from ..core.handshake.negotiation import Request, check_request, negotiate, offered_subprotocols
from ..core.states import Role
from ..errors import ConnectionClosed, HandshakeError
from ..http.refusals import log_refused
from ..http.write import write_fields, write_switch
from ..options import ConnectionOptions, Options, Settings
from ..runtime.interrupts import is_cancellation
from ..runtime.timers import timers_of
from .denial import Denial, strings
from .header_cache import share_fields
from .messages import ASGIMessages
from .native_door import NativeDoor, RunningRelay
from .request import early_bytes, make_scope, read_request, remote_of, scope_of_refused, shown_path

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["WatershedProtocol", "options_of"]

# What a client may send before it has the 101; more of it waits in the kernel.
_MAX_EARLY = 64 * 2**10


_logger = logging.getLogger("uvicorn.error")

_settings: WeakKeyDictionary[Config, dict[type, Settings]] = WeakKeyDictionary()


def options_of(config: Config) -> Options:
    """Uvicorn's ``--ws-*`` settings as options of this package."""
    return {
        "max_message_size": config.ws_max_size or None,
        "max_queued_messages": max(1, config.ws_max_queue),
        "ping_interval": config.ws_ping_interval or None,
        "ping_timeout": config.ws_ping_timeout or None,
        "compression": bool(config.ws_per_message_deflate),
        # Whether an origin is welcome is the application's business, unless it asked for WatershedASGI.
        "origins": "*",
    }


@lru_cache(maxsize=8)
def _written(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """What uvicorn adds to every response, as bytes; it changes once a second, with the date."""
    return write_fields(strings(headers))


def _subprotocol_in(headers: list[tuple[str, str]]) -> str | None:
    return next((value for name, value in headers if name.lower() == "sec-websocket-protocol"), None)


class _Stage(Enum):
    HEAD = "the request head is awaited"
    DECIDING = "the application decides"
    ANSWERING = "the application answers with an HTTP response"
    OPEN = "the connection is open, or was"
    REFUSED = "an HTTP response has been sent, or nobody is there to read one"


class WatershedProtocol(asyncio.Protocol):
    """One upgrade request under uvicorn, and the ASGI application that answers it.

    A subclass may set what uvicorn has no setting for, and is named in ``--ws`` as ``module:Class``.

    Args:
        config: uvicorn's configuration.
        server_state: what its server knows of all connections.
        app_state: state of the application's lifespan.
    """

    options: ClassVar[ConnectionOptions] = {}
    """Options of every connection, such as ``{"close_timeout": 5.0}``; they go before uvicorn's settings."""

    log_query: ClassVar[bool] = False
    """Whether the values in a request's query string are logged; they are hidden unless this is True."""

    # One of these lives as long as its connection.
    __slots__ = (
        "_app_state",
        "_cancel_at",
        "_connection",
        "_decided",
        "_denial",
        "_early",
        "_key",
        "_loop",
        "_lost",
        "_messages",
        "_relay",
        "_request",
        "_scope",
        "_server_state",
        "_stage",
        "_stopping",
        "_task",
        "_transport",
        "answer",
        "config",
        "detached",
        "result",
        "settings",
        "told_connect",
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
        self.config = config
        self.settings = self._own_settings()
        self.detached = False
        self.answer: list[tuple[str, str]] | None = None
        self._relay: RunningRelay | None = None
        self._stopping = False
        self.result: Any = None
        self.told_connect = False
        self._app_state = app_state
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._messages: ASGIMessages | None = None
        self._connection: AsyncioConnection | None = None
        self._denial: Denial | None = None
        self._stage = _Stage.HEAD
        self._request: Request
        self._key = ""
        self._scope: dict[str, Any] = {}
        self._early = b""
        self._lost = False
        self._task: asyncio.Task[None] | None = None
        self._decided: asyncio.Future[None] | None = None
        self._cancel_at: float | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._check_options()

    @classmethod
    def _check_options(cls) -> None:
        if unknown := cls.options.keys() - ConnectionOptions.__optional_keys__:
            raise TypeError(
                f"expected {cls.__name__}.options among {', '.join(sorted(ConnectionOptions.__optional_keys__))}; "
                f"got {', '.join(sorted(unknown))}: origins, protocols and max_connections belong to WatershedASGI"
            )

    @classmethod
    def _options(cls, config: Config) -> Options:
        cls._check_options()  # it may have been set after the class was made
        return cast(Options, {**options_of(config), **cls.options})

    def own_options(self) -> Options:
        """Uvicorn's settings and those of the class, as options."""
        return self._options(self.config)

    def _own_settings(self) -> Settings:
        known = _settings.get(self.config)
        if known is None:
            known = _settings[self.config] = {}
        settings = known.get(type(self))
        if settings is None:
            settings = known[type(self)] = Settings.of(self.own_options())
        return settings

    @property
    def way(self) -> AsyncioTransport:
        """The transport, as what answers the upgrade knows it."""
        return AsyncioTransport(self._transport)

    # --- asyncio and uvicorn call these ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, and what uvicorn has read from it."""
        self._transport = cast(asyncio.Transport, transport)
        self._early = early_bytes(self._transport)
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes alone

    def data_received(self, data: bytes) -> None:
        """Take the request head, which uvicorn gives at once, and whatever comes before the accept."""
        if self._stage is _Stage.HEAD:
            self._begin(data)
        else:
            self._early += data
        if len(self._early) > _MAX_EARLY:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client gives up before it got an answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; after the accept the connection tells so."""
        if self._task is None and not self._given_to_relay:
            self._server_state.connections.discard(self)
        if self._denial is not None:
            self._denial.connection_lost()
        if self._connection is not None:
            self._log_close(self._connection)
        elif self._stage is not _Stage.OPEN:
            self._stage = _Stage.REFUSED
        self._decide_receive()
        self._lost = True
        self._let_go()

    def pause_writing(self) -> None:
        """The client does not read a denial response as fast as the application writes it."""
        if self._denial is not None:
            self._denial.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._denial is not None:
            self._denial.resume_writing()

    def shutdown(self) -> None:
        """Uvicorn is stopping: end the connection with 1012 (service restart), or refuse it."""
        self._stopping = True
        if self._lost and not self._given_to_relay:
            pass  # only its application is left
        elif self._connection is not None:
            self._connection.end("the server restarts", code=self.settings.shutdown_code or 1012)
        elif self._given_to_relay:
            self._end_relay()
        elif self._stage in (_Stage.HEAD, _Stage.DECIDING):
            self._refuse_and_log(HandshakeError("the server is shutting down: try again", status=503))
        else:
            self._answer().stop_waiting()
        self._limit_app()

    def _limit_app(self) -> None:
        """Cancel the application in time: uvicorn waits without a limit, and some never look at their connection."""
        if self._task is None or self._task.done():
            return
        if self._cancel_at is not None:
            timers_of(self._loop).cancel(self._cancel_at, self)
        until = time.monotonic() + self._seconds_to_return()
        self._cancel_at = timers_of(self._loop).set(until, WatershedProtocol._cancel_app, self)

    def _seconds_to_return(self) -> float:
        if self._relay is None:
            return self.settings.limits.close_timeout
        # It ends by itself: first its peers have their time, then their streams have.
        return 2 * self._relay.close_timeout + 1.0

    @property
    def _given_to_relay(self) -> bool:
        """Whether the client has the 101 of another server: then the socket is a relay's, or about to be."""
        return self.detached and self.answer is not None and self._stage is _Stage.OPEN

    def _end_relay(self) -> None:
        if self._stopping and self._relay is not None:
            code = self._relay.shutdown_code or self.settings.shutdown_code or 1012
            self._relay.start_close("the server restarts", code=code)

    # --- the request ---------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        try:
            self._request, fields, rest = read_request(self._transport, data)
            self._early = rest + self._early
            self._key = check_request(self._request, self.settings.origins)
            subprotocols = offered_subprotocols(self._request.headers)
            self._check_concurrency()
        except HandshakeError as error:
            self._scope = scope_of_refused(self._transport, getattr(self, "_request", None))
            self._refuse_and_log(error)
            return
        self._stage = _Stage.DECIDING
        state = self._app_state.copy()
        door = NativeDoor(self)
        self._scope = make_scope(self.config, self._transport, self._request, fields, subprotocols, state, door)
        share_fields(self._scope["headers"])
        fresh = getattr(self.config, "reset_contextvars", False)
        context = contextvars.Context() if fresh else contextvars.copy_context()
        if self._loop.get_task_factory() is None:
            self._start_app(context)
        else:
            # A task may begin at once (asyncio.eager_task_factory). It must not: uvicorn makes this object the
            # transport's protocol when this call returns, in place of a connection that has been accepted already.
            self._loop.call_soon(self._start_app, context)

    def _start_app(self, context: contextvars.Context) -> None:
        if self._stage is not _Stage.DECIDING:
            return  # the client has left, or the server stops: it has been answered
        # What it would get by itself is a name and a second context for each connection.
        messages = self._messages = ASGIMessages(self)
        running = messages.run(self.config.loaded_app, self._scope, self._app_ended)
        self._task = self._loop.create_task(running, name="WebSocket", context=context)
        self._server_state.tasks.add(self._task)
        self._task.add_done_callback(self._forget_task, context=context)

    def keep(self, relay: RunningRelay) -> None:
        """As :meth:`NativeDoor.keep`, until the application returns."""
        self._relay = relay
        self._end_relay()  # in case that the shutdown came between the 101 and this
        if self._stopping:
            self._limit_app()

    def reset(self) -> None:
        """As :meth:`NativeDoor.reset`."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            # With no time to linger the kernel sends an RST in place of a FIN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _check_concurrency(self) -> None:
        """Hold ``--limit-concurrency``, which counts as it does for HTTP requests: this one included."""
        limit = self.config.limit_concurrency
        state = self._server_state
        if limit is not None and (len(state.connections) >= limit or len(state.tasks) >= limit):
            raise HandshakeError(
                f"expected fewer than {limit} connections and requests at once (--limit-concurrency), got more: "
                "try again later",
                status=503,
                headers=[("Retry-After", "1")],
            )

    def _app_ended(self, result: object, error: BaseException | None) -> bool:
        """The application has returned or raised; whether its task is to raise that as well."""
        if error is None:
            if self._stage is _Stage.DECIDING:
                _logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                _logger.error("ASGI callable should return None, but returned %r.", result)
            self._finish(1000)
        elif is_cancellation(error, self._task):
            self._finish(1012)
            if self._stopping and self._connection is not None and not self._lost:
                # The grace period is over, and the event loop about to close: what is queued is flushed, and the
                # client's part of the closing handshake is not awaited.
                self._transport.close()
            return True
        elif isinstance(error, ConnectionClosed) and (self._connection is None or not self._connection.sending):
            self._finish(1000)  # The client has left; from another connection it would be a failure.
        else:
            # Whatever its class: a sys.exit() in one application's task must not end the server.
            _logger.error("Exception in ASGI application\n", exc_info=error)
            self._finish(1011)
        return False

    def _finish(self, code: int) -> None:
        """The application has returned or raised: nothing of its may stay open."""
        if self._connection is not None:
            if not self._lost:
                if code == 1000:
                    self._connection.warn_if_never_run()
                self._connection.end(code=code)
        elif self._stage is _Stage.DECIDING:
            self._refuse(HandshakeError("the application did not answer the upgrade", status=500))
        elif self._stage is _Stage.ANSWERING:
            self._leave_answer(code)

    def _leave_answer(self, code: int) -> None:
        """The application has begun an answer, and not ended it."""
        error: HandshakeError | None = None
        if code == 1012:
            error = HandshakeError("the server is shutting down: try again", status=503)
        elif code != 1000:
            error = HandshakeError("the application did not finish its answer", status=500)
        elif not self._lost:
            _logger.error("ASGI callable returned without completing response.")
        self._stage = _Stage.REFUSED
        self._answer().abandon(error)

    def _cancel_app(self) -> None:
        self._cancel_at = None
        if self._task is not None and not self._task.done():
            _logger.warning(
                "The application on WebSocket %s has not returned %g seconds after the shutdown began: cancelled",
                self._shown_path(),
                self._seconds_to_return(),
            )
            self._task.cancel()

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._server_state.tasks.discard(task)
        self._task = None
        self._relay = None
        if self._lost or self._given_to_relay:
            # As long as it ran, uvicorn had to find it here: an application that still waits holds up the shutdown.
            self._server_state.connections.discard(self)
        if self._connection is not None:
            self._connection.abandon()
        self._let_go()
        if self._cancel_at is not None:
            timers_of(self._loop).cancel(self._cancel_at, self)
            self._cancel_at = None

    def _let_go(self) -> None:
        """Transport and application are both gone: what they held is free at once, not at the next collection."""
        if self._lost and self._task is None:
            self._scope = {}
            self.result = self._connection = self._messages = None

    def _answer(self) -> Denial:
        if self._denial is None:
            timeout = self.settings.limits.close_timeout
            self._denial = Denial(self._transport, self._loop, self._server_state.default_headers, timeout)
        return self._denial

    def _refuse(self, error: HandshakeError) -> None:
        self._stage = _Stage.REFUSED
        self._decide_receive()
        request = getattr(self, "_request", None)
        self._answer().refuse(error, "GET" if request is None else request.method)

    def _refuse_and_log(self, error: HandshakeError) -> None:
        if self._scope:
            log_refused(remote_of(self._scope), self._shown_path(), error, _logger)
        self._refuse(error)

    def _decide_receive(self) -> None:
        if self._decided is not None and not self._decided.done():
            self._decided.set_result(None)

    # --- ASGI ------------------------------------------------------------------------------------------------

    async def receive_unopened(self) -> dict[str, Any] | None:
        """The next message to an application that has not accepted; None once it has."""
        if not self.told_connect:
            self.told_connect = True
            return {"type": "websocket.connect"}
        # Before the accept nothing but the client's leaving can come.
        if self._connection is None and self._stage in (_Stage.DECIDING, _Stage.ANSWERING):
            if self._decided is None:
                self._decided = self._loop.create_future()
            await asyncio.shield(self._decided)
        return {"type": "websocket.disconnect", "code": 1006, "reason": ""} if self._connection is None else None

    async def send_unopened(self, message: MutableMapping[str, Any]) -> None:
        """Take an application's answer to the upgrade, or a part of it."""
        kind = message["type"]
        if self._stage is _Stage.DECIDING:
            self._decide(kind, message)
        elif self._stage is _Stage.ANSWERING:
            await self._answer().body(kind, message)
            if self._answer().complete:
                self._stage = _Stage.REFUSED
                self._decide_receive()
        else:
            await asyncio.sleep(0)  # an application that asks again and again must not keep the event loop
            raise ConnectionClosed(1006, f"{kind} came after the connection was refused or handed over")

    def _decide(self, kind: str, message: MutableMapping[str, Any]) -> None:
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._log("403")
            self._refuse(HandshakeError("the application refused the connection", status=403))
        elif kind == "websocket.http.response.start":
            self._log(str(self._answer().start(message)))
            self._stage = _Stage.ANSWERING
        else:
            raise RuntimeError(
                "expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"got {kind!r}"
            )

    def _accept(self, message: MutableMapping[str, Any]) -> None:
        given = strings(message.get("headers") or ())
        # An empty name is none, and some applications give it as a header field.
        subprotocol = message.get("subprotocol") or _subprotocol_in(given) or None
        agreement, fields = negotiate(self._request, self._key, subprotocol=subprotocol, deflate=self.settings.deflate)
        if self.answer is not None:
            fields = self.answer
        given = [pair for pair in given if pair[0].lower() not in RESPONSE_FIELDS]
        default = _written(tuple(self._server_state.default_headers))
        response = write_switch(fields, default, write_fields(given) if given else b"")
        if self._transport.is_closing():
            raise ConnectionClosed(1006, "the client has gone before the accept")
        if self.detached:
            self.result = self.way.detach(self._early, response)
            if self.answer is None:
                self._server_state.connections.discard(self)  # nothing of it is uvicorn's to end any more
        else:
            self.way.write(response)
            assert self._messages is not None
            self.result = self._connection = self._messages.connection = self.way.connection(
                Role.SERVER,
                agreement,
                self.settings.limits,
                self.settings.trace,
                self._scope,
                self._early,
                remote_of(self._scope) or None,
            )
        self._stage = _Stage.OPEN
        # A connection lives for hours, and its request head is several times as large as all that it needs.
        del self._request
        self._key = ""
        self._early = b""
        self._log("[detached]" if self.detached else "[accepted]")
        self._decide_receive()

    # --- logging -----------------------------------------------------------------------------------------------

    def _shown_path(self) -> str:
        return shown_path(self._scope, self.log_query)

    def _log(self, outcome: str) -> None:
        if not _logger.isEnabledFor(logging.INFO):
            return
        _logger.info('%s - "WebSocket %s" %s', remote_of(self._scope), self._shown_path(), outcome)

    def _log_close(self, connection: AsyncioConnection) -> None:
        if not _logger.isEnabledFor(logging.INFO):
            return
        stats = connection.stats
        _logger.info(
            '%s - "WebSocket %s" [closed %d] %.3f s, %d bytes received, %d bytes sent',
            remote_of(self._scope),
            self._shown_path(),
            connection.close_code or 1006,
            connection.duration,
            stats.bytes_received,
            stats.bytes_sent,
        )
