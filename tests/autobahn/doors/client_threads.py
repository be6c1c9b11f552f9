"""An echo client: `connect()` in the threads flavour, messages by iteration.

Run with the address of a fuzzing server (ws://127.0.0.1:port), an agent name and the number of its cases.
"""

import sys
import traceback

import watershed_mw
from watershed_mw.client import connect


def echo(url: str) -> None:
    with connect(url, proxy=None) as conn:
        for message in conn:
            conn.send(message)


def main(base: str, agent: str, cases: int) -> None:
    print(f"implementation: {watershed_mw.implementation}")
    for case in range(1, cases + 1):
        try:
            echo(f"{base}/runCase?case={case}&agent={agent}")
        except (watershed_mw.WatershedError, OSError):  # documented; the harness fails on the traceback
            traceback.print_exc()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
