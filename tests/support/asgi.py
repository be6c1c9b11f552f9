"""The types of ASGI, and what the applications of the tests have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


async def accept(receive: Receive, send: Send, **fields: Any) -> None:
    """Take the connect message and accept."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **fields})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo every message in its own type."""
    await accept(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})
