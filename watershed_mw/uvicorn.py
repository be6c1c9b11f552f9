"""uvicorn's door: ``uvicorn main:app --ws watershed_mw.uvicorn:WatershedProtocol``.

uvicorn hands over the transport and the request head; from the accept on an
:class:`~watershed_mw.AsyncConnection` owns the transport, and this class translates between it and
the ASGI WebSocket messages. An application that knows :class:`~watershed_mw.WatershedASGI` gets that
connection itself, without the translation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, MutableMapping
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote
from weakref import WeakKeyDictionary

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from .aio import AsyncConnection
from .alarm import Entry, alarm_of
from .core.handshake import Request, check_request, negotiate, offered_subprotocols
from .core.states import Role
from .errors import ConnectionClosed, HandshakeError
from .requests import read_request_head, write_refusal, write_response
from .transports import AsyncioTransport
from .watershed import Options, Settings

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["NativeDoor", "WatershedProtocol"]

# What a client may send before it has the 101; more of it waits in the kernel.
_MAX_EARLY = 64 * 2**10

# Fields of the 101 that the opening handshake itself decides, whatever an application says.
_OURS = frozenset({"connection", "upgrade", "content-length", "transfer-encoding"})
_OURS |= {"sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol"}

_settings: WeakKeyDictionary[Config, Settings] = WeakKeyDictionary()


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


class _Stage(Enum):
    HEAD = "the request head is awaited"
    DECIDING = "the application decides"
    ANSWERING = "the application answers with an HTTP response"
    OPEN = "the connection is open, or was"
    REFUSED = "an HTTP response has been sent"


class NativeDoor:
    """What ``scope["extensions"]["watershed_mw"]`` holds: the way around the ASGI messages.

    The opening handshake still travels through ASGI ``send``; only what follows goes native.
    """

    def __init__(self, protocol: WatershedProtocol) -> None:
        self._protocol = protocol

    def use(self, options: Options) -> None:
        """Take these options where they are given, uvicorn's where they are not; before the accept."""
        self._protocol.settings = Settings.of({**options_of(self._protocol.config), **options})

    def detach(self) -> None:
        """Make the coming accept hand over the raw socket.

        Raises:
            UnsupportedServerError: it cannot; nothing has been answered.
        """
        self._protocol.way.check_detachable()
        self._protocol.detached = True

    @property
    def connected(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._protocol.told_connect

    @property
    def result(self) -> Any:
        """The connection or raw socket, once ``websocket.accept`` has been sent; None before."""
        return self._protocol.result


class WatershedProtocol(asyncio.Protocol):
    """One upgrade request under uvicorn, and the ASGI application that answers it.

    Args:
        config: uvicorn's configuration.
        server_state: what its server knows of all connections.
        app_state: state of the application's lifespan.
    """

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
        self.settings = self._settings_of(config)
        self.detached = False
        self.result: Any = None
        self._app_state = app_state
        self._connections = server_state.connections
        self._tasks = server_state.tasks
        self._default_headers = server_state.default_headers
        self._logger = logging.getLogger("uvicorn.error")
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._connection: AsyncConnection | None = None
        self._stage = _Stage.HEAD
        self._request: Request
        self._key = ""
        self._scope: dict[str, Any] = {}
        self._early = b""
        self.told_connect = False
        self._response: tuple[int, list[tuple[str, str]]] | None = None
        self._response_begun = False
        self._decided: asyncio.Future[None] = self._loop.create_future()
        self._drained: asyncio.Future[None] | None = None
        self._patience: Entry | None = None

    @staticmethod
    def _settings_of(config: Config) -> Settings:
        settings = _settings.get(config)
        if settings is None:
            settings = _settings[config] = Settings.of(options_of(config))
        return settings

    # --- asyncio and uvicorn call these ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self.way = AsyncioTransport(self._transport)
        self._connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes alone

    def data_received(self, data: bytes) -> None:
        """Take the request head, which uvicorn gives at once, and whatever comes before the accept."""
        if self._stage is _Stage.HEAD:
            self._begin(data)
            return
        self._early += data
        if len(self._early) > _MAX_EARLY:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client gives up before it got an answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; after the accept the connection tells so."""
        self._connections.discard(self)
        if self._patience is not None:
            alarm_of(self._loop).cancel(self._patience)
        self._decide_receive()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client does not read a denial response as fast as the application writes it."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """It reads again, or has gone."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def shutdown(self) -> None:
        """Uvicorn is stopping: end the connection with 1012 (service restart), or refuse it."""
        if self._connection is not None:
            self._connection.end("the server restarts", code=1012)
        elif self._stage in (_Stage.HEAD, _Stage.DECIDING):
            self._refuse(HandshakeError("the server is shutting down: try again", status=503))
        elif self._transport.get_write_buffer_size():
            self._transport.abort()  # a client that does not read its answer must not hold the shutdown up
        else:
            self._transport.close()

    # --- the request ---------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        try:
            self._request, self._early = read_request_head(data)
            self._key = check_request(self._request, self.settings.origins)
            subprotocols = offered_subprotocols(self._request.headers)
        except HandshakeError as error:
            self._logger.warning("WebSocket upgrade refused: %s", error)
            self._refuse(error)
            return
        self._stage = _Stage.DECIDING
        self._scope = self._make_scope(subprotocols)
        task = self._loop.create_task(self._run_app())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make_scope(self, subprotocols: list[str]) -> dict[str, Any]:
        raw_path, _, query = self._request.target.partition("?")
        root_path = self.config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": self._request.http_version,
            "scheme": "wss" if is_ssl(self._transport) else "ws",
            "server": get_local_addr(self._transport),
            "client": get_remote_addr(self._transport),
            "root_path": root_path,
            "path": root_path + unquote(raw_path),
            "raw_path": (root_path + raw_path).encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._request.headers],
            "subprotocols": subprotocols,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, "watershed_mw": NativeDoor(self)},
        }

    async def _run_app(self) -> None:
        try:
            result = await self.config.loaded_app(self._scope, self._receive, self._send)
        except ConnectionClosed:
            self._finish(1000)
        except BaseException as error:
            self._logger.exception("Exception in ASGI application\n")
            self._finish(1011)
            if not isinstance(error, Exception):
                raise
        else:
            if self._stage is _Stage.DECIDING:
                self._logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                self._logger.error("ASGI callable should return None, but returned %r.", result)
            self._finish(1000)

    def _finish(self, code: int) -> None:
        """The application has returned or raised: nothing of its may stay open."""
        if self._connection is not None:
            self._connection.end(code=code)
        elif self._stage is _Stage.DECIDING:
            self._refuse(HandshakeError("the application did not answer the upgrade", status=500))
        elif self._stage is _Stage.ANSWERING:
            self._close()

    def _refuse(self, error: HandshakeError) -> None:
        if not self._transport.is_closing():
            self._transport.write(write_refusal(error))
        self._close()

    def _close(self) -> None:
        """An HTTP response has been written: close when the client has read it, or has had its time to."""
        self._stage = _Stage.REFUSED
        self._decide_receive()
        self._transport.close()
        if self._patience is None:
            patience = time.monotonic() + self.settings.limits.close_timeout
            self._patience = alarm_of(self._loop).set(patience, self._transport.abort)

    def _decide_receive(self) -> None:
        if not self._decided.done():
            self._decided.set_result(None)

    # --- ASGI ------------------------------------------------------------------------------------------------

    async def _receive(self) -> dict[str, Any]:
        if not self.told_connect:
            self.told_connect = True
            return {"type": "websocket.connect"}
        if self._connection is None:
            # Before the accept nothing but the client's leaving can come.
            await asyncio.shield(self._decided)
            if self._connection is None:
                return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        try:
            message = await self._connection.receive()
        except ConnectionClosed as closed:
            return {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        kind = message["type"]
        if self._connection is not None:
            await self._send_open(kind, message)
        elif self._stage is _Stage.DECIDING:
            self._decide(kind, message)
        elif self._stage is _Stage.ANSWERING:
            await self._answer(kind, message)
        else:
            raise ConnectionClosed(1006, f"{kind} came after the connection was refused or handed over")

    async def _send_open(self, kind: str, message: MutableMapping[str, Any]) -> None:
        assert self._connection is not None
        if kind == "websocket.send":
            data = message.get("bytes")
            if data is None:
                data = message.get("text")
            if data is None:
                raise RuntimeError("expected 'bytes' or 'text' in websocket.send, got neither")
            await self._connection.send(data)
        elif kind == "websocket.close":
            self._connection.end(message.get("reason") or "", code=message.get("code", 1000))
        else:
            raise RuntimeError(f"expected ASGI message 'websocket.send' or 'websocket.close', got {kind!r}")

    def _decide(self, kind: str, message: MutableMapping[str, Any]) -> None:
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._log("403")
            self._refuse(HandshakeError("the application refused the connection", status=403))
        elif kind == "websocket.http.response.start":
            status = message["status"]
            if not 200 <= status < 600:
                raise RuntimeError(f"expected an HTTP status from 200 to 599, got {status!r}")
            self._log(str(status))
            self._response = (status, _strings(message.get("headers", ())))
            self._stage = _Stage.ANSWERING
        else:
            raise RuntimeError(
                "expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"got {kind!r}"
            )

    async def _answer(self, kind: str, message: MutableMapping[str, Any]) -> None:
        if kind != "websocket.http.response.body":
            raise RuntimeError(f"expected ASGI message 'websocket.http.response.body', got {kind!r}")
        assert self._response is not None
        if self._transport.is_closing():
            raise ConnectionClosed(1006, "the client has gone before the end of the answer")
        status, headers = self._response
        body, more = bytes(message.get("body", b"")), message.get("more_body", False)
        bodiless = status in (204, 304)
        if not self._response_begun:
            self._response_begun = True
            headers = [*_strings(self._default_headers), *headers]
            if more and not bodiless:
                # Its length is not known yet: the end of the stream ends the body (RFC 9112 section 6.3).
                fields = [pair for pair in headers if pair[0].lower() not in ("connection", "transfer-encoding")]
                self._transport.write(write_response(status, [*fields, ("connection", "close")]) + body)
            else:
                self._transport.write(write_response(status, headers, body))
        elif not bodiless:
            self._transport.write(body)
        if not more:
            self._close()
        elif self._drained is not None:
            await asyncio.shield(self._drained)

    def _accept(self, message: MutableMapping[str, Any]) -> None:
        subprotocol = message.get("subprotocol")
        agreement, fields = negotiate(self._request, self._key, subprotocol=subprotocol, deflate=self.settings.deflate)
        given = _strings(message.get("headers", ()))
        extra = [*_strings(self._default_headers), *(pair for pair in given if pair[0].lower() not in _OURS)]
        response = write_response(101, [*fields, *extra])
        if self._transport.is_closing():
            raise ConnectionClosed(1006, "the client has gone before the accept")
        if self.detached:
            self.result = self.way.detach(self._early, response)
        else:
            self.way.write(response)
            self.result = self._connection = self.way.connection(
                Role.SERVER, agreement, self.settings.limits, self.settings.trace, self._scope, self._early
            )
        self._stage = _Stage.OPEN
        self._early = b""
        self._log("[accepted]")
        self._decide_receive()

    def _log(self, outcome: str) -> None:
        client = self._scope["client"] or ()
        # The query string may hold a token: it stays out of the logs.
        path = quote(self._scope["path"])
        self._logger.info('%s - "WebSocket %s" %s', ":".join(map(str, client)), path, outcome)


def _strings(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]
