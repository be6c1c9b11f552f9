"""Accept upgrades on the standard library's HTTP server: python examples/http_server.py [port]."""

import contextlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from watershed_mw import HandshakeError, Watershed

shed = Watershed(protocols=["echo.watershed"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            conn = shed.accept(self, self.connection)
        except HandshakeError as refusal:  # the client has already been answered
            self.log_message("refused: %s", refusal)
            return
        conn.on("text", conn.send)
        conn.on("binary", conn.send)
        conn.on("end", lambda code, reason: self.log_message("closed with %s %r", code, reason))
        conn.run()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"ws://127.0.0.1:{server.server_port}/")
        server.serve_forever()
