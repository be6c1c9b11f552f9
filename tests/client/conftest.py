"""Servers for clients, and clients of every flavour; each test leaves no descriptor, task or thread behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import FLAVOURS, Client, descriptors, left_tasks
from tests.support.loops import LoopThread, UVLoopThread, use_once
from tests.support.scripted import Script, Server
from tests.support.waiting import until
from watershed_mw.client.aio import network

Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def loops() -> Iterator[dict[str, LoopThread]]:
    """Event loops, each in a thread of its own."""
    loops = {"asyncio": LoopThread(), "uvloop": UVLoopThread()}
    for loop in loops.values():
        loop.call(use_once())
    yield loops
    for loop in loops.values():
        loop.close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests must not use a proxy that the environment names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def nothing_left(loops: dict[str, LoopThread]) -> Iterator[None]:
    """Every descriptor is closed when the test is over, and every task done."""
    before = descriptors()
    yield
    until(lambda: descriptors() <= before, "every descriptor is closed")
    for name, loop in loops.items():
        until(lambda loop=loop: loop.call(left_tasks()) == 0, f"no task is left on {name}")  # type: ignore[misc]


@pytest.fixture
def serve(nothing_left: None) -> Iterator[Serve]:
    """Start a server, which is stopped when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(script: Script, **options: Any) -> Server:
            return stack.enter_context(Server(script, **options))

        yield start


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """With and without aiofastnet's streams; returns the event loop."""

    def choose(flavour: str) -> str:
        loop, _, package = flavour.partition(" and ")
        if not package:
            monkeypatch.setattr(network, "aiofastnet", None)
        return loop

    return choose


@pytest.fixture(params=FLAVOURS)
def client(
    request: pytest.FixtureRequest, serve: Serve, loops: dict[str, LoopThread], faster: Callable[[str], str]
) -> Iterator[Client]:
    """A client of each flavour."""
    client = Client(request.param, loops.get(faster(request.param)))
    yield client
    client.close()


@pytest.fixture(params=("threads", "uvloop"))
def either(request: pytest.FixtureRequest, serve: Serve, loops: dict[str, LoopThread]) -> Iterator[Client]:
    """A client for threads and one for an event loop, for tests in which the kind of event loop does not matter."""
    client = Client(request.param, loops.get(request.param))
    yield client
    client.close()


@pytest.fixture(params=FLAVOURS[1:])
def async_client(
    request: pytest.FixtureRequest, serve: Serve, loops: dict[str, LoopThread], faster: Callable[[str], str]
) -> Iterator[Client]:
    """A client of each event loop."""
    client = Client(request.param, loops[faster(request.param)])
    yield client
    client.close()
