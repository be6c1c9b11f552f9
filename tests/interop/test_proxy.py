"""The proxy between third-party programs: npm's ws and watershed, websockets, Chromium, and nginx on either side."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from tests.support import LIMIT
from tests.support.front_proxies import MAY_BE_LEFT_OUT, behind, need, nginx
from tests.support.parties import Client, Ending, Feature, Message, Refused, Server, Session
from tests.support.peers import Peer, close, head, text
from tests.support.programs import free_port
from tests.support.proxy_fronts import FRONTS, Front, WSGIFront
from tests.support.threaded_servers import Uvicorn
from watershed_mw import WatershedASGI
from watershed_mw.proxy import WebSocketProxy

from .test_browser import FLAGS, chromium

pytestmark = pytest.mark.programs

PEERS = ("websockets", "npm-ws", "npm-watershed")
CHOSEN = ("raw-httptools", "wsgi", "uvicorn-own")
NO_NODE = os.environ.get("WATERSHED_MW_NO_NODE") == "1"


def pairs() -> pytest.MarkDecorator:
    """Every client with every server."""
    chosen = []
    for one, other in product(PEERS, PEERS):
        left_out = NO_NODE and "npm-" in one + other
        marks = [pytest.mark.skip(reason="WATERSHED_MW_NO_NODE=1")] if left_out else []
        chosen.append(pytest.param(one, other, id=f"{one}-to-{other}", marks=marks))
    return pytest.mark.parametrize("client, server", chosen, indirect=True)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], Front]]:
    """Start a server with a proxy in it, once."""
    with ExitStack() as stack:
        started: dict[str, Front] = {}

        def start(name: str) -> Front:
            if name not in started:
                started[name] = FRONTS[name](stack.enter_context)
            return started[name]

        yield start


@pytest.fixture(params=CHOSEN)
def front(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """A server of each kind."""
    return start(request.param)


class Between:
    """A client's sessions with a server, through the proxy."""

    def __init__(self, front: Front, client: Client, server: Server) -> None:
        # node-watershed does not close when the other side's stream has ended, and would have 10 s to do so.
        front.serve(WebSocketProxy(server.url, close_timeout=1.0))
        self._port = front.port
        self.client = client
        self.server = server
        self.path = ""

    def open(self, protocols: tuple[str, ...] = (), *, compression: bool = False) -> Session:
        self.path = f"/{uuid.uuid4().hex}"
        return self.client.open(f"ws://127.0.0.1:{self._port}{self.path}", protocols, compression=compression)

    def refused(self) -> int | None:
        with pytest.raises(Refused) as refusal:
            self.client.open(f"ws://127.0.0.1:{self._port}/forbidden")
        return refusal.value.status

    def both(self, feature: Feature) -> bool:
        return feature in self.client.features & self.server.features


MESSAGES: list[Message] = ["Grüße, 水, 🌊", "", b"", bytes(range(256)), "b" * 126, b"d" * 65536, "é" * 2**19]


@pairs()
def test_messages_pass_through_the_proxy(front: Front, client: Client, server: Server) -> None:
    between = Between(front, client, server)
    compression = between.both(Feature.COMPRESSION)
    session = between.open(("unknown.v1", "json"), compression=compression)
    assert session.protocol == "json"
    # The two ends agree by themselves where bytes are relayed; with messages each side of the proxy has its own say.
    assert session.compressed == compression
    for message in MESSAGES:
        session.send(message)
        assert session.receive() == message
    if between.both(Feature.FRAGMENTS):
        session.send_fragments([b"Gr\xc3", b"\xbc\xc3\x9f", b"e"], text=True)
        assert session.receive() == "Grüße"
        session.send("!fragments")
        assert session.receive() == "one two three"
    if Feature.PING in client.features:
        assert session.ping(b"are you there?") == b"are you there?"
    if Feature.PING in server.features:
        session.send("!ping up")
        assert session.receive() == "pong up"
    code = 4001 if between.both(Feature.ANY_CODE) else 1000
    session.close(code, "bis später 🌊")
    assert server.ending(between.path) == Ending(code, "bis später 🌊", reset=False)
    assert not session.ending().reset


@pairs()
def test_the_servers_close_and_refusal_pass_through(front: Front, client: Client, server: Server) -> None:
    between = Between(front, client, server)
    assert between.refused() == 403
    code = 4002 if between.both(Feature.ANY_CODE) else 1000
    session = between.open()
    assert session.protocol is None
    session.send("the last message")
    session.send(f"!close {code} bis später 🌊")
    assert session.receive() == "the last message"
    assert session.ending() == Ending(code, "bis später 🌊", reset=False)
    assert not server.ending(between.path).reset


@pairs()
def test_ends_without_a_closing_handshake_pass_through(front: Front, client: Client, server: Server) -> None:
    between = Between(front, client, server)
    if Feature.ABORT in client.features:
        session = between.open()
        session.send("still here")
        assert session.receive() == "still here"
        session.abort()
        ending = server.ending(between.path)
        # The peer has left; where the proxy has to report that, it sends a Close.
        assert ending.reset if front.raw else ending.code in (1001, 1005, None), ending
    if Feature.ABORT in server.features:
        session = between.open()
        session.send("!abort")
        ending = session.ending()
        # node-watershed has no name for 1014, "bad gateway".
        assert ending.reset if front.raw else ending.code in (1014, None), ending


# --- nginx --------------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """An echo that sends a PING every 0.3 s in /alive; nginx waits for a second."""
    with Uvicorn(WatershedASGI(behind)) as server:
        yield server.port


def converse(peer: Peer) -> None:
    """Echo, and close in an orderly way; PINGs in between are skipped."""
    frames = iter(peer.frame, None)
    peer.send(text("hello"))
    assert next(bytes(frame.data) for frame in frames if frame.opcode == 1) == b"hello"
    peer.send(close(4001, "enough"))
    assert next(bytes(frame.data) for frame in frames if frame.opcode == 8)[:2] == (4001).to_bytes(2, "big")


@MAY_BE_LEFT_OUT
def test_the_proxy_works_behind_nginx(front: Front, echo: int, tmp_path: Path) -> None:
    need("nginx")
    front.serve(WebSocketProxy(f"ws://127.0.0.1:{echo}"))
    with nginx(tmp_path, front.port) as outer, outer.peer() as peer:
        peer.open("/alive", Host=outer.host, Origin=f"https://{outer.host}")
        # That a proxy on this machine may be believed is something that uvicorn takes for granted, and WSGI does not.
        assert peer.text() == ("wss 127.0.0.1" if front.asgi else "ws 127.0.0.1")
        converse(peer)
        with outer.peer() as foreign:
            foreign.send(head("/", Host=outer.host, Origin="https://elsewhere.example"))
            assert foreign.answer().status == 403


@MAY_BE_LEFT_OUT
def test_the_proxy_works_in_front_of_nginx(front: Front, echo: int, tmp_path: Path) -> None:
    need("nginx")
    with nginx(tmp_path, echo) as inner:
        front.serve(WebSocketProxy(f"wss://127.0.0.1:{inner.port}", ssl=inner.tls))
        with Peer(front.port) as peer:
            peer.open("/alive")
            assert peer.text() == "wss 127.0.0.1"
            converse(peer)
        assert inner.tls is not None
        front.serve(WebSocketProxy(f"ws://127.0.0.1:{inner.port}"))  # which speaks TLS alone
        with Peer(front.port) as peer:
            peer.send(head("/"))
            answer = peer.answer()
            assert answer.status == 400
            assert b"The plain HTTP request was sent to HTTPS port" in answer.body


@MAY_BE_LEFT_OUT
def test_nginx_without_an_upstream_gives_a_502(front: Front, tmp_path: Path) -> None:
    need("nginx")
    with nginx(tmp_path, free_port()) as inner:
        front.serve(WebSocketProxy(f"wss://127.0.0.1:{inner.port}", ssl=inner.tls))
        with Peer(front.port) as peer:
            peer.send(head("/"))
            answer = peer.answer()
        assert answer.status == 502
        assert b"nginx" in answer.body
        assert answer["content-type"].startswith("text/html")


# --- Chromium -----------------------------------------------------------------------------------------------


# The last of this module: while Playwright runs, the main thread counts as inside an event loop.
@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=chromium(), headless=True, args=FLAGS
        )
        context.set_default_timeout(LIMIT * 1000)
        yield context.pages[0]
        context.close()


TALK = """([url, last]) => new Promise((resolve) => {
    const sent = new Uint8Array(2 ** 20).map((_, i) => i * 7 + (i >> 8));
    const socket = new WebSocket(url, ['unknown.v1', 'json']);
    const seen = {};
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
        Object.assign(seen, { protocol: socket.protocol, extensions: socket.extensions });
        socket.send(sent);
    };
    socket.onmessage = ({ data }) => {
        const got = new Uint8Array(data);
        seen.same = got.length === sent.length && got.every((byte, i) => byte === sent[i]);
        last ? socket.send(last) : socket.close(4001, 'enough');
    };
    socket.onclose = ({ code, reason, wasClean }) => resolve({ ...seen, code, reason, wasClean });
})"""


def with_a_page(front: Front, proxy: WebSocketProxy) -> Any:
    """The proxy at /ws, beside a page of the same origin."""
    html = "<!doctype html><title>proxy</title>"
    if isinstance(front, WSGIFront):
        return DispatcherMiddleware(Response(html, content_type="text/html"), {"/ws": proxy})
    return Starlette(routes=[Route("/", lambda _: HTMLResponse(html)), Mount("/ws", app=proxy)])


@pytest.mark.skipif(os.environ.get("WATERSHED_MW_NO_BROWSER") == "1", reason="WATERSHED_MW_NO_BROWSER=1")
@pytest.mark.parametrize("server", ["websockets"], indirect=True)
def test_a_browser_connects_through_the_proxy(front: Front, server: Server, page: Page) -> None:
    front.serve(with_a_page(front, WebSocketProxy(server.url, strip_prefix=False)))
    page.goto(f"http://127.0.0.1:{front.port}/")
    path = f"/ws/{uuid.uuid4().hex}"
    url = f"ws://127.0.0.1:{front.port}{path}"
    seen = page.evaluate(TALK, [url, ""])
    assert "permessage-deflate" in seen.pop("extensions") or not front.raw
    assert seen == {"protocol": "json", "same": True, "code": 4001, "reason": "enough", "wasClean": True}
    assert server.ending(path) == Ending(4001, "enough", reset=False)
    seen = page.evaluate(TALK, [url, "!close 4002 bis später"])
    assert (seen["code"], seen["reason"], seen["wasClean"]) == (4002, "bis später", True)
    seen = page.evaluate(TALK, [f"ws://127.0.0.1:{front.port}/forbidden", ""])
    assert (seen["code"], seen["wasClean"]) == (1006, False)
