"""The relay between two sockets, without a proxy: request and 101 are forwarded unchanged."""

from __future__ import annotations

import argparse
import asyncio
import socket

from watershed_mw.relay import relay

from .serving import BACKLOG


async def serve_one(client: socket.socket, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        data = await loop.sock_recv(client, 65536)
        if not data:
            client.close()
            return
        request += data
    server = socket.socket()
    server.setblocking(False)
    await loop.sock_connect(server, ("127.0.0.1", upstream))
    await loop.sock_sendall(server, request)
    await relay(client, server)


async def serve(port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with socket.create_server(("127.0.0.1", port), backlog=BACKLOG) as listener:
        listener.setblocking(False)
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            task = loop.create_task(serve_one(client, upstream))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--upstream", type=int, required=True)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    options = parser.parse_args()
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(serve(options.port, options.upstream))
    else:
        asyncio.run(serve(options.port, options.upstream))
