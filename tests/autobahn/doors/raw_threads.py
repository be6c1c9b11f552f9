"""An echo server with the raw-socket API: `Watershed.accept` on blocking sockets, with a thread for each."""

import socket
import threading

import watershed_mw

shed = watershed_mw.Watershed()


def serve(sock: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        received = sock.recv(65536)
        if not received:
            sock.close()
            return
        data += received
    head, end, early = data.partition(b"\r\n\r\n")
    with shed.accept(head + end, sock, head=early) as conn:
        for message in conn:
            conn.send(message)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(f"implementation: {watershed_mw.implementation}")
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}")
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=[sock], daemon=True).start()


if __name__ == "__main__":
    main()
