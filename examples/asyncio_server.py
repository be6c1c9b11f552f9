"""Accept upgrades on a plain asyncio server: python examples/asyncio_server.py [port]."""

import asyncio
import contextlib
import sys

from watershed_mw import HandshakeError, Watershed

shed = Watershed(protocols=["echo.watershed"])


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        conn = shed.accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer))
    except (HandshakeError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.close()  # a refusal has already been answered; an incomplete request gets no response
        return
    conn.on("text", conn.send)
    conn.on("binary", conn.send)
    with contextlib.suppress(asyncio.CancelledError):  # on Ctrl-C; Python 3.11's streams would log it
        code, reason = await conn.run()
        print(f"closed with {code} {reason!r}")


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
