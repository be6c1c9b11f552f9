"""One page, two servers: a Starlette echo under uvicorn and a Flask echo under werkzeug, in one process.

python examples/demo.py [--port N]       (0 picks a free port; Ctrl-C stops it)

Listens on loopback only. The Starlette application serves the page. The Flask server listens on another
port, so the page is a foreign origin to it and is listed in `origins`. Nothing is stored, and nothing is
loaded from elsewhere.
"""

import argparse
import logging
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from flask import Flask, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from werkzeug.serving import make_server

import watershed_mw
from watershed_mw import AsyncConnection, ThreadConnection, WatershedASGI, WatershedWSGI

PAGE = Path(__file__).with_name("demo.html")
PROTOCOLS = ["echo.watershed", "json"]
CLOSE = re.compile(r"/close (\d{4}) ?(.*)", re.DOTALL)


def follow(conn: AsyncConnection | ThreadConnection) -> None:
    """Echo every message, except `/close CODE REASON`, which makes the server close."""

    def text(message: str) -> None:
        if command := CLOSE.fullmatch(message):
            conn.end(command[2], code=int(command[1]))
        else:
            conn.send(message)

    conn.on("text", text)
    conn.on("binary", conn.send)


def asgi_app(flask_port: int) -> WatershedASGI:
    """Build the Starlette application: the page, the list of servers, and the first echo."""

    async def page(_: Request) -> Response:
        # An isolated page gets a clock resolution of 5 µs instead of 100, about as long as a loopback round trip.
        isolated = {
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Embedder-Policy": "require-corp",
        }
        return FileResponse(PAGE, headers=isolated)

    async def doors(_: Request) -> Response:
        return JSONResponse(
            {"implementation": watershed_mw.implementation, "ports": {"asgi": None, "wsgi": flask_port}}
        )

    async def echo(websocket: WebSocket) -> None:
        conn = await websocket.scope["watershed"].accept()
        follow(conn)
        await conn.run()

    app = Starlette(routes=[Route("/", page), Route("/doors", doors), WebSocketRoute("/echo", echo)])
    return WatershedASGI(app, protocols=PROTOCOLS)


def flask_app(origins: list[str], connections: set[ThreadConnection]) -> Flask:
    """Build the Flask application: the second echo, open to pages of these origins."""
    app = Flask(__name__)
    app.wsgi_app = WatershedWSGI(  # type: ignore[method-assign]
        app.wsgi_app, protocols=PROTOCOLS, origins=origins, close_timeout=1.0
    )

    @app.route("/echo", websocket=True)
    def echo() -> str:
        conn = request.environ["watershed"].accept()
        connections.add(conn)
        follow(conn)
        conn.run()
        connections.discard(conn)
        return ""

    return app


def main() -> None:
    """Run both servers until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="One page that talks to a Starlette echo and a Flask echo.")
    parser.add_argument(
        "--port", type=int, default=8000, help="port of the page; 0 picks a free one (default: %(default)s)"
    )
    wanted: int = parser.parse_args().port
    try:
        listener = socket.create_server(("127.0.0.1", wanted))
    except OSError as error:
        sys.exit(f"Port {wanted} of 127.0.0.1 is not available ({error.strerror}). Choose another one: --port 0")
    port: int = listener.getsockname()[1]

    connections: set[ThreadConnection] = set()
    origins = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    flask_server = make_server("127.0.0.1", 0, flask_app(origins, connections), threaded=True)
    threading.Thread(target=flask_server.serve_forever, daemon=True).start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no log line per request
    config = uvicorn.Config(
        asgi_app(flask_server.server_port),
        ws="watershed_mw.uvicorn:WatershedProtocol",
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    try:
        # uvicorn shuts down gracefully and then raises the signal again: treat SIGTERM like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"The demo is at http://127.0.0.1:{port}/ (Ctrl-C stops it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        for conn in list(connections):
            conn.end("the demo has ended", code=1001)
        flask_server.shutdown()
        flask_server.server_close()


if __name__ == "__main__":
    main()
