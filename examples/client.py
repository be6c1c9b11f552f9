"""A client that says hello to one of the other examples: python examples/client.py [port]."""

import asyncio
import sys

from watershed_mw import HandshakeError, Watershed

shed = Watershed(protocols=["echo.watershed"])


async def main(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = shed.generate_key()
    request = shed.request_head(f"ws://127.0.0.1:{port}/", key)
    writer.write(request)
    response = await reader.readuntil(b"\r\n\r\n")
    try:
        conn = shed.connect(response, (reader, writer), key=key, request=request)
    except HandshakeError as refusal:
        sys.exit(f"no WebSocket: {refusal}")
    async with conn:
        await conn.send("Hello, watershed!")
        print(f"{conn.protocol}: {await conn.receive()!r}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
