"""Every WSGI server that gives its sockets up, as a real process, and every cell that the matrix says yes to.

The servers and what each can do are data (``wsgi_servers.py``). Each is started once; its log must hold
nothing but requests, and the tracebacks that a test asked for.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support import LIMIT

from .support import ACCEPT, Peer, binary, close, eventually, head, text
from .wsgi_servers import SERVERS, Running, start

MIB = 2**20

CELLS = [*SERVERS, *(f"{name}+tls" for name, kind in SERVERS.items() if kind.tls)]
WAYS = ["blocking", "background", "async"]

Fleet: TypeAlias = Callable[[str], Running]


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, certificate: tuple[Path, ssl.SSLContext]) -> Iterator[Fleet]:
    """The servers that the selected tests need, all started before the first one is waited for."""
    with ExitStack() as stack:

        @cache
        def running(cell: str) -> Running:
            name, _, tls = cell.partition("+")
            return stack.enter_context(start(SERVERS[name], certificate if tls else None))

        @cache
        def ready(cell: str) -> Running:
            server = running(cell)
            server.wait_until_it_serves()
            return server

        for item in request.session.items:
            if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
                if cell := item.callspec.params.get("server"):
                    running(cell)
        yield ready


@pytest.fixture(scope="module", params=CELLS)
def server(fleet: Fleet, request: pytest.FixtureRequest) -> Running:
    """One server of the matrix."""
    return fleet(request.param)


def ways_of(running: Running) -> list[str]:
    return WAYS if running.kind.background else WAYS[:1]


def test_echo(server: Running) -> None:
    for way in ways_of(server):
        with server.peer() as peer:
            assert peer.open(f"/{way}")["sec-websocket-accept"] == ACCEPT
            for message in ("Hello", "", "Grüße 🌊", "x" * 70000):
                peer.send(text(message))
                assert peer.text() == message
            for data in (b"\x00\xff", b"", bytes(range(256)) * (MIB // 256)):
                peer.send(binary(data))
                assert bytes(peer.frame().data) == data
            peer.send(close())
            assert peer.close() == (1000, "")
            peer.end()
