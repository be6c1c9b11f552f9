"""The ASGI channels that one upgrade is answered through, and how far the answer is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from enum import Enum
from typing import Any, TypeAlias

from ..errors import ConnectionClosed

__all__ = ["App", "Channels", "Fields", "Message", "Receive", "Scope", "Send", "Stage"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Fields: TypeAlias = Iterable[tuple[str, str]]


class Stage(Enum):
    """How far an upgrade is."""

    REQUESTED = "websocket.connect waits to be received"
    CONNECTED = "websocket.connect has been received"
    ACCEPTED = "the 101 has been sent"
    REFUSED = "an HTTP response has been sent in place of the 101, or a part of it"


class Channels:
    """``receive`` and ``send`` of one upgrade.

    Args:
        receive, send: the channels of a handler, or of the middleware.

    Attributes:
        receive, send: the same; a handler may replace them before the answer.
        stage: how far the upgrade is.
    """

    # One of these lives as long as its connection.
    __slots__ = ("receive", "send", "stage")

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.stage = Stage.REQUESTED

    async def take_connect(self) -> None:
        """Receive ``websocket.connect``, unless that has been done. Raises ConnectionClosed: the client has gone."""
        if self.stage is Stage.REQUESTED:
            self.stage = Stage.CONNECTED
            message = await self.receive()
            if message["type"] == "websocket.disconnect":
                raise ConnectionClosed(1006, "the client has gone before the answer")

    async def accept(self, subprotocol: str | None, headers: Fields) -> None:
        """Send the 101."""
        await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": _as_bytes(headers)})
        self.stage = Stage.ACCEPTED

    async def close(self) -> None:
        """Refuse with a 403, which every server can."""
        self.stage = Stage.REFUSED
        await self.send({"type": "websocket.close", "code": 1008})

    async def respond(self, status: int, headers: Fields, body: bytes, more: AsyncIterator[bytes] | None) -> None:
        """Send an HTTP response.

        Args:
            status: its status.
            headers: its header fields.
            body: its body, or the first part of it.
            more: the other parts; None where there are none.
        """
        self.stage = Stage.REFUSED
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": _as_bytes(headers)})
        if more is None:
            await self.send({"type": "websocket.http.response.body", "body": body})
            return
        await self.send({"type": "websocket.http.response.body", "body": body, "more_body": True})
        async for part in more:
            await self.send({"type": "websocket.http.response.body", "body": part, "more_body": True})
        await self.send({"type": "websocket.http.response.body", "body": b""})

    async def wait_disconnected(self) -> None:
        """Wait for ``websocket.disconnect``."""
        while (await self.receive())["type"] != "websocket.disconnect":
            pass

    def watched(self) -> Receive:
        """``receive`` for the application, which may receive ``websocket.connect`` before it answers."""
        receive = self.receive

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.connect" and self.stage is Stage.REQUESTED:
                self.stage = Stage.CONNECTED
            return message

        return watched


def _as_bytes(headers: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
