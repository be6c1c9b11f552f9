"""An echo client over the raw-socket API: `Watershed.connect` on a blocking socket, messages by iteration.

Run with the address of a fuzzing server (ws://127.0.0.1:port), an agent name and the number of its cases.
"""

import socket
import sys
import traceback
from urllib.parse import urlsplit

import watershed_mw

shed = watershed_mw.Watershed()


def echo(url: str) -> None:
    address = urlsplit(url)
    sock = socket.create_connection((address.hostname, address.port))
    key = shed.generate_key()
    request = shed.request_head(url, key)
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        received = sock.recv(65536)
        if not received:
            raise ConnectionError(f"the suite closed the connection instead of answering the handshake, after {data!r}")
        data += received
    head, end, early = data.partition(b"\r\n\r\n")
    with shed.connect(head + end, sock, head=early, key=key, request=request) as conn:
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
