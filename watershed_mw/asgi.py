"""The ASGI door: a middleware that judges every upgrade and gives the application an upgrade object.

Nothing is answered before the application decides, except a request that RFC 6455 or the origin
policy refuses. The accept travels through the ``send`` that this middleware was given, so that those
in front of it see it and can add headers; the frames afterwards do not.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack, cast, overload

from .aio import AsyncConnection
from .core.handshake import Request
from .errors import ConnectionClosed, HandshakeError, UnsupportedServerError
from .watershed import Options, Watershed

__all__ = ["ASGIUpgrade", "WatershedASGI"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Fields: TypeAlias = Iterable[tuple[str, str]]


class WatershedASGI:
    """ASGI middleware: every websocket scope gets ``scope["watershed"]``, an :class:`ASGIUpgrade`.

    Args:
        app: the ASGI application; HTTP and lifespan scopes reach it untouched.
        options: see :class:`~watershed_mw.Options`.

    Raises:
        TypeError, ValueError: an option is unknown or cannot have its value.
    """

    def __init__(self, app: App, **options: Unpack[Options]) -> None:
        self.app = app
        self._options = options
        self._shed = Watershed(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        upgrade = ASGIUpgrade(self._shed, self._options, scope, receive, send)
        try:
            upgrade.check()
        except HandshakeError as error:
            await upgrade.refuse(error)
            return
        scope["watershed"] = upgrade
        try:
            await self.app(scope, receive, send)
        except HandshakeError:
            if not upgrade.refused:
                raise


class ASGIUpgrade:
    """One upgrade request that waits for the application's decision.

    Attributes:
        request: the request, checked.
        refused: whether it has been refused already.
    """

    def __init__(self, shed: Watershed, options: Options, scope: Scope, receive: Receive, send: Send) -> None:
        self.request: Request
        self.refused = False
        self._shed = shed
        self._options = options
        self._scope = scope
        self._receive = receive
        self._send = send
        self._key = ""
        self._connected = False
        self._extensions = scope.get("extensions") or {}
        self._door = self._extensions.get("watershed_mw")

    def check(self) -> None:
        """Judge the request. Raises :class:`HandshakeError`."""
        self.request, self._key = self._shed.check(self._scope)

    @overload
    async def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), detached: Literal[False] = False
    ) -> AsyncConnection: ...

    @overload
    async def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), *, detached: Literal[True]
    ) -> socket.socket: ...

    async def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), detached: bool = False
    ) -> AsyncConnection | socket.socket:
        """Answer with the 101.

        Args:
            protocols: subprotocols that are supported here; the middleware's own unless given.
            headers: further header fields of the answer.
            detached: return the raw socket, which is then the caller's own.

        Returns:
            the connection, or the non-blocking ``socket.socket``.

        Raises:
            HandshakeError: no subprotocol in common; the client has been told so.
            ConnectionClosed: the client has gone.
            UnsupportedServerError: the server cannot do this; nothing has been answered.
        """
        door = self._door
        if door is None:
            raise UnsupportedServerError(
                "expected a server that gives its WebSocket transport away, got one that only speaks ASGI messages: "
                "run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol, or use the application framework's own "
                "WebSocket class here"
            )
        try:
            agreement, _ = self._shed.agree(self.request, self._key, protocols)
        except HandshakeError as error:
            await self.refuse(error)
            raise
        door.use(self._options)
        if detached:
            door.detach()
        await self._take_connect()
        await self._send(
            {
                "type": "websocket.accept",
                "subprotocol": agreement.subprotocol,
                "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            }
        )
        return cast("AsyncConnection | socket.socket", door.result)

    async def reject(self, status: int, body: bytes = b"", headers: Fields = ()) -> None:
        """Answer with an HTTP response instead of the 101.

        Args:
            status: 200 to 599; a server without the ``websocket.http.response`` extension sends 403.
            body: body of the response.
            headers: header fields of the response.
        """
        self.refused = True
        await self._take_connect()
        if "websocket.http.response" not in self._extensions:
            await self._send({"type": "websocket.close", "code": 1008})
            return
        await self._send(
            {
                "type": "websocket.http.response.start",
                "status": status,
                "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            }
        )
        await self._send({"type": "websocket.http.response.body", "body": body})

    async def refuse(self, error: HandshakeError) -> None:
        """Answer with what ``error`` says."""
        await self.reject(error.status, error.body, [*error.headers, ("content-type", "text/plain; charset=utf-8")])

    async def _take_connect(self) -> None:
        # The application may have received it itself: our own door knows.
        if self._connected or (self._door is not None and self._door.connected):
            return
        self._connected = True
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ConnectionClosed(1006, "the client has gone before the answer")
