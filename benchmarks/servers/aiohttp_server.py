"""aiohttp's own server."""

from __future__ import annotations

import asyncio

from aiohttp import WSMsgType, web

from .serving import BACKLOG, MAX_SIZE, Place, serve


async def server(place: Place) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_SIZE + 1, compress=place.deflate)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", place.port, ssl_context=place.tls, backlog=BACKLOG).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    serve(server)
