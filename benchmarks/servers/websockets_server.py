"""websockets' own server, and its own broadcast."""

from __future__ import annotations

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.asyncio.server import serve as listen

from .serving import BACKLOG, MAX_SIZE, Place, serve

members: set[ServerConnection] = set()


async def handler(connection: ServerConnection) -> None:
    assert connection.request is not None
    if connection.request.path == "/broadcast":
        members.add(connection)
        try:
            async for message in connection:
                broadcast(members, message)
        finally:
            members.discard(connection)
    else:
        async for message in connection:
            await connection.send(message)


async def server(place: Place) -> None:
    compression = "deflate" if place.deflate else None
    async with listen(
        *(handler, "127.0.0.1", place.port),
        ssl=place.tls,
        compression=compression,
        max_size=MAX_SIZE,
        backlog=BACKLOG,
    ) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    serve(server)
