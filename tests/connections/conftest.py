"""Connections for the scenarios: opened in every flavour, on every carrier, and cleaned up afterwards."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.loops import LoopThread, UVLoopThread
from tests.support.ways import EACH, Both, Link, Opener, Way, tasks_are_gone


@pytest.fixture(scope="session")
def loops() -> Iterator[Callable[[str], LoopThread]]:
    """Event loops by flavour, each in a thread of its own."""
    started: dict[str, LoopThread] = {}

    def find(flavour: str) -> LoopThread:
        if flavour not in started:
            started[flavour] = UVLoopThread() if flavour == "uvloop" else LoopThread()
            # asyncio's debug mode refuses calls from a wrong thread.
            started[flavour].loop.set_debug(flavour == "asyncio")
        return started[flavour]

    yield find
    for loop in started.values():
        loop.close()


@pytest.fixture
def opener(tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], loops: Callable[[str], LoopThread]) -> Iterator[Opener]:
    """Opens connections; afterwards nothing of them may remain on any loop."""
    used: set[str] = set()

    def find(flavour: str) -> LoopThread:
        used.add(flavour)
        return loops(flavour)

    opener = Opener(tls_contexts, find)
    yield opener
    opener.close()
    for flavour in used:
        loop = loops(flavour)
        assert loop.call(tasks_are_gone()), f"tasks are left on {flavour}: {asyncio.all_tasks(loop.loop)}"


@pytest.fixture(params=EACH, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """The kinds of connection; tests that need more or fewer parametrize ``way`` themselves."""
    way: Way = request.param
    return way


@pytest.fixture
def link(way: Way, opener: Opener) -> Link:
    """Open a connection of the test's kind; returns it and the hand-driven peer at its other end."""
    return partial(opener.open, way)


@pytest.fixture
def both(way: Way, opener: Opener) -> Both:
    """Open a connection of the test's kind, with another flavour of this package at its other end."""
    return partial(opener.open_both, way, way.opposite)
