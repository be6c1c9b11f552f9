"""A client that greets one of the other examples: python examples/client.py [port]."""

import asyncio
import sys

from watershed_mw import HandshakeError
from watershed_mw.client import connect


async def main(port: int) -> None:
    try:
        async with connect(f"ws://127.0.0.1:{port}/", protocols=["echo.watershed"]) as conn:
            await conn.send("Hello, watershed!")
            print(f"{conn.protocol}: {await conn.receive()!r}")
    except (HandshakeError, OSError) as error:
        sys.exit(f"no WebSocket: {error}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
