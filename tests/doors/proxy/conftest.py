"""The proxy under servers that hand over their socket (raw bytes) and servers that do not (messages)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.proxy_fronts import FRONTS, Front, Serve
from tests.support.scripted import Server
from tests.support.waiting import eventually
from watershed_mw.proxy import live_relays


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], Front]]:
    """Start a server, once."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Front] = {}

        def start(name: str) -> Front:
            if name not in started:
                started[name] = FRONTS[name](stack.enter_context)
            return started[name]

        yield start


@pytest.fixture(params=FRONTS)
def front(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """Each server."""
    return start(request.param)


@pytest.fixture(params=["raw-httptools", "wsgi", "uvicorn-own"])
def some(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """One server of each kind, for behaviour that depends on the proxy only."""
    return start(request.param)


@pytest.fixture(params=["raw-h11", "raw-httptools", "wsgi"])
def raw(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """Each server that hands over its socket."""
    return start(request.param)


@pytest.fixture(params=["uvicorn-own", "hypercorn"])
def messages(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """Each server that does not."""
    return start(request.param)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an upstream."""
    with contextlib.ExitStack() as stack:
        yield lambda script, **options: stack.enter_context(Server(script, **options))
    eventually(lambda: not live_relays(), "an end of every relay")


@pytest.fixture
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every event loop look like Windows' default, which has no ``add_reader()``."""
    monkeypatch.setattr(asyncio, "ProactorEventLoop", asyncio.AbstractEventLoop, raising=False)
