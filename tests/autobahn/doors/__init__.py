"""The programs under test: each echoes, in a process of its own, through one integration.

Every program prints which build of the package it runs; servers also print their address. They use only the package's
public API.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Door:
    """A program under test."""

    name: str
    command: tuple[str, ...]
    client: bool = False
    """A client is given the suite's address, an agent name and the number of cases; a server nothing."""


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def _uvicorn(*options: str, program: str = "asgi") -> tuple[str, ...]:
    return _module(
        "uvicorn",
        f"tests.autobahn.doors.{program}:application",
        *("--ws", "watershed_mw.uvicorn:WatershedProtocol"),
        *("--host", "127.0.0.1", "--port", "0"),
        *("--log-level", "info", "--no-access-log"),
        *options,
    )


def _gunicorn(worker: str, way: str, *options: str) -> tuple[str, ...]:
    application = f"tests.autobahn.doors.wsgi:{'released' if way == 'async' else way}"
    return _module(
        "gunicorn", application, "--bind", "127.0.0.1:0", "--worker-class", worker, "--timeout", "0", *options
    )


def _wsgi() -> Iterator[Door]:
    for way in ("blocking", "async"):
        yield Door(f"werkzeug-{way}", _module("tests.autobahn.doors.wsgi", way))
        yield Door(f"sync-{way}", _gunicorn("sync", way))
        yield Door(f"gthread-{way}", _gunicorn("gthread", way, "--threads", "4"))


DOORS = (
    Door("raw-asyncio", _module("tests.autobahn.doors.raw_asyncio")),
    Door("raw-threads", _module("tests.autobahn.doors.raw_threads")),
    Door("uvicorn-h11", _uvicorn("--http", "h11", "--loop", "asyncio")),
    Door("uvicorn-httptools", _uvicorn("--http", "httptools", "--loop", "uvloop")),
    *_wsgi(),
    Door("proxy", _uvicorn("--http", "httptools", "--loop", "uvloop", program="proxied")),
    Door("client-asyncio", _module("tests.autobahn.doors.client_asyncio"), client=True),
    Door("client-threads", _module("tests.autobahn.doors.client_threads"), client=True),
)
"""The order is that of the table that is printed."""

ALIASES = {
    "raw": ("raw-asyncio", "raw-threads"),
    "uvicorn": ("uvicorn-h11", "uvicorn-httptools"),
    "wsgi": tuple(door.name for door in _wsgi()),
    "client": ("client-asyncio", "client-threads"),
}
