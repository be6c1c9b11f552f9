"""What the programs of test_proxy_faults.py serve: a proxy to $UPSTREAM, and at /own an echo of this package's.

Run as a module it is werkzeug's server with the WSGI application. Nothing is imported above that must not be imported
before gevent has patched the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

if os.environ.get("WITHOUT_UVLOOP"):
    sys.modules["uvloop"] = None  # type: ignore[assignment]


def proxy() -> Any:
    from watershed_mw.proxy import WebSocketProxy

    return WebSocketProxy(os.environ["UPSTREAM"], close_timeout=3.0)


def asgi() -> Any:
    """The ASGI application."""
    from watershed_mw import WatershedASGI

    forward = proxy()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/own":
            await forward(scope, receive, send)
            return
        async with await scope["watershed"].accept() as connection:
            async for message in connection:
                await connection.send(message)

    return WatershedASGI(app)


def wsgi() -> Any:
    """The WSGI application."""
    from watershed_mw import WatershedWSGI

    forward = proxy()

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/threads":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(len(os.listdir("/proc/self/task"))).encode()]
        if environ["PATH_INFO"] != "/own":
            answered: Iterable[bytes] = forward(environ, start_response)
            return answered
        connection = environ["watershed"].accept()
        connection.on("text", connection.send)
        connection.run_in_background()
        return []

    return WatershedWSGI(app)


def wsgi_after_a_loop() -> Any:
    """The WSGI application, loaded by a process whose own loop runs already; the workers are forked from it."""
    import asyncio

    from watershed_mw.loop_thread import run_on_background_loop

    run_on_background_loop(asyncio.sleep(0))
    return wsgi()


if __name__ == "__main__":
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, wsgi(), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
