"""Bytes and messages between client and upstream, limits, and the end on both sides."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.frames import Opcode

from tests.support import LIMIT, SOON
from tests.support.http2_stream import Stream
from tests.support.peers import Peer, close, head, ping, text
from tests.support.portable_servers import Hypercorn
from tests.support.proxy_fronts import (
    Front,
    Serve,
    ask,
    conversed,
    fields_of,
    target_of,
)
from tests.support.scripted import Visit, echoing, silent_address
from tests.support.waiting import eventually
from tests.support.wire_peer import CLOSE, PING, PONG, TEXT, response_head
from watershed_mw.client import happy_eyeballs
from watershed_mw.proxy import WebSocketProxy, live_relays
from watershed_mw.proxy.config import Mode

MIB = 2**20


# --- bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.need(25)
def test_bytes_pass_unchanged(raw: Front, serve: Serve) -> None:
    """Frames are not inspected: reserved bits, masks and lengths are between the peers."""
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
def test_no_message_is_too_long_for_raw_mode(raw: Front, serve: Serve) -> None:
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
def test_a_message_that_is_too_long_closes_with_1009(
    start: Callable[[str], Front], serve: Serve, name: str, direction: str
) -> None:
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
def test_limits_end_both_sides(some: Front, serve: Serve, limit: dict[str, Any], code: int) -> None:
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
def test_peers_that_never_answer_a_close_are_dropped(
    start: Callable[[str], Front], serve: Serve, name: str, mode: Mode
) -> None:
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
        assert time.monotonic() - begun < SOON
    assert eventually(lambda: gone)[0] - begun < SOON


# --- messages ------------------------------------------------------------------------------------------------


@pytest.mark.need(24)
@pytest.mark.parametrize("code", [None, 1000, 1001, 1011, 3000, 4999])
def test_close_codes_of_the_upstream_reach_the_client(front: Front, serve: Serve, code: int | None) -> None:
    reason = "" if code is None else "enough, Grüße"

    def script(visit: Visit) -> None:
        visit.switch().send_close(code, reason)
        assert visit.read().opcode == CLOSE

    front.serve(WebSocketProxy(serve(script).url()))
    with Peer(front.port) as peer:
        peer.open()
        # ASGI cannot express a Close without a code
        assert peer.close() == (code if front.raw or code else 1000, reason)
        peer.send(close() if code is None else close(code))
        peer.end()


@pytest.mark.need(24)
@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_close_codes_of_the_client_reach_the_upstream(front: Front, serve: Serve, code: int) -> None:
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
    # hypercorn reports every end as 1006
    assert eventually(lambda: told)[0][:2] == (code if front.codes else 1001).to_bytes(2, "big")


@pytest.mark.need(24)
def test_an_upstream_that_vanishes_ends_the_client(front: Front, serve: Serve) -> None:
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
def test_a_client_that_vanishes_ends_the_upstream(front: Front, serve: Serve) -> None:
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
    # uvicorn reports it as 1005, a Close without a code.
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
def test_mode_messages_relays_messages_even_with_a_socket(raw: Front, serve: Serve) -> None:
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
def test_pings_do_not_accumulate(start: Callable[[str], Front], serve: Serve, name: str) -> None:
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
def test_an_upstream_that_refuses_the_proxys_offer_gets_a_plain_one(
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
def test_an_upstream_with_an_unresponsive_address_is_reached(
    start: Callable[[str], Front], serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    front, upstream = start(name), serve(echoing)
    with silent_address() as hole:
        addresses = [hole, (socket.AF_INET, ("127.0.0.1", upstream.port))]

        async def resolve(host: str, port: int) -> Any:
            return addresses

        monkeypatch.setattr(happy_eyeballs, "resolve", resolve)
        front.serve(WebSocketProxy("ws://many.test", open_timeout=LIMIT))
        with Peer(front.port) as peer:
            peer.open()
            peer.send(text("through"))
            assert peer.text() == "through"
            peer.send(close())


def test_mode_raw_refuses_where_it_cannot_relay_bytes(messages: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    messages.serve(WebSocketProxy(upstream.url(), mode="raw"))
    answer = ask(messages)
    assert answer.status == 501
    assert b"raw sockets" in answer.body
    assert upstream.visits == 0


@pytest.mark.usefixtures("no_readers")
def test_a_loop_without_add_reader_relays_messages(start: Callable[[str], Front], serve: Serve) -> None:
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
def test_under_wsgi_a_loop_without_add_reader_is_a_501(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = start("wsgi"), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    answer = ask(front)
    assert answer.status == 501
    assert b"ASGI" in answer.body
    assert upstream.visits == 0


def test_a_platform_without_unix_sockets_refuses_unix_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ValueError, match="without Unix sockets"):
        WebSocketProxy("unix:/run/of/nowhere.sock")


@pytest.mark.need(25)
def test_the_log_states_the_mode(front: Front, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
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


def test_on_trio_the_client_gets_a_501(serve: Serve) -> None:
    upstream = serve(echoing)
    with Hypercorn("trio") as server:
        server.run(WebSocketProxy(upstream.url()))
        with Peer(server.port) as peer:
            peer.send(head())
            answer = peer.answer()
    assert answer.status == 501
    assert b"needs asyncio" in answer.body
    assert upstream.visits == 0


def test_a_client_may_use_http_2(start: Callable[[str], Front], serve: Serve) -> None:
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
