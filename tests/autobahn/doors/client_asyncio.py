"""An echo client: `connect()` in the asyncio flavour, messages as events.

Run with the address of a fuzzing server (ws://127.0.0.1:port), an agent name and the number of its cases.
"""

import asyncio
import sys
import traceback

import watershed_mw
from watershed_mw.client import connect


async def echo(url: str) -> None:
    conn = await connect(url, proxy=None)
    conn.on("text", conn.send)
    conn.on("binary", conn.send)
    await conn.run()


async def main(base: str, agent: str, cases: int) -> None:
    print(f"implementation: {watershed_mw.implementation}")
    for case in range(1, cases + 1):
        try:
            await echo(f"{base}/runCase?case={case}&agent={agent}")
        except (watershed_mw.WatershedError, OSError):  # documented; the harness fails on the traceback
            traceback.print_exc()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
