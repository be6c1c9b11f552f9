"""The proxy's contract, under servers that give their socket (raw bytes) and servers that do not (messages)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
import trustme
from flask import Flask, abort, request
from flask.typing import ResponseReturnValue
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from websockets.frames import Opcode

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import KEY, Peer, close, head, ping, text
from tests.support.portable_servers import Hypercorn
from tests.support.programs import free_port
from tests.support.proxy_fronts import FRONTS, Front, WSGIFront, fields_of, refusing, saying, target_of
from tests.support.scripted import Server, Visit, echoing, silent_address
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import eventually
from tests.support.wire_peer import CLOSE, PING, PONG, TEXT, response_head
from watershed_mw import HandshakeError, WatershedASGI, WatershedWSGI
from watershed_mw.client import streams
from watershed_mw.proxy import ProxyRequest, Upstream, WebSocketProxy, live_relays
from watershed_mw.proxy.config import Mode

from .test_servers import Stream

MIB = 2**20
Serve = Callable[..., Server]


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
    """One server of each kind, for what the proxy alone decides."""
    return start(request.param)


@pytest.fixture(params=["raw-h11", "raw-httptools", "wsgi"])
def raw(start: Callable[[str], Front], request: pytest.FixtureRequest) -> Front:
    """Each server that gives its socket."""
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


def ask(front: Front, *, data: bytes = b"", path: str = "/", **changes: Any) -> Any:
    """The answer to an upgrade request, after which the stream has to end."""
    with Peer(front.port) as peer:
        peer.send(data or head(path, **changes))
        return peer.refusal()


# --- the opening handshake goes end to end ------------------------------------------------------------------


@pytest.mark.need(23)
def test_the_upstream_chooses_and_both_sides_talk(front: Front, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.switch(("Sec-WebSocket-Protocol", "b"), ("X-From", "upstream"), ("Server", "hidden"), then=b"\x81\5early")
        visit.echo()

    upstream = serve(script)
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        answer = peer.open("/", Sec_WebSocket_Protocol="a, b")
        assert answer["sec-websocket-protocol"] == "b"
        assert answer["x-from"] == "upstream"
        assert "hidden" not in answer["server"]
        assert dict(fields_of(upstream))["sec-websocket-protocol"].replace(" ", "") == "a,b"
        assert peer.text() == "early"
        for message in ("Hello", "", "Grüße", "x" * 70_000):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        assert peer.close() == (4001, "enough")
        peer.end()


@pytest.mark.need(23)
def test_raw_handshakes_are_the_clients_own(raw: Front, serve: Serve) -> None:
    upstream = serve(lambda visit: visit.switch(("Sec-WebSocket-Extensions", "x-odd; a=1")).echo())
    raw.serve(WebSocketProxy(upstream.url(), mode="raw"))
    with Peer(raw.port) as peer:
        answer = peer.open("/", Sec_WebSocket_Extensions=["permessage-deflate", 'x-odd; a="1"'])
        assert answer["sec-websocket-extensions"] == "x-odd; a=1"
        fields = fields_of(upstream)
        offers = [value for name, value in fields if name == "sec-websocket-extensions"]
        # WSGI joins what is repeated
        assert ", ".join(offers).replace(", ", ",") == 'permessage-deflate,x-odd; a="1"'
        assert ("sec-websocket-key", KEY) in fields
        peer.send(close())
        assert peer.close() == (1000, "")


@pytest.mark.need(23)
def test_messages_have_a_handshake_of_their_own_with_the_upstream(messages: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    messages.serve(WebSocketProxy(upstream.url()))
    with Peer(messages.port) as peer:
        peer.open("/", Sec_WebSocket_Extensions="x-odd")
        fields = fields_of(upstream)
        assert "x-odd" not in dict(fields).get("sec-websocket-extensions", "")
        keys = [value for name, value in fields if name == "sec-websocket-key"]
        assert len(keys) == 1
        assert keys != [KEY]
        peer.send(close())
        assert peer.close() == (1000, "")


@pytest.mark.need(24)
@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\5hello",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\5hello",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n\x81\5hello",
        b"SSH-2.0-OpenSSH\r\n\r\nhello",
        b"HTTP/1.1 799 Odd\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MIB,
    ],
    ids=["bare 101", "no accept", "wrong accept", "garbage", "no such status", "endless head"],
)
def test_what_is_no_answer_of_a_websocket_server_is_a_502(some: Front, serve: Serve, answer: bytes) -> None:
    gone: list[bool] = []

    def script(visit: Visit) -> None:
        with contextlib.suppress(OSError):
            visit.request().write(answer)
            visit.wait_until_gone()
        gone.append(True)

    some.serve(WebSocketProxy(serve(script).url()))
    with Peer(some.port) as peer:
        # What a client smuggles behind its request goes nowhere.
        peer.send(head() + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        got = peer.answer()
    assert got.status == 502
    assert b"hello" not in got.body
    eventually(lambda: gone, "an end of the connection to the upstream")


def test_an_upstream_that_closes_at_once_is_a_502(some: Front, serve: Serve) -> None:
    some.serve(WebSocketProxy(serve(lambda visit: None).url()))
    assert ask(some).status == 502


@pytest.mark.need(24)
def test_an_upstream_that_is_not_there_is_a_502(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    front.serve(WebSocketProxy(f"ws://127.0.0.1:{free_port()}"))
    assert ask(front).status == 502
    assert "not proxied: the upstream cannot be reached" in caplog.text
    assert errors_in(caplog.records) == []


@pytest.mark.need(24)
def test_an_upstream_that_says_nothing_is_a_504(front: Front, serve: Serve) -> None:
    gone: list[bool] = []

    def script(visit: Visit) -> None:
        visit.request().wait_until_gone()
        gone.append(True)

    front.serve(WebSocketProxy(serve(script).url(), open_timeout=0.1))
    assert ask(front).status == 504
    eventually(lambda: gone, "an end of the connection to the upstream")


REFUSALS: dict[str, bytes] = {
    "length": b"Content-Length: 9\r\n\r\n<p>No</p>",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\n<p>No\r\n4\r\n</p>\r\n0\r\n\r\n",
    "both": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n<p>No</p>\r\n0\r\n\r\n",
}


@pytest.mark.need(23)
@pytest.mark.parametrize("body", REFUSALS)
def test_a_refusal_of_the_upstreams_is_the_clients(front: Front, serve: Serve, body: str) -> None:
    fields = (
        b"WWW-Authenticate: Basic realm=x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Type: text/html\r\n"
        b"Keep-Alive: timeout=5\r\nX-Hop: 1\r\nConnection: keep-alive, X-Hop\r\n"
    )
    gone: list[bool] = []

    def script(visit: Visit) -> None:
        saying(b"HTTP/1.1 401 Unauthorized\r\n" + fields + REFUSALS[body])(visit)
        gone.append(True)

    front.serve(WebSocketProxy(serve(script).url()))
    answer = ask(front)
    assert answer.status == 401
    assert answer.body == b"<p>No</p>"
    assert answer["www-authenticate"] == "Basic realm=x"
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer["content-type"] == "text/html"
    assert not answer.all("x-hop")
    assert not answer.all("keep-alive")
    eventually(lambda: gone, "an end of the connection to the upstream")


@pytest.mark.parametrize("status", ["204 No Content", "302 Found", "304 Not Modified", "426 Upgrade Required"])
def test_refusals_of_other_kinds(some: Front, serve: Serve, status: str) -> None:
    fields = (("Location", "/login"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))

    def script(visit: Visit) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        length = "" if status.startswith(("204", "304")) else "Content-Length: 0\r\n"
        saying(f"HTTP/1.1 {status}\r\n{lines}{length}\r\n".encode())(visit)

    some.serve(WebSocketProxy(serve(script).url()))
    answer = ask(some)
    assert answer.status == int(status[:3])
    assert answer["location"] == "/login"
    assert answer["sec-websocket-version"] == "13"
    assert answer.body == b""


def test_a_refusal_that_breaks_off_is_never_taken_for_whole(some: Front, serve: Serve) -> None:
    part = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\npart"
    some.serve(WebSocketProxy(serve(lambda visit: visit.request().write(part)).url()))
    assert ask(some).status == 502


@pytest.mark.parametrize("coding", [b"Content-Length: 300000\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_a_long_refusal_that_breaks_off_is_never_taken_for_whole(raw: Front, serve: Serve, coding: bytes) -> None:
    def script(visit: Visit) -> None:
        visit.request().write(b"HTTP/1.1 401 Unauthorized\r\n" + coding + b"\r\n")
        for _ in range(100):
            part = b"x" * 1000
            visit.write(b"3e8\r\n%b\r\n" % part if b"chunked" in coding else part)
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an end that is none

    raw.serve(WebSocketProxy(serve(script).url()))
    with contextlib.suppress(h11.RemoteProtocolError, ConnectionError):  # cut off in the midst
        assert ask(raw).status == 502, "or before"


class Stuck:
    """An upstream whose refusals never end; how many of its connections are there, and how many have ended.

    Args:
        part: what it sends, again and again.
        pause: seconds in between.
    """

    def __init__(self, part: bytes, pause: float) -> None:
        self.begun = self.ended = 0
        self._part = part
        self._pause = pause

    def __call__(self, visit: Visit) -> None:
        self.begun += 1
        visit.request()
        with contextlib.suppress(OSError):
            visit.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n")
            while True:
                visit.write(self._part)
                time.sleep(self._pause)
        self.ended += 1


@pytest.mark.parametrize("part, pause", [(b"x" * 65536, 0.0), (b"x" * 1024, 0.1)], ids=["endless", "trickling"])
def test_a_refusal_that_does_not_get_on_holds_neither_side(
    raw: Front, serve: Serve, part: bytes, pause: float, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(part, pause)
    raw.serve(WebSocketProxy(serve(stuck).url(), open_timeout=0.5, close_timeout=0.5))
    # None of them reads a byte.
    peers = [Peer(raw.port, receive_buffer=8192) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.enter_context(peer).send(head())
        eventually(lambda: stuck.begun == stuck.ended == len(peers), "an end of the upstream's connections")
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                while peer.sock.recv(65536):
                    pass
    assert errors_in(caplog.records) == []


def test_without_a_socket_the_upstream_at_least_is_let_go(messages: Front, serve: Serve) -> None:
    stuck = Stuck(b"x" * 65536, 0.0)
    messages.serve(WebSocketProxy(serve(stuck).url(), open_timeout=0.5))
    with Peer(messages.port, receive_buffer=8192) as peer:
        peer.send(head())
        eventually(lambda: stuck.begun == stuck.ended == 1, "an end of the upstream's connection")


def test_an_upstream_is_read_no_faster_than_its_refusal_gets_on(raw: Front, serve: Serve) -> None:
    raw.serve(WebSocketProxy(serve(refusing("403 Forbidden", body=b"x" * MIB)).url()))
    assert ask(raw).status == 403  # all that is imported and allocated once
    stuck = Stuck(b"x" * 65536, 0.0)
    raw.serve(WebSocketProxy(serve(stuck).url(), open_timeout=1.0, close_timeout=0.5))
    sizes = [resident()]

    def ended() -> bool:
        sizes.append(resident())
        return stuck.begun == stuck.ended == 4

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Peer(raw.port, receive_buffer=8192)).send(head())
        eventually(ended, "an end of the upstream's connections")
    assert max(sizes) - sizes[0] < 16 * MIB


def resident() -> int:
    """Bytes of this process's own memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_client_that_reads_gets_no_refusal_without_an_end(raw: Front, serve: Serve) -> None:
    stuck = Stuck(b"x" * 65536, 0.0)
    raw.serve(WebSocketProxy(serve(stuck).url(), close_timeout=0.5))
    got = 0
    with Peer(raw.port) as peer:
        peer.send(head())
        with contextlib.suppress(ConnectionError):
            while data := peer.sock.recv(65536):
                got += len(data)
    assert 16 * MIB < got < 20 * MIB
    eventually(lambda: stuck.ended == 1, "an end of the upstream's connection")


def test_a_slow_client_gets_the_whole_refusal(some: Front, serve: Serve) -> None:
    body = b"x" * MIB
    some.serve(WebSocketProxy(serve(refusing("403 Forbidden", body=body)).url()))
    with Peer(some.port, receive_buffer=8192) as peer:
        peer.send(head())
        time.sleep(0.2)  # it takes its time, so that buffers on the way are full
        assert peer.refusal().body == body


def test_a_long_refusal_is_passed_on_as_it_comes(some: Front, serve: Serve) -> None:
    body = bytes(range(256)) * 2**13
    some.serve(WebSocketProxy(serve(refusing("403 Forbidden", body=body)).url()))
    assert ask(some).body == body


# --- header rules -------------------------------------------------------------------------------------------


def shared(front: Front) -> dict[str, str | list[str]]:
    return {
        "Host": f"shop.example:{front.port}",
        "Origin": f"http://shop.example:{front.port}",
        "Cookie": "session=1",
        "Authorization": "Bearer x",
        "Proxy-Authorization": "Basic eDp5",
        "Proxy-Connection": "keep-alive",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "X-Hop": "1",
        "Connection": "Upgrade, X-Hop, Sec-WebSocket-Key",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=203.0.113.9",
    }


def conversed(front: Front, upstream: Server, path: str = "/", **changes: Any) -> dict[str, str]:
    """What the upstream was told, after a whole conversation."""
    with Peer(front.port) as peer:
        peer.open(path, **changes)
        peer.send(close())
        assert peer.close() == (1000, "")
    fields = fields_of(upstream)
    assert len(dict(fields)) == len(fields), fields
    return dict(fields)


def test_the_head_that_the_upstream_gets(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(front.mounted(WebSocketProxy(upstream.url()), "/mount"))
    got = conversed(front, upstream, "/mount/x", **shared(front))
    host = f"shop.example:{front.port}"
    key = got.pop("sec-websocket-key")
    assert (key == KEY) is front.raw
    if not front.raw:
        got.pop("sec-websocket-extensions", None)
    # uvicorn trusts a proxy on this machine, and hides it
    client = "203.0.113.9" if front.asgi and "127" not in got["x-forwarded-for"] else "127.0.0.1"
    scheme = "https" if got["x-forwarded-proto"] == "https" else "http"
    assert scheme == "http" or client == "203.0.113.9"
    assert got == {
        "host": host,
        "origin": f"http://{host}",
        "cookie": "session=1",
        "authorization": "Bearer x",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "x-forwarded-for": "203.0.113.9" if client == "203.0.113.9" else f"203.0.113.9, {client}",
        "x-forwarded-proto": scheme,
        "x-forwarded-host": host,
        "x-forwarded-prefix": "/mount",
        "forwarded": f'for=203.0.113.9, for={client};proto={scheme};host="{host}"',
    }


def test_options_for_header_fields(some: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    proxy = WebSocketProxy(
        lambda asked: Upstream(upstream.url(), {"X-User": f"of {asked.path}"}),
        keep_host=False,
        headers={"Authorization": "Bearer ours", "x-user": "nobody"},
        drop_headers=("Cookie", "forwarded"),
    )
    some.serve(proxy)
    got = conversed(some, upstream, "/x", **shared(some))
    assert got["host"] == f"127.0.0.1:{upstream.port}"
    assert got["x-forwarded-host"] == f"shop.example:{some.port}"
    assert got["authorization"] == "Bearer ours"
    assert got["x-user"] == "of /x"
    assert "cookie" not in got
    assert "forwarded" not in got
    assert "x-forwarded-prefix" not in got


def test_an_address_that_somebody_made_up_stays_a_value(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = start("raw-h11"), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    # uvicorn trusts whoever is on this machine to know the client's address
    got = conversed(front, upstream, X_Forwarded_For='x";proto=https', X_Forwarded_Proto="http")
    assert got["forwarded"].startswith('for="x\\";proto=https";proto=')
    got = conversed(front, upstream, X_Forwarded_For="2001:db8::1", X_Forwarded_Proto="http")
    assert got["forwarded"].startswith('for="[2001:db8::1]";proto=')


def test_fields_that_cannot_be_written_do_not_get_anywhere(some: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(lambda asked: Upstream(upstream.url(), {"X-Tenant": f"a\r\nX-Admin: {asked.query}"})))
    assert ask(some).status == 500
    assert not upstream.heads


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret "])
def test_a_secret_that_cannot_be_written_is_told_to_nobody(
    some: Front, serve: Serve, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(lambda _: Upstream(upstream.url(), {"Authorization": token})))
    refusal = ask(some)
    assert refusal.status == 500
    assert b"s3cret" not in refusal.body
    assert "authorization" in caplog.text.lower()
    assert "s3cret" not in caplog.text
    assert not upstream.heads


def test_a_path_stays_in_its_line_of_the_log(some: Front, caplog: pytest.LogCaptureFixture) -> None:
    some.serve(WebSocketProxy("ws://127.0.0.1:1"))
    assert ask(some, path="/a%0aERROR%20forged").status == 502
    [told] = [record.getMessage() for record in caplog.records if "not proxied" in record.getMessage()]
    assert told.startswith("/a%0AERROR%20forged not proxied: ")


@pytest.mark.parametrize("field", [("X", "a\r\nb: c"), ("a b", "c")])
def test_fields_that_cannot_be_written_are_refused_at_once(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        WebSocketProxy("ws://127.0.0.1", headers=[field])


# --- paths --------------------------------------------------------------------------------------------------

# Mounted under, strip_prefix, path of the upstream's URL, path of the request, what the upstream is asked for.
PATHS: list[tuple[str, bool | str, str, str, str]] = [
    ("", True, "", "/", "/"),
    ("", True, "", "/a/b?c=d&e", "/a/b?c=d&e"),
    ("", True, "/app", "/a/b", "/app"),
    ("", True, "/app?key=1", "/a?c=d", "/app?key=1&c=d"),
    ("", "/x", "", "/x/y", "/y"),
    ("", "/x/", "", "/x", "/"),
    ("", "/x", "", "/xy", "/xy"),
    ("", "/x", "/app/", "/x/y", "/app/y"),
    ("", "/x", "/app", "/xy", "/app"),
    ("/m", True, "", "/m/a/b", "/a/b"),
    ("/m", True, "", "/m/", "/"),
    ("/m", True, "/app", "/m/a?b", "/app/a?b"),
    ("/m", False, "", "/m/a/b", "/m/a/b"),
    ("/m", False, "/app", "/m/a", "/app/m/a"),
    ("/m", True, "", "/m/a%2Fb%20c%3Fd%23e", "/a%2Fb%20c%3Fd%23e"),
    # Whoever routes by the decoded path has routed these here.
    ("/m", True, "", "/m%2Fa", "/a"),
    ("/m", True, "/app", "/m%2fa", "/app/a"),
    ("", "/m", "", "/%6d/a", "/a"),
    ("", "/m", "/app", "/%6d/a", "/app/a"),
    ("/p", True, "", "/%70/a%2Fb", "/a%2Fb"),
    ("/p", True, "/app", "/%70%2fa%2Fb/%41", "/app/a%2Fb/%41"),
    ("/p", False, "", "/%70/a%2Fb", "/%70/a%2Fb"),
    ("", "/a/b", "", "/a%2Fb/c%2fd", "/c%2fd"),
    ("", "/%C3%A9", "", "/%c3%a9/%C3%A9", "/%C3%A9"),
    ("", True, "", "/a%252Fb%2f", "/a%252Fb%2f"),
    ("/m", True, "", "/m/%E6%B0%B4?%E6%B0%B4=%FF", "/%E6%B0%B4?%E6%B0%B4=%FF"),
    ("/m", True, "", "/m//evil.example/a", "//evil.example/a"),
    ("", "/m", "", "/m/%00%0d%0aX:y?%0d%0aZ:z", "/%00%0d%0aX:y?%0d%0aZ:z"),
    ("/m", True, "", "/m/...;a=b/~(c)'*", "/...;a=b/~(c)'*"),
    ("", True, "", "/m/m?x=|\"<>{}`^'&y=%zz&z=a?b", "/m/m?x=|\"<>{}`^'&y=%zz&z=a?b"),
]


def test_paths(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    for mount, strip, base, path, expected in PATHS:
        proxy = WebSocketProxy(upstream.url(base), strip_prefix=strip)
        front.serve(front.mounted(proxy, mount) if mount else proxy)
        got = conversed(front, upstream, path)
        assert target_of(upstream) == expected, (mount, strip, base, path)
        prefix = mount if strip is True else str(strip or "").rstrip("/")
        left_out = strip is not False and not path.startswith("/xy")
        assert got.get("x-forwarded-prefix", "") == (prefix if left_out else ""), (mount, strip, base, path)


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "path",
    [
        *("/m/../admin", "/m/a/..", "/m/./a", "/m/%2e%2E/admin", "/m/.%2e%2fadmin", "/m/..\\admin", "/m/..%5cadmin"),
        *("/m/..;/admin", "/m/..;x=y/admin"),
    ],
)
def test_no_path_leads_out_of_what_the_upstream_stands_for(some: Front, serve: Serve, path: str) -> None:
    upstream = serve(echoing)
    some.serve(some.mounted(WebSocketProxy(upstream.url("/app")), "/m"))
    with Peer(some.port) as peer:
        peer.send(head(path))
        assert peer.answer().status in (400, 404)
    assert upstream.visits == 0


def test_a_request_for_another_server_goes_nowhere(front: Front, serve: Serve) -> None:
    upstream, elsewhere = serve(echoing), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        peer.send(head(elsewhere.url("/x", scheme="http")))
        answer = peer.answer()
        # Some servers take the path out of it, as RFC 9112 section 3.2.2 would have them.
        assert answer.status == 400 or (answer.status == 101 and target_of(upstream) == "/x"), answer
    assert elsewhere.visits == 0


@pytest.mark.parametrize("path", ["/m\xff", "/m?\xff", "/m#a", "*"])
def test_bytes_that_no_target_has(front: Front, serve: Serve, path: str, caplog: pytest.LogCaptureFixture) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        peer.send(head(path))
        status = peer.answer().status
        assert status in (101, 400, 404)
    if status == 101:
        assert target_of(upstream).isascii()
        assert "#" not in target_of(upstream)
    # uvicorn's own class says so of whatever refuses by an answer
    expected = "ASGI callable returned without completing handshake."
    assert [line for line in errors_in(caplog.records) if line != expected] == []


INVALID_HOSTS = [
    "a evil",
    "evil/x?y#z",
    "a@evil",
    "evil\\x",
    "a,b",
    "[::1",
    "[::g]",
    "a:b",
    "a:1:2",
    "\xe9vil",
]


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_a_host_that_is_none_goes_nowhere(some: Front, serve: Serve, host: str) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url()))
    with Peer(some.port) as peer:
        peer.send(head(Host=host))
        assert peer.answer().status == 400
    assert upstream.visits == 0


@pytest.mark.parametrize(
    "host", ["a.example", "a.example:80", "A_b-c.example.", "127.0.0.1:1", "[::1]:8080", "a:", "%41"]
)
def test_a_host_that_is_one_goes_on_to_the_letter(some: Front, serve: Serve, host: str) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url()))
    assert conversed(some, upstream, Host=host)["host"] == host


@pytest.mark.parametrize("character", ["\0", "\v", "\x01", "\x7f"])
@pytest.mark.parametrize("name", ["X-Note", "Cookie", "Host"])
def test_a_control_character_in_a_field_is_a_400(
    raw: Front, serve: Serve, name: str, character: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(echoing)
    raw.serve(WebSocketProxy(upstream.url()))
    with Peer(raw.port) as peer:
        peer.send(head(**{name.replace("-", "_"): f"s3cret{character}b"}))
        answer = peer.answer()
    assert answer.status == 400
    assert upstream.visits == 0
    assert "s3cret" not in caplog.text or name == "Host"


# --- whom it asks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_the_application_chooses(some: Front, serve: Serve, kind: str) -> None:
    upstream, asked = serve(echoing), []

    def choose(one: ProxyRequest) -> Upstream | str | None:
        asked.append(one)
        if "refuse" in one.query:
            raise HandshakeError("not for you", status=403, headers=[("X-Why", "no")])
        if one.headers.get("cookie") != "session=1":
            return None
        return Upstream(upstream.url()) if one.path.endswith("b") else upstream.url()

    async def choose_later(one: ProxyRequest) -> Upstream | str | None:
        return choose(one)

    proxy = WebSocketProxy(choose if kind == "plain" else choose_later)
    some.serve(some.mounted(proxy, "/m"))
    for path in ("/m/a", "/m/b"):
        conversed(some, upstream, path, Cookie="session=1")
        assert target_of(upstream) == path.removeprefix("/m")
    assert ask(some, path="/m/a").status == 404
    refused = ask(some, path="/m/a?refuse=1")
    assert refused.status == 403
    assert refused.body == b"not for you\n"
    assert refused["x-why"] == "no"
    assert upstream.visits == 2
    one = asked[0]
    assert (one.path, one.prefix, one.query, one.secure, one.client) == ("/m/a", "/m", "", False, "127.0.0.1")
    assert one.upgrade.target == "/m/a"
    assert (one.scope is not None) is some.asgi is (one.environ is None)


def test_a_choice_that_fails_is_a_500(some: Front, caplog: pytest.LogCaptureFixture) -> None:
    def choose(_: ProxyRequest) -> str:
        raise KeyError("tenant")

    some.serve(WebSocketProxy(choose))
    with Peer(some.port) as peer:
        peer.send(head())
        assert peer.answer().status == 500
    eventually(lambda: "tenant" in caplog.text, "a traceback in the server's log")
    if isinstance(some, WSGIFront):
        some.werkzeug.log.clear()


@pytest.mark.parametrize("url", [f"ws://{'a' * 70}.example", "ws://a..b/"])
def test_a_choice_that_is_no_host_is_a_502(some: Front, url: str, caplog: pytest.LogCaptureFixture) -> None:
    some.serve(WebSocketProxy(lambda _: url))
    assert ask(some).status == 502
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize(
    "upstream",
    ["127.0.0.1:80", "ftp://127.0.0.1", "unix:relative", "ws://", "ws://127.0.0.1/#a", "ws://me:secret@127.0.0.1", ""],
)
def test_what_is_no_upstream(upstream: str) -> None:
    for make in (WebSocketProxy, Upstream):
        with pytest.raises(ValueError, match=r"^expected") as caught:
            make(upstream)
        assert "secret" not in str(caught.value)


def test_what_is_no_option() -> None:
    for name in ("open_timeout", "close_timeout", "idle_timeout", "max_duration", "max_bytes"):
        for value in (0, -1, "1", True):
            with pytest.raises(ValueError, match=f"^expected {name} above 0"):
                WebSocketProxy("ws://127.0.0.1", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^expected mode to be one of auto, raw, messages"):
        WebSocketProxy("ws://127.0.0.1", mode="bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^expected upstream as a URL"):
        WebSocketProxy(80)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^expected ssl to be"):
        WebSocketProxy("ws://127.0.0.1", ssl=True)  # type: ignore[arg-type]


# --- whom it lets in ----------------------------------------------------------------------------------------


def test_a_page_request_is_a_426(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    assert ask(front, data=b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status == 426
    assert upstream.visits == 0


def test_one_connection_too_many_is_a_503(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url(), max_connections=1))
    with Peer(front.port) as peer:
        peer.open()
        refused = ask(front)
        assert refused.status == 503
        assert refused["retry-after"] == "1"
        peer.send(close())
        assert peer.close() == (1000, "")
    assert upstream.visits == 1

    def admitted() -> bool:
        with Peer(front.port) as another:
            another.send(head())
            return another.answer().status == 101

    eventually(admitted, "a place that has been given back")
    front.serve(WebSocketProxy(f"ws://127.0.0.1:{free_port()}", max_connections=1))
    assert [ask(front).status for _ in range(3)] == [502] * 3


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec-WebSocket-Version": "777"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
    ],
)
def test_what_the_upstream_never_hears_of(some: Front, serve: Serve, changes: dict[str, str], status: int) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url(), origins=["https://friend.example"]))
    with Peer(some.port) as peer:
        peer.send(head(**changes) + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status in (status, 400)
    assert upstream.visits == 0
    conversed(some, upstream, Origin="https://friend.example")


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize("field", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
def test_a_request_with_a_body_goes_nowhere(raw: Front, serve: Serve, field: dict[str, str]) -> None:
    upstream = serve(echoing)
    raw.serve(WebSocketProxy(upstream.url()))
    with Peer(raw.port) as peer:
        peer.send(head(**field) + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status == 400
    assert upstream.visits == 0


@pytest.mark.advisory("upgrade smuggling")
def test_nothing_of_the_client_follows_a_refusal_to_the_upstream(some: Front, serve: Serve) -> None:
    behind: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.answer("426 Upgrade Required", ("Connection", "keep-alive"))
        behind.append(visit.sock.recv(2**16))

    some.serve(WebSocketProxy(serve(script).url()))
    with Peer(some.port) as peer:
        peer.send(head() + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status == 426
    eventually(lambda: behind == [b""], "an end of the upstream's stream")


# --- behind the application's own authentication ------------------------------------------------------------


class _Backend:
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        if conn.headers.get("authorization") != "Bearer right":
            return None
        return AuthCredentials(["authenticated"]), SimpleUser("ann")


@pytest.mark.parametrize("around", ["nothing", "our middleware"])
@pytest.mark.parametrize("name", ["raw-h11", "uvicorn-own", "hypercorn"])
def test_behind_starlettes_authentication(
    start: Callable[[str], Front], serve: Serve, name: str, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    front, upstream = start(name), serve(echoing)
    proxy = WebSocketProxy(
        lambda asked: Upstream(upstream.url(), {"X-User": asked.scope["user"].username if asked.scope else ""})
    )

    class Guarded:
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self._all = (scope, receive, send)

        def __await__(self) -> Any:
            return self._serve().__await__()

        async def _serve(self) -> None:
            scope, receive, send = self._all
            if not scope["user"].is_authenticated:
                await send({"type": "websocket.close", "code": 1008})
                return
            await proxy(scope, receive, send)

    app: Any = Starlette(
        routes=[WebSocketRoute("/{rest:path}", Guarded)],
        middleware=[Middleware(AuthenticationMiddleware, backend=_Backend())],  # type: ignore[arg-type]
    )
    if around == "our middleware":
        app = WatershedASGI(app, origins=["https://friend.example"])
    front.serve(app)
    assert ask(front, path="/x").status == 403
    assert upstream.visits == 0
    changes = {"Origin": "https://friend.example"} if around == "our middleware" else {}
    got = conversed(front, upstream, "/x", Authorization="Bearer right", **changes)
    assert got["x-user"] == "ann"
    assert ask(front, path="/x", Authorization="Bearer right", Origin="http://other.example").status == 403
    # uvicorn's own class says so of whoever refuses by an answer
    expected = "ASGI callable returned without completing handshake."
    assert [line for line in errors_in(caplog.records) if line != expected] == []


@pytest.mark.parametrize("around", ["nothing", "our middleware"])
def test_inside_of_a_flask_view(
    start: Callable[[str], Front], serve: Serve, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    front, upstream = start("wsgi"), serve(echoing)
    refusing_one = serve(refusing("401 Unauthorized", ("X-Why", "no"), body=b"upstream's word"))
    proxy, refused = WebSocketProxy(upstream.url(), strip_prefix="/tool"), WebSocketProxy(refusing_one.url())
    app = Flask(__name__)

    @app.route("/tool/<path:rest>", websocket=True)
    def tool(rest: str) -> ResponseReturnValue:
        if request.headers.get("authorization") != "Bearer right":
            abort(401)
        return proxy if rest != "refused" else refused

    if around == "our middleware":
        app.wsgi_app = WatershedWSGI(app.wsgi_app)  # type: ignore[method-assign]
    front.serve(app)
    assert ask(front, path="/tool/x").status == 401
    conversed(front, upstream, "/tool/x", Authorization="Bearer right")
    assert target_of(upstream) == "/x"
    answer = ask(front, path="/tool/refused", Authorization="Bearer right")
    assert (answer.status, answer["x-why"], answer.body) == (401, "no", b"upstream's word")
    foreign = ask(front, path="/tool/x", Authorization="Bearer right", Origin="http://other.example")
    assert foreign.status == 403
    assert errors_in(caplog.records) == []
    assert isinstance(front, WSGIFront)
    assert front.werkzeug.troubles == []


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.need(25)
def test_bytes_pass_as_they_are(raw: Front, serve: Serve) -> None:
    """No frame is looked into: reserved bits, masks and lengths are between the peers."""
    odd = b"\xff\x03abc" + b"\x81\xfe\0\5\1\2\3\4hello" + bytes(range(256))
    got: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.switch(then=odd)
        data = b""
        while chunk := visit.sock.recv(2**16):
            data += chunk
        got.append(data)
        visit.write(odd)  # the other half of the stream is still there

    raw.serve(WebSocketProxy(serve(script).url(), max_message_size=10))
    with Peer(raw.port) as peer:
        peer.open_with(head() + odd)
        peer.send(odd)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.rest() == odd * 2
    assert got == [odd * 2]


@pytest.mark.need(25)
def test_no_message_is_too_long_for_raw_bytes(raw: Front, serve: Serve) -> None:
    message = bytes(20 * MIB)
    frame = b"\x82\x7f" + len(message).to_bytes(8, "big") + message

    def script(visit: Visit) -> None:
        visit.switch().write(frame)
        visit.expect_close(1000)
        visit.send_close(1000)

    raw.serve(WebSocketProxy(serve(script).url(), max_message_size=10))
    with Peer(raw.port) as peer:
        peer.open()
        got = peer.frame()
        assert len(got.data) == len(message)
        peer.send(close())
        assert peer.close() == (1000, "")
        peer.end()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("name", ["raw-h11", "uvicorn-own", "hypercorn"])
def test_a_message_that_is_too_long(start: Callable[[str], Front], serve: Serve, name: str, direction: str) -> None:
    front, told = start(name), list[int]()

    def script(visit: Visit) -> None:
        visit.switch()
        if direction == "down":
            visit.send(TEXT, "x" * 101)
        frame = visit.read()
        told.append(int.from_bytes(frame.payload[:2], "big"))

    front.serve(WebSocketProxy(serve(script).url(), mode="messages", max_message_size=100, close_timeout=0.5))
    with Peer(front.port) as peer:
        peer.open()
        if direction == "up":
            peer.send(text("x" * 101))
        assert peer.close()[0] == 1009
        peer.send(close(1009))
    assert eventually(lambda: told) == [1009]


@pytest.mark.parametrize(
    "limit, code", [({"idle_timeout": 0.1}, 1001), ({"max_duration": 0.1}, 1001), ({"max_bytes": 100}, 1008)]
)
def test_limits(some: Front, serve: Serve, limit: dict[str, Any], code: int) -> None:
    told: list[int] = []

    def script(visit: Visit) -> None:
        visit.switch()
        while (frame := visit.read()).opcode != CLOSE:
            visit.send(frame.opcode, frame.payload)
        told.append(int.from_bytes(frame.payload[:2], "big"))
        visit.send_close(told[0])

    some.serve(WebSocketProxy(serve(script).url(), **limit))
    with Peer(some.port) as peer:
        peer.open()
        if "max_bytes" in limit:
            peer.send(text("x" * 40))
            assert peer.text() == "x" * 40
            peer.send(text("x" * 40))
        frame = peer.frame()
        assert frame.opcode is Opcode.CLOSE
        assert int.from_bytes(bytes(frame.data)[:2], "big") == code
        peer.send(close(code))
        peer.end()
    assert eventually(lambda: told) == [code]


@pytest.mark.parametrize("name, mode", [("raw-httptools", "raw"), ("wsgi", "raw"), ("raw-h11", "messages")])
def test_peers_that_never_answer_a_close(start: Callable[[str], Front], serve: Serve, name: str, mode: Mode) -> None:
    front, gone = start(name), list[float]()

    def script(visit: Visit) -> None:
        visit.switch().expect_close(1001)
        visit.wait_until_gone()
        gone.append(time.monotonic())

    front.serve(WebSocketProxy(serve(script).url(), mode=mode, idle_timeout=0.1, close_timeout=0.2))
    with Peer(front.port) as peer:
        peer.open()
        begun = time.monotonic()
        assert peer.close()[0] == 1001
        peer.end()
        assert time.monotonic() - begun < LIMIT / 2
    assert eventually(lambda: gone)[0] - begun < LIMIT / 2


# --- messages -----------------------------------------------------------------------------------------------


@pytest.mark.need(24)
@pytest.mark.parametrize("code", [None, 1000, 1001, 1011, 3000, 4999])
def test_close_codes_of_the_upstream_are_carried_over(front: Front, serve: Serve, code: int | None) -> None:
    reason = "" if code is None else "enough, Grüße"

    def script(visit: Visit) -> None:
        visit.switch().send_close(code, reason)
        assert visit.read().opcode == CLOSE

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        # ASGI has no word for a Close without a code
        assert peer.close() == (code if front.raw or code else 1000, reason)
        peer.send(close() if code is None else close(code))
        peer.end()


@pytest.mark.need(24)
@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_close_codes_of_the_client_are_carried_over(front: Front, serve: Serve, code: int) -> None:
    told: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.switch()
        told.append(visit.read().payload)
        visit.send_close(code)

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        peer.send(close(code, "enough"))
        assert peer.close()[0] == code
    # hypercorn says 1006 of every end
    assert eventually(lambda: told)[0][:2] == (code if front.codes else 1001).to_bytes(2, "big")


@pytest.mark.need(24)
def test_an_upstream_that_vanishes(front: Front, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.switch().send(TEXT, "last words")

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        assert peer.text() == "last words"
        if front.raw:
            assert peer.rest() == b""
        else:
            assert peer.close()[0] == 1014


@pytest.mark.need(24)
def test_a_client_that_vanishes(front: Front, serve: Serve) -> None:
    told: list[object] = []

    def script(visit: Visit) -> None:
        visit.switch().send(TEXT, "hello")
        try:
            frame = visit.read()
        except (EOFError, OSError):
            told.append("vanished")
        else:
            told.append(int.from_bytes(frame.payload[:2], "big"))

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        assert peer.text() == "hello"
        peer.vanish()
    # 1005, so a Close without a code, is uvicorn's own word for it.
    assert eventually(lambda: told) in ([["vanished"]] if front.raw else [[1001], [0]])


@pytest.mark.need(24)
def test_pings_are_answered(front: Front, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.switch().send(PING, b"up")
        while (frame := visit.read()).opcode != PONG:
            assert frame.opcode == PING
        assert frame.payload == b"up"
        visit.send(TEXT, "alive")
        while (frame := visit.read()).opcode != CLOSE:
            visit.send(PONG, frame.payload)
        visit.send_close(1000)

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        frame = peer.frame()
        if front.raw:
            assert (frame.opcode, bytes(frame.data)) == (Opcode.PING, b"up")
            peer.send(b"\x8a\x82\0\0\0\0up")
            frame = peer.frame()
        assert (frame.opcode, bytes(frame.data)) == (Opcode.TEXT, b"alive")
        peer.send(ping(b"down"))
        frame = peer.frame()
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"down")
        peer.send(close())
        assert peer.close() == (1000, "")


@pytest.mark.need(25)
def test_where_there_is_a_socket_messages_are_relayed_if_asked_for(raw: Front, serve: Serve) -> None:
    if not raw.asgi:
        return  # no WSGI server has anything but its socket
    pinged: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.switch().send(PING, b"up")
        while (frame := visit.read()).opcode != CLOSE:
            if frame.opcode == PING:
                pinged.append(frame.payload)
                visit.send(PONG, frame.payload)
        visit.send_close(1000)

    raw.serve(WebSocketProxy(serve(script).url(), mode="messages"))
    with Peer(raw.port) as peer:
        peer.open()
        frame = peer.frame()
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PING, b"up")
        peer.send(ping(b"down"))
        frame = peer.frame()
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"down")
        eventually(lambda: pinged == [b"down"], "the client's PING")
        peer.send(close())
        assert peer.close() == (1000, "")


@pytest.mark.parametrize("name", ["raw-h11", "raw-httptools"])
def test_pings_do_not_pile_up(start: Callable[[str], Front], serve: Serve, name: str) -> None:
    front = start(name)

    def script(visit: Visit) -> None:
        visit.switch().expect(PING, b"0")
        visit.expect(TEXT, "that was all")
        visit.send(PONG, b"0")
        visit.expect(PING, b"39999")
        visit.send(TEXT, "and no more")
        visit.answer_close()

    front.serve(WebSocketProxy(serve(script).url(), mode="messages"))
    with Peer(front.port) as peer:
        peer.open()
        peer.send(b"".join(ping(str(number).encode()) for number in range(40_000)) + text("that was all"))
        while (frame := peer.frame()).opcode is Opcode.PONG:
            pass
        assert bytes(frame.data) == b"and no more"
        peer.send(close())
        assert peer.close() == (1000, "")


@pytest.mark.parametrize("name", ["raw-h11", "uvicorn-own", "hypercorn"])
def test_an_upstream_that_refuses_the_proxys_own_offer_gets_a_plain_one(
    start: Callable[[str], Front], serve: Serve, name: str
) -> None:
    front = start(name)

    def script(visit: Visit) -> None:
        if "max_window_bits" in (visit.request().field("sec-websocket-extensions") or ""):
            visit.answer("400 Bad Request")
        else:
            visit.write(response_head(visit.field("sec-websocket-key") or ""))
            visit.echo()

    upstream = serve(script)
    front.serve(WebSocketProxy(upstream.url(), mode="messages"))
    with Peer(front.port) as peer:
        peer.open()
        peer.send(text("through"))
        assert peer.text() == "through"
        peer.send(close())
    assert fields_of(upstream).count(("sec-websocket-extensions", "permessage-deflate")) == 1
    assert upstream.visits == 2


@pytest.mark.parametrize("name", ["raw-h11", "raw-httptools", "wsgi", "hypercorn"])
def test_an_upstream_of_which_one_address_does_not_answer(
    start: Callable[[str], Front], serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    front, upstream = start(name), serve(echoing)
    with silent_address() as hole:
        addresses = [hole, (socket.AF_INET, ("127.0.0.1", upstream.port))]

        async def resolve(host: str, port: int) -> Any:
            return addresses

        monkeypatch.setattr(streams, "resolve", resolve)
        front.serve(WebSocketProxy("ws://many.test", open_timeout=LIMIT))
        with Peer(front.port) as peer:
            peer.open()
            peer.send(text("through"))
            assert peer.text() == "through"
            peer.send(close())


def test_raw_bytes_or_nothing(messages: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    messages.serve(WebSocketProxy(upstream.url(), mode="raw"))
    answer = ask(messages)
    assert answer.status == 501
    assert b"raw sockets" in answer.body
    assert upstream.visits == 0


@pytest.fixture
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event loop passes for Windows' default, which has no ``add_reader()``."""
    monkeypatch.setattr(asyncio, "ProactorEventLoop", asyncio.AbstractEventLoop, raising=False)


@pytest.mark.usefixtures("no_readers")
def test_messages_where_the_event_loop_cannot_wait_for_sockets(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = start("raw-h11"), serve(echoing)
    front.serve(WebSocketProxy(upstream.url(), mode="raw"))
    assert ask(front).status == 501
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        peer.open_with(head())
        peer.send(text("as a message"))
        assert peer.text() == "as a message"
        peer.send(close())
        assert peer.close() == (1000, "")
    assert not live_relays()


@pytest.mark.usefixtures("no_readers")
def test_under_wsgi_such_a_loop_is_a_501(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = start("wsgi"), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    answer = ask(front)
    assert answer.status == 501
    assert b"ASGI" in answer.body
    assert upstream.visits == 0


def test_a_platform_without_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ValueError, match="no Unix sockets"):
        WebSocketProxy("unix:/run/of/nowhere.sock")


@pytest.mark.need(25)
def test_the_log_says_how(front: Front, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "watershed_mw.proxy")
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url("/app?token=secret")))
    for _ in range(2):
        conversed(front, upstream, "/x?token=secret")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "watershed_mw.proxy"]

    way = "raw bytes" if front.raw else "messages"
    eventually(lambda: len([line for line in said() if "relayed to" in line]) == 2, "two ends in the log")
    assert len([line for line in said() if line.startswith(f"the proxy relays {way}")]) == 1
    assert len([line for line in said() if line.endswith(f"relays to {upstream.url('/app')} ({way})")]) == 2
    assert not [line for line in said() if "secret" in line]


def test_where_there_is_no_asyncio(serve: Serve) -> None:
    upstream = serve(echoing)
    with Hypercorn("trio") as server:
        server.run(WebSocketProxy(upstream.url()))
        with Peer(server.port) as peer:
            peer.send(head())
            answer = peer.answer()
    assert answer.status == 501
    assert b"needs asyncio" in answer.body
    assert upstream.visits == 0


def test_a_client_that_speaks_http_2(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = (
        start("hypercorn"),
        serve(lambda visit: visit.switch(("Sec-WebSocket-Protocol", "chat.v1")).echo()),
    )
    front.serve(front.mounted(WebSocketProxy(upstream.url()), "/m"))
    with socket.create_connection(("127.0.0.1", front.port), LIMIT) as sock:
        stream = Stream(sock, front.port, "/m/x?y")
        assert (stream.answer[b":status"], stream.answer[b"sec-websocket-protocol"]) == (b"200", b"chat.v1")
        stream.send(text("hi"))
        stream.receive(b"\x81\x02hi")
        stream.send(close(1000))
        stream.receive(b"\x88\x02\x03\xe8")
    fields = dict(fields_of(upstream))
    assert target_of(upstream) == "/x?y"
    assert fields["host"] == f"127.0.0.1:{front.port}"
    assert fields["sec-websocket-version"] == "13"
    assert not [name for name in fields if name.startswith(":")]


# --- TLS and unix sockets -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_an_upstream_with_tls(some: Front, serve: Serve, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    upstream = serve(echoing, tls=server_tls)
    assert upstream.url().startswith("wss://")
    some.serve(WebSocketProxy(upstream.url()))
    assert ask(some).status == 502  # nobody has vouched for its certificate
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    some.serve(WebSocketProxy(upstream.url(), ssl=trusting))
    with Peer(some.port) as peer:
        peer.open()
        for message in ("Hello", "x" * 2**18):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        assert peer.close() == (4001, "enough")


@pytest.mark.parametrize("inner", ["plain", "tls"])
def test_a_client_with_tls(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, serve: Serve, inner: str, server_tls: ssl.SSLContext,
    authority: trustme.CA,
) -> None:  # fmt: skip
    upstream = serve(echoing, tls=server_tls if inner == "tls" else None)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls_uvicorns.run(WebSocketProxy(upstream.url(), mode="raw", ssl=trusting))
    with Peer(tls_uvicorns.port, tls=client_tls) as peer:
        peer.open()
        assert dict(fields_of(upstream))["x-forwarded-proto"] == "https"
        for message in ("Hello", "x" * 2**20):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        assert peer.close() == (4001, "enough")
        peer.end()


def test_an_upstream_on_a_unix_socket(some: Front, serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "upstream"
    upstream = serve(echoing, unix=place)
    some.serve(WebSocketProxy(f"unix:{place}", keep_host=False))
    got = conversed(some, upstream, "/x?y")
    assert target_of(upstream) == "/x?y"
    assert got["host"] == "localhost"
    some.serve(WebSocketProxy(f"unix:{tmp_path}/nobody"))
    assert ask(some).status == 502


def test_an_application_of_its_own(start: Callable[[str], Front], serve: Serve) -> None:
    """The proxy alone, lifespan included."""
    upstream = serve(echoing)
    with Uvicorn(WebSocketProxy(upstream.url()), lifespan="on") as server, Peer(server.port) as peer:
        peer.open()
        peer.send(close())
        assert peer.close() == (1000, "")
    with pytest.raises(TypeError, match=r"^expected"):
        WebSocketProxy("ws://127.0.0.1")(1, 2, 3, 4)
