"""An echo server in Starlette: python examples/asgi_echo.py [port]."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from watershed_mw import WatershedASGI


async def echo(websocket: WebSocket) -> None:
    conn = await websocket.scope["watershed"].accept()
    async for message in conn:
        await conn.send(message)


app = WatershedASGI(Starlette(routes=[WebSocketRoute("/", echo)]), protocols=["echo.watershed"])

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
