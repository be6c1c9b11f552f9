"""An echo client over the raw-socket API: `Watershed.connect` on asyncio streams, messages as events.

Run with the address of a fuzzing server (ws://127.0.0.1:port), an agent name and the number of its cases.
"""

import asyncio
import sys
import traceback
from urllib.parse import urlsplit

import watershed_mw

shed = watershed_mw.Watershed()


async def echo(url: str) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    key = shed.generate_key()
    request = shed.request_head(url, key)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    conn = shed.connect(head, (reader, writer), key=key, request=request)
    conn.on("text", conn.send)
    conn.on("binary", conn.send)
    await conn.run()


async def main(base: str, agent: str, cases: int) -> None:
    print(f"implementation: {watershed_mw.implementation}")
    for case in range(1, cases + 1):
        try:
            await echo(f"{base}/runCase?case={case}&agent={agent}")
        except (
            watershed_mw.WatershedError,
            OSError,
            EOFError,
        ):  # documented; the harness fails on the traceback
            traceback.print_exc()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
