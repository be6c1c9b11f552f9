"""A chat member that connects with httpx: python examples/httpx_client.py [port of starlette_chat or flask_rooms].

The httpx client logs in on a page and keeps the cookie; the WebSocket is opened with the same client.
"""

import sys

import httpx

from watershed_mw.client import connect


def main(port: int) -> None:
    with httpx.Client() as http:
        http.get(f"http://127.0.0.1:{port}/login", params={"name": "ann"}).raise_for_status()
        with connect(f"ws://127.0.0.1:{port}/rooms/lobby", http=http) as conn:
            conn.send("hello")
            print(conn.receive())  # ann joined
            print(conn.receive())  # ann: hello


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
