"""``watershed-mw`` as users and shell scripts run it: real processes, pipes and pseudo-terminals.

It talks to two servers: the command ``echo``, and an application that misbehaves on demand.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.support.cli_server import PROGRAM, Server
from tests.support.programs import Program
from tests.support.threaded_servers import Uvicorn
from watershed_mw import WatershedASGI


@pytest.fixture(autouse=True)
def loggers_of_uvicorn() -> Iterator[None]:
    """Commands run in this process give uvicorn's loggers a handler on a stderr that the test closes."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a running `watershed-mw echo`, which is stopped at the end."""
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--protocol", "chat.v1", "--verbose") as program:
        yield program.port()
        assert program.stop(signal.SIGINT) == 0
        assert "Traceback" not in program.output


@pytest.fixture
def server() -> Iterator[tuple[Server, int]]:
    application = Server()
    with Uvicorn(WatershedASGI(application, origins="*", protocols=["chat.v1"])) as running:
        yield application, running.port


class Proxy:
    """A stand-in for the proxy's ASGI application."""

    def __init__(self, upstream: str, **options: Any) -> None:
        if "//" not in upstream:
            raise ValueError(f"expected a URL, got {upstream!r}")
        self.given = {"upstream": upstream, **options}


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `watershed-mw proxy` would serve, and where."""
    served: list[Any] = []
    module = ModuleType("watershed_mw.proxy")
    module.WebSocketProxy = Proxy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "watershed_mw.proxy", module)
    monkeypatch.setattr("watershed_mw.cli.proxy.serve", lambda *given: served.append(given))
    return served
