"""An echo server with the raw-socket API: `Watershed.accept` on the streams of `asyncio.start_server`."""

import asyncio

import watershed_mw

shed = watershed_mw.Watershed()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    async with shed.accept(head, (reader, writer)) as conn:
        async for message in conn:
            await conn.send(message)


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"implementation: {watershed_mw.implementation}")
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
