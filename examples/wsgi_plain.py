"""An echo server as a plain WSGI application, on the standard library's server.

python examples/wsgi_plain.py [port]. The server has a single thread; connections do not occupy it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import ServerHandler, make_server

from watershed_mw import AsyncConnection, WatershedWSGI
from watershed_mw.wsgi import WSGIUpgrade


async def talk(conn: AsyncConnection) -> None:
    async for message in conn:
        await conn.send(message)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    upgrade: WSGIUpgrade | None = environ.get("watershed")
    if upgrade is None:
        start_response("426 Upgrade Required", [("Content-Type", "text/plain")])
        return [b"expected a WebSocket upgrade, got a plain request\n"]
    if environ["PATH_INFO"] != "/":
        return upgrade.reject(404, b"no such room\n")(environ, start_response)
    upgrade.accept(["echo.watershed"]).run_in_background(talk)
    return []


if __name__ == "__main__":
    ServerHandler.http_version = "1.1"  # some WebSocket clients cannot read a refusal in HTTP/1.0, the server's default
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with make_server("127.0.0.1", port, WatershedWSGI(application)) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"ws://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
