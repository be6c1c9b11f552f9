"""The servers of the soak, each a process of its own: how it is started, and where it echoes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from tests.support import PROJECT
from tests.support.programs import Program, free_port

__all__ = ["DOORS", "Door", "serving"]

_BIN: Final = Path(sys.executable).parent
_APPS: Final = "tests.soak.apps"
_CLASS: Final = "watershed_mw.uvicorn:WatershedProtocol"
_ADDRESS: Final = re.compile(r"127\.0\.0\.1:([1-9]\d*)")
STARTING: Final = 60.0


@dataclass(frozen=True)
class Door:
    """One server.

    Attributes:
        name: how the soak calls it.
        command: how it is started; ``{port}`` stands for a free port.
        paths: where it echoes, each in another way.
        threads: threads that it may have grown by: pools that fill as they are needed.
        proxy: whether it passes everything on to the first door.
        wild: whether the server itself copes with clients that go in the midst of a frame.
    """

    name: str
    command: tuple[str, ...]
    paths: tuple[str, ...] = ("/",)
    threads: int = 0
    proxy: bool = False
    wild: bool = True


def _uvicorn(app: str, ws: str = _CLASS) -> tuple[str, ...]:
    return ("uvicorn", f"{_APPS}:{app}", "--port", "{port}", "--ws", ws, "--log-level", "warning")


def _gunicorn(app: str, workers: str = "gthread") -> tuple[str, ...]:
    # Threads enough for all lives at once: a blocking handler holds one.
    threads = ("--threads", "16") if workers == "gthread" else ()
    options = ("-k", workers, *threads, "--no-control-socket", "--log-level", "error")
    return ("gunicorn", f"{_APPS}:{app}", "--bind", "127.0.0.1:{port}", *options)


_WSGI: Final = ("/blocking", "/background", "/async")
# The pool for the handlers of background connections (32), and what runs it.
_POOL: Final = 36

DOORS: Final = {
    door.name: door
    for door in (
        Door("uvicorn-plain", _uvicorn("plain")),
        Door("uvicorn-native", _uvicorn("native")),
        Door(
            "hypercorn",
            ("hypercorn", f"{_APPS}:native", "--bind", "127.0.0.1:{port}", "--log-level", "error"),
            # hypercorn 0.18 keeps the socket and the task of such a client forever, and never sends a disconnect:
            # a plain ASGI application leaks as many.
            wild=False,
        ),
        Door("granian", ("granian", "--interface", "asgi", "--port", "{port}", f"{_APPS}:native"), threads=4),
        Door("uvicorn-own", _uvicorn("native", "websockets-sansio")),
        Door("gunicorn", _gunicorn("wsgi"), _WSGI, threads=16 + _POOL),
        Door("gunicorn-gevent", _gunicorn("wsgi", "gevent"), _WSGI, threads=_POOL),
        # It has a thread for each request, and for each blocking handler.
        Door("werkzeug", ("python", "-m", _APPS, "werkzeug"), _WSGI, threads=_POOL),
        Door("waitress", ("python", "-m", _APPS, "waitress"), _WSGI, threads=_POOL),
        Door("cheroot", ("python", "-m", _APPS, "cheroot"), _WSGI, threads=_POOL),
        Door("proxy-asgi", _uvicorn("proxied"), proxy=True),
        Door("proxy-wsgi", _gunicorn("proxied_wsgi"), threads=16 + _POOL, proxy=True),
    )
}


@contextmanager
def serving(door: Door, variables: Mapping[str, str]) -> Iterator[tuple[Program, int]]:
    """Start the door's process, which reports when it listens; yield it and its port."""
    port = free_port()
    first, *rest = (part.format(port=port) for part in door.command)
    environment = {"PYTHONPATH": str(PROJECT), **variables}
    with mock.patch.dict(os.environ, environment), Program(_BIN / first, *rest) as program:
        if first == "python":
            port = int(program.wait_for_line(_ADDRESS, STARTING)[1])
        yield program, port
