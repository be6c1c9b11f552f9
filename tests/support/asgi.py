"""ASGI types, and helpers for the tests' ASGI applications."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


async def accept(receive: Receive, send: Send, **fields: Any) -> None:
    """Receive the connect message and accept."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **fields})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo every message with its own type."""
    await accept(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})
