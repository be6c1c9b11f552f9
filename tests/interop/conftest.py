"""Starts the parties of the interoperability tests, each once, and only when a test needs it.

Node and Chromium are required: without them the tests fail and say what to install. WATERSHED_MW_NO_NODE=1 and
WATERSHED_MW_NO_BROWSER=1 skip their tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest

from tests.support.loops import LoopThread
from tests.support.parties import Client, Server, node_peers, ours, python_peers


@pytest.fixture(scope="session")
def stack() -> Iterator[ExitStack]:
    """Everything that the session has started, stopped in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def party(stack: ExitStack) -> Callable[[str, str], Client | Server]:
    """Look up a client or server by name: `party("server", "asgi")`."""

    @cache
    def loop() -> LoopThread:
        return stack.enter_context(closing(LoopThread()))

    @cache
    def node() -> node_peers.Node:
        return stack.enter_context(closing(node_peers.Node()))

    clients: dict[str, Callable[[], Client]] = {
        "websockets": python_peers.WebsocketsClient,
        "picows": lambda: python_peers.PicowsClient(loop()),
        "npm-ws": lambda: node_peers.NodeClient(node(), "ws"),
        "npm-watershed": lambda: node_peers.NodeClient(node(), "watershed"),
        "our-threads": ours.ThreadClient,
        "our-asyncio": lambda: ours.AsyncClient(loop()),
    }
    servers: dict[str, Callable[[], Server]] = {
        "websockets": lambda: stack.enter_context(closing(python_peers.WebsocketsServer())),
        "picows": lambda: stack.enter_context(closing(python_peers.PicowsServer(loop()))),
        "npm-ws": lambda: node_peers.NodeServer(node(), "ws"),
        "npm-watershed": lambda: node_peers.NodeServer(node(), "watershed"),
        "raw-threads": lambda: stack.enter_context(closing(ours.RawThreadServer())),
        "raw-asyncio": lambda: stack.enter_context(closing(ours.RawAsyncServer(loop()))),
        "uvicorn": lambda: stack.enter_context(closing(ours.UvicornServer(loop()))),
        "asgi": lambda: stack.enter_context(closing(ours.AsgiServer(loop()))),
        "wsgi": lambda: stack.enter_context(closing(ours.WsgiServer(background=False))),
        "wsgi-background": lambda: stack.enter_context(closing(ours.WsgiServer(background=True))),
    }

    @cache
    def find(kind: str, name: str) -> Client | Server:
        return clients[name]() if kind == "client" else servers[name]()

    return find


@pytest.fixture
def client(request: pytest.FixtureRequest, party: Callable[[str, str], Client]) -> Client:
    """The client of the test's pair."""
    name: str = request.param
    return party("client", name)


@pytest.fixture
def server(request: pytest.FixtureRequest, party: Callable[[str, str], Server]) -> Server:
    """The server of the test's pair."""
    name: str = request.param
    return party("server", name)
