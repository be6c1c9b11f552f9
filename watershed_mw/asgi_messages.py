"""``receive`` and ``send`` as an ASGI application under our uvicorn class has them: messages in place of a connection.

What comes before the accept, and after a refusal, is asked of the door. Each message of an application comes
through here twice, so this file is compiled as well as interpreted.
"""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any, Protocol

from .aio_connection import AsyncioConnection
from .awaitables import READY

__all__ = ["ASGIMessages", "Door"]


class Door(Protocol):
    """What answers while there is no connection."""

    async def receive_unopened(self) -> dict[str, Any] | None:
        """The next message to the application; None once it has accepted."""

    async def send_unopened(self, message: MutableMapping[str, Any]) -> None:
        """Take the application's answer, or a part of it."""


class ASGIMessages:
    """One application's way to its client.

    Attributes:
        connection: what has been accepted, None before.
    """

    __slots__ = ("_door", "connection")

    def __init__(self, door: Door) -> None:
        self._door = door
        self.connection: AsyncioConnection | None = None

    async def receive(self) -> dict[str, Any]:
        """The next message to the application."""
        if self.connection is None:
            message = await self._door.receive_unopened()
            if message is not None:
                return message
        connection = self.connection
        assert connection is not None
        if connection._push:
            connection._check_pull()
        while connection._queue._count == 0:
            if connection._is_over():
                code, reason = connection.close_code or 1006, connection.close_reason or ""
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            await connection._expect_news()
        data = connection._next_message()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data}
        return {"type": "websocket.receive", "bytes": data}

    def send(self, message: MutableMapping[str, Any]) -> Awaitable[None]:
        """Take a message from the application; done once the client keeps up."""
        connection = self.connection
        if connection is None:
            return self._door.send_unopened(message)
        known = message if type(message) is dict else dict(message)
        kind = known["type"]
        if kind == "websocket.send":
            data = known.get("bytes")
            if data is None:
                data = known.get("text")
            if data is None:
                raise RuntimeError("expected 'bytes' or 'text' in websocket.send, got neither")
            return connection.send(data)
        if kind == "websocket.close":
            connection.end(known.get("reason") or "", code=known.get("code", 1000))
            return READY
        raise RuntimeError(f"expected ASGI message 'websocket.send' or 'websocket.close', got {kind!r}")
