"""Starlette's own WebSocket on this package's uvicorn class: python examples/uvicorn_plain.py [port].

From the command line: uvicorn examples.uvicorn_plain:app --ws watershed_mw.uvicorn:WatershedProtocol
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(routes=[WebSocketRoute("/", echo)])

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
