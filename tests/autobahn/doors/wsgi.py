"""Plain WSGI echo applications, one for each kind of handler, for gunicorn or (run by itself) werkzeug."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.serving import run_simple

import watershed_mw
from watershed_mw import AsyncConnection

StartResponse = Callable[..., Any]


def blocks(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Echo in the worker's thread."""
    connection = environ["watershed"].accept()
    for message in connection:
        connection.send(message)
    return []


def releases(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Echo on the background event loop."""
    environ["watershed"].accept().run_in_background(echo)
    return []


async def echo(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)


blocking = watershed_mw.WatershedWSGI(blocks)
released = watershed_mw.WatershedWSGI(releases)
print(f"implementation: {watershed_mw.implementation}", flush=True)

if __name__ == "__main__":
    run_simple("127.0.0.1", 0, {"blocking": blocking, "async": released}[sys.argv[1]], threaded=True)
