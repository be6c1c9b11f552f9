"""A relay in proxy mode: performs both handshakes itself, then never looks at a frame.

python examples/raw_socket.py [port [port of another WebSocket server on this machine]]
"""

import contextlib
import socket
import socketserver
import sys

from watershed_mw import HandshakeError, Watershed
from watershed_mw.relay import relay

shed = Watershed(compression=False)  # both handshakes must agree, as frames are relayed unread
PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 8001
UPSTREAM = int(sys.argv[2]) if len(sys.argv) > 2 else 8000


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (chunk := sock.recv(65536)):
            raise ConnectionError("closed before the end of the head")
        data += chunk
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def dial() -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", UPSTREAM))
    key = shed.generate_key()
    request = shed.request_head(f"ws://127.0.0.1:{UPSTREAM}/", key)
    sock.sendall(request)
    response, rest = read_head(sock)
    return shed.connect(response, sock, head=rest, key=key, request=request, detached=True)


class Relay(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            request, rest = read_head(self.request)
            with contextlib.ExitStack() as refused:
                upstream = refused.enter_context(dial())  # first: after a 101 it is too late to refuse
                client = shed.accept(request, self.request, head=rest, detached=True)
                refused.pop_all()
            relay(client, upstream)  # continues on the background event loop: this thread is done
        except HandshakeError as refusal:  # a refused client has already been answered
            print(f"refused: {refusal}")
        except ConnectionError as error:
            print(f"lost: {error}")


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", PORT), Relay) as server:
        print(f"ws://127.0.0.1:{server.server_address[1]}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
