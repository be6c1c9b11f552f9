"""The applications of doors/proxy/test_faults.py: a proxy to $UPSTREAM, and at /own an echo of this package.

Run as a module, this serves the WSGI application with werkzeug, or with eventlet if a certificate is given. The imports
at the top are limited to modules that may be imported before gevent or eventlet patches the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

# Not every process has uvloop; and eventlet's patches break trio, which httpcore imports where it is installed.
for name in os.environ.get("WITHOUT", "").split():
    sys.modules[name] = None  # type: ignore[assignment]


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
        if environ["PATH_INFO"] != "/own":
            answered: Iterable[bytes] = forward(environ, start_response)
            return answered
        connection = environ["watershed"].accept()
        connection.on("text", connection.send)
        connection.run_in_background()
        return []

    return WatershedWSGI(app)


def wsgi_after_a_loop() -> Any:
    """The WSGI application, loaded by a process whose own loop already runs; workers are forked from it."""
    import asyncio

    from watershed_mw.runtime.loop_thread import run_on_background_loop

    run_on_background_loop(asyncio.sleep(0))
    return wsgi()


def serve_by_eventlet(certificate: str) -> None:
    """Serve with eventlet over TLS."""
    eventlet: Any = import_module("eventlet")
    eventlet.monkey_patch()
    listener = eventlet.listen(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    listener = eventlet.wrap_ssl(listener, certfile=certificate, server_side=True)
    import_module("eventlet.wsgi").server(listener, wsgi())


if __name__ == "__main__" and len(sys.argv) > 1:
    serve_by_eventlet(sys.argv[1])
elif __name__ == "__main__":
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, wsgi(), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
