"""The opening handshake runs end to end, and so does any other response of the upstream."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import struct
import time
from pathlib import Path

import h11
import pytest

from tests.support.peers import KEY, Peer, close, head, text
from tests.support.programs import free_port
from tests.support.proxy_fronts import Front, Serve, ask, fields_of, refusing, saying
from tests.support.scripted import Visit, echoing
from tests.support.threaded_servers import errors_in
from tests.support.waiting import eventually
from watershed_mw.proxy import WebSocketProxy

MIB = 2**20


@pytest.mark.need(23)
def test_the_upstream_negotiates_and_messages_pass(front: Front, serve: Serve) -> None:
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
def test_raw_mode_forwards_the_clients_handshake(raw: Front, serve: Serve) -> None:
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
def test_message_mode_has_its_own_handshake_with_the_upstream(messages: Front, serve: Serve) -> None:
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
def test_an_answer_that_is_not_websocket_is_a_502(some: Front, serve: Serve, answer: bytes) -> None:
    gone: list[bool] = []

    def script(visit: Visit) -> None:
        with contextlib.suppress(OSError):
            visit.request().write(answer)
            visit.wait_until_gone()
        gone.append(True)

    some.serve(WebSocketProxy(serve(script).url()))
    with Peer(some.port) as peer:
        # Bytes that a client smuggles behind its request are not forwarded.
        peer.send(head() + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        got = peer.answer()
    assert got.status == 502
    assert b"hello" not in got.body
    eventually(lambda: gone, "an end of the connection to the upstream")


def test_an_upstream_that_closes_immediately_is_a_502(some: Front, serve: Serve) -> None:
    some.serve(WebSocketProxy(serve(lambda visit: None).url()))
    assert ask(some).status == 502


@pytest.mark.need(24)
def test_an_unreachable_upstream_is_a_502(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    front.serve(WebSocketProxy(f"ws://127.0.0.1:{free_port()}"))
    assert ask(front).status == 502
    assert "not proxied: the upstream cannot be reached" in caplog.text
    assert errors_in(caplog.records) == []


@pytest.mark.need(24)
def test_a_silent_upstream_is_a_504(front: Front, serve: Serve) -> None:
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
def test_the_upstreams_refusal_reaches_the_client(front: Front, serve: Serve, body: str) -> None:
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
def test_refusals_of_every_status_reach_the_client(some: Front, serve: Serve, status: str) -> None:
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


def test_a_truncated_refusal_never_looks_complete(some: Front, serve: Serve) -> None:
    part = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\npart"
    some.serve(WebSocketProxy(serve(lambda visit: visit.request().write(part)).url()))
    assert ask(some).status == 502


@pytest.mark.parametrize("coding", [b"Content-Length: 300000\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_a_long_truncated_refusal_never_looks_complete(raw: Front, serve: Serve, coding: bytes) -> None:
    def script(visit: Visit) -> None:
        visit.request().write(b"HTTP/1.1 401 Unauthorized\r\n" + coding + b"\r\n")
        for _ in range(100):
            part = b"x" * 1000
            visit.write(b"3e8\r\n%b\r\n" % part if b"chunked" in coding else part)
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an end that is none

    raw.serve(WebSocketProxy(serve(script).url()))
    with contextlib.suppress(h11.RemoteProtocolError, ConnectionError):  # cut off in the middle
        assert ask(raw).status == 502, "or before"


class Stuck:
    """An upstream whose refusals never end: how many of its connections there are, how many have ended, bytes sent.

    Args:
        part: what it sends, again and again.
        pause: seconds in between.
    """

    def __init__(self, part: bytes, pause: float) -> None:
        self.begun = self.ended = self.sent = 0
        self._part = part
        self._pause = pause

    def __call__(self, visit: Visit) -> None:
        self.begun += 1
        visit.request()
        with contextlib.suppress(OSError):
            visit.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n")
            while True:
                visit.write(self._part)
                self.sent += len(self._part)
                time.sleep(self._pause)
        self.ended += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, pause, open_timeout",
    [
        # Long enough for a busy machine to get as far as the refusal: before that, the timeout would be a 504.
        (b"x" * 65536, 0.0, 3.0),
        (b"x" * 1024, 0.1, 0.5),
    ],
    ids=["endless", "trickling"],
)
def test_a_stalled_refusal_releases_both_sides(
    raw: Front, serve: Serve, part: bytes, pause: float, open_timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(part, pause)
    raw.serve(WebSocketProxy(serve(stuck).url(), open_timeout=open_timeout, close_timeout=0.5))
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


@pytest.mark.slow
def test_without_a_socket_a_stalled_refusal_releases_the_upstream(messages: Front, serve: Serve) -> None:
    stuck = Stuck(b"x" * 65536, 0.0)
    messages.serve(WebSocketProxy(serve(stuck).url(), open_timeout=3.0))
    with Peer(messages.port, receive_buffer=8192) as peer:
        peer.send(head())
        eventually(lambda: stuck.begun == stuck.ended == 1, "an end of the upstream's connection")


@pytest.mark.slow
def test_a_refusal_is_read_no_faster_than_it_is_passed_on(raw: Front, serve: Serve) -> None:
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
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_an_endless_refusal_is_aborted_even_if_the_client_reads(raw: Front, serve: Serve) -> None:
    stuck = Stuck(b"x" * 65536, 0.0)
    raw.serve(WebSocketProxy(serve(stuck).url(), close_timeout=0.5))
    got = 0
    with Peer(raw.port) as peer:
        peer.send(head())
        with contextlib.suppress(ConnectionError):
            while data := peer.sock.recv(65536):
                got += len(data)
    assert 0 < got < 20 * MIB
    eventually(lambda: stuck.ended == 1, "an end of the upstream's connection")
    # Count what the upstream has sent, because a reset discards bytes in transit to the client.
    assert stuck.sent > 16 * MIB


def test_a_slow_client_gets_the_complete_refusal(some: Front, serve: Serve) -> None:
    body = b"x" * MIB
    some.serve(WebSocketProxy(serve(refusing("403 Forbidden", body=body)).url()))
    with Peer(some.port, receive_buffer=8192) as peer:
        peer.send(head())
        time.sleep(0.2)  # it takes its time, so that buffers on the way are full
        assert peer.refusal().body == body


def test_a_long_refusal_is_passed_on_as_it_arrives(some: Front, serve: Serve) -> None:
    body = bytes(range(256)) * 2**13
    some.serve(WebSocketProxy(serve(refusing("403 Forbidden", body=body)).url()))
    assert ask(some).body == body
