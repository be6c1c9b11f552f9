"""The ASGI channels of one upgrade, and the stage that its answer has reached."""

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
    """The stages of an upgrade."""

    REQUESTED = "websocket.connect has not been received"
    CONNECTED = "websocket.connect has been received"
    ACCEPTED = "the 101 has been sent"
    REFUSED = "an HTTP response, or part of one, has been sent in place of the 101"


class Channels:
    """``receive`` and ``send`` of one upgrade.

    Args:
        receive, send: the channels of a handler, or of the middleware.

    Attributes:
        receive, send: the current channels; a handler may replace them before the answer.
        stage: the stage of the upgrade.
    """

    # No __dict__: an instance lives as long as its connection.
    __slots__ = ("receive", "send", "stage")

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.stage = Stage.REQUESTED

    async def take_connect(self) -> None:
        """Receive ``websocket.connect`` unless it has been received. Raises ConnectionClosed on a disconnect."""
        if self.stage is Stage.REQUESTED:
            self.stage = Stage.CONNECTED
            message = await self.receive()
            if message["type"] == "websocket.disconnect":
                raise ConnectionClosed(1006, "the client disconnected before the answer")

    async def accept(self, subprotocol: str | None, headers: Fields) -> None:
        """Send the 101."""
        await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": _as_bytes(headers)})
        self.stage = Stage.ACCEPTED

    async def close(self) -> None:
        """Refuse with a 403, which every server supports."""
        self.stage = Stage.REFUSED
        await self.send({"type": "websocket.close", "code": 1008})

    async def respond(self, status: int, headers: Fields, body: bytes, more: AsyncIterator[bytes] | None) -> None:
        """Send an HTTP response.

        Args:
            status: HTTP status.
            headers: header fields.
            body: the body, or its first part.
            more: further parts of the body; None for none.
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
        """``receive`` for the application; records a ``websocket.connect`` that the application receives itself."""
        receive = self.receive

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.connect" and self.stage is Stage.REQUESTED:
                self.stage = Stage.CONNECTED
            return message

        return watched


def _as_bytes(headers: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
