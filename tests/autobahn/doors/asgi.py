"""A plain ASGI echo application, served by `uvicorn --ws watershed_mw.uvicorn:WatershedProtocol`.

It imports the package only to report the build: plain applications work unchanged.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import watershed_mw

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Echo every message with its own type."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    if scope["type"] != "websocket":
        return
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        text = event.get("text")
        await send({"type": "websocket.send", "text": text, "bytes": event.get("bytes") if text is None else None})


async def lifespan(receive: Receive, send: Send) -> None:
    """Report the build that this process runs, then wait for the end."""
    await receive()
    print(f"implementation: {watershed_mw.implementation}", flush=True)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
