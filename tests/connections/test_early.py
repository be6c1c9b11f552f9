"""Bytes in the same segment as the opening handshake: wherever they were read, none is lost or delivered twice."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.conftest import LoopErrors
from tests.support import LIMIT
from tests.support.waiting import in_thread
from tests.support.ways import CLIENT, EACH, SERVER, Link, Opener, Way
from tests.support.wire_peer import (
    BINARY,
    CLOSE,
    HANDSHAKE_KEY,
    PING,
    PONG,
    TEXT,
    WirePeer,
    close_payload,
    request_head,
    response_head,
    tcp_pair,
)
from watershed_mw import ConnectionClosed, Watershed

MIB = 2**20
pulling = pytest.mark.parametrize("way", [way for way in EACH if way.pulls], ids=str)


def early_messages(peer: WirePeer) -> bytes:
    return b"".join(peer.frame(TEXT, str(number)) for number in range(20)) + peer.frame(PING, b"early")


@pulling
def test_early_messages_can_be_pulled(link: Link) -> None:
    live, peer = link(early=early_messages)
    assert [live.receive() for _ in range(20)] == [str(number) for number in range(20)]
    peer.send(TEXT, "later")
    assert live.receive() == "later"
    peer.expect(PONG, b"early")


def test_early_messages_are_pushed_to_handlers_registered_after_accept(link: Link) -> None:
    live, peer = link(early=early_messages, record=("text", "ping"))
    live.run()
    peer.send(TEXT, "later")
    events = live.log.wait_for("text", "later")
    assert events == [*(("text", str(number)) for number in range(20)), ("ping", b"early"), ("text", "later")]


def test_an_early_partial_message_is_completed_later(link: Link) -> None:
    """For every position at which the segment ends."""
    for cut in (1, 5, 9):
        live, peer = link(early=lambda peer, cut=cut: peer.frame(TEXT, "divided")[:cut], record=("text",))
        live.run()
        peer.write(peer.frame(TEXT, "divided")[cut:])
        live.log.wait_for("text", "divided")


def test_an_early_close_is_answered(link: Link) -> None:
    live, peer = link(
        early=lambda peer: peer.frame(TEXT, "only") + peer.frame(CLOSE, close_payload(4000, "quick")), record=("text",)
    )
    over = live.run()
    peer.expect_close(4000, "quick")
    peer.finish()
    assert over.result(LIMIT) == (4000, "quick")
    assert live.log.events == [("text", "only")]


def test_early_messages_beyond_the_queue_limits_arrive(link: Link) -> None:
    """More messages than the queue holds, and more bytes than one read returns."""
    live, _peer = link(
        early=lambda peer: peer.frame(BINARY, b"x" * 1000) * 200, record=("binary",), max_queued_messages=2
    )
    live.run()
    events = live.log.wait(lambda events: len(events) == 200)
    assert set(events) == {("binary", b"x" * 1000)}


# --- the end in the same segment ------------------------------------------------------------------------------


async def _stream_after_its_end(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(sock=sock)
    async with asyncio.timeout(LIMIT):
        while not reader._eof:  # type: ignore[attr-defined]  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.001)
    return reader, writer


@pytest.mark.parametrize("flavour", ["asyncio", "uvloop"])
def test_a_stream_reader_may_already_have_read_the_end(opener: Opener, flavour: str) -> None:
    """Head, messages and FIN are in the StreamReader before the first read."""
    ours, theirs = tcp_pair()
    ours.setblocking(False)

    async def serve() -> tuple[list[str | bytes], tuple[int | None, str | None]]:
        reader, writer = await _stream_after_its_end(ours)
        conn = Watershed().accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer))
        messages = [message async for message in conn]
        await conn.wait_closed()
        await writer.wait_closed()
        return messages, (conn.close_code, conn.close_reason)

    with theirs:
        peer = WirePeer(theirs, CLIENT)
        peer.write(request_head(), peer.frame(TEXT, "first"), peer.frame(TEXT, "last"))
        peer.half_close()
        messages, outcome = opener.loop(flavour).call(serve())
    assert messages == ["first", "last"]
    assert outcome == (1006, "")


@pytest.mark.parametrize("flavour", ["asyncio", "uvloop"])
def test_a_stream_reader_may_already_have_read_close_and_end(opener: Opener, flavour: str) -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)

    async def serve() -> tuple[int, str]:
        reader, writer = await _stream_after_its_end(ours)
        conn = Watershed().accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer))
        conn.on("text", conn.send)
        return await conn.run()

    with theirs:
        peer = WirePeer(theirs, CLIENT)
        peer.write(request_head(), peer.frame(TEXT, "last"), peer.frame(CLOSE, close_payload(4000)))
        peer.half_close()
        assert opener.loop(flavour).call(serve()) == (4000, "")
        peer.read_head()
        peer.expect(TEXT, "last")
        peer.expect_close(4000)
        peer.expect_end()


def test_a_peer_may_have_sent_everything_and_its_end_before_the_first_read() -> None:
    ours, theirs = tcp_pair()
    with theirs:
        peer = WirePeer(theirs, CLIENT)
        peer.write(request_head(), peer.frame(TEXT, "first"), peer.frame(TEXT, "last"))
        peer.half_close()
        conn = Watershed().accept(ours.recv(65536), ours)
        assert list(conn) == ["first", "last"]
        assert conn.close_code == 1006
        with pytest.raises(ConnectionClosed):
            conn.send("too late")


# --- readers that have read beyond the head --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 70_000])
def test_the_head_argument_comes_first(size: int) -> None:
    """First the bytes after the head itself, then those of ``head=``, then those of the socket."""
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    stream = b"".join(peer.frame(TEXT, text * size) for text in "abc")
    one, two = len(stream) // 3 - 3, 2 * len(stream) // 3 + 1
    peer.write(stream[two:])
    with theirs, Watershed().accept(request_head() + stream[:one], ours, stream[one:two]) as conn:
        assert [conn.receive(LIMIT) for _ in "abc"] == [text * size for text in "abc"]
        conn.destroy()


def test_the_head_argument_of_a_client_comes_first() -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, SERVER)
    stream = b"".join(peer.frame(TEXT, text) for text in "abc")
    peer.write(stream[7:])
    answer = response_head(HANDSHAKE_KEY) + stream[:2]
    with theirs, Watershed().connect(answer, ours, stream[2:7], key=HANDSHAKE_KEY) as conn:
        assert [conn.receive(LIMIT) for _ in "abc"] == list("abc")
        conn.destroy()


@pytest.mark.parametrize("form", ["pair", "transport"])
def test_the_head_argument_comes_before_a_stream_readers_buffer(opener: Opener, form: str) -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    peer = WirePeer(theirs, CLIENT)
    stream = b"".join(peer.frame(TEXT, text) for text in "abc")

    async def serve() -> list[str | bytes]:
        reader, writer = await asyncio.open_connection(sock=ours)
        head = await reader.readuntil(b"\r\n\r\n")
        early = await reader.readexactly(5 if form == "pair" else len(stream))
        conn = Watershed().accept(head, (reader, writer) if form == "pair" else writer.transport, early)
        messages = [await conn.receive(LIMIT) for _ in "abc"]
        conn.destroy()
        await conn.wait_closed()
        return messages

    with theirs:
        peer.write(request_head(), stream)
        assert opener.loop().call(serve()) == list("abc")


def serve_http(sock: socket.socket, handle: Callable[[BaseHTTPRequestHandler], object]) -> None:
    """Let ``handle`` respond like a handler of ``http.server``, which closes the socket at the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            handle(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's own name for it
            pass

    with sock:
        Handler(sock, sock.getpeername(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 200])
def test_bytes_buffered_by_http_server_are_found(count: int) -> None:
    """The handler's rfile holds up to 8 KiB of it, and the kernel the rest."""
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    received: list[str | bytes] = []

    def handle(handler: BaseHTTPRequestHandler) -> None:
        with Watershed().accept(handler, handler.connection) as conn:
            received.extend(conn)

    peer.write(
        request_head(), *(peer.frame(TEXT, str(number) * 100) for number in range(count)), peer.frame(CLOSE, b"")
    )
    with theirs:
        handling = in_thread(lambda: serve_http(ours, handle))
        peer.read_head()
        peer.expect_close(None)
        peer.finish()
        handling.result(LIMIT)
    assert received == [str(number) * 100 for number in range(count)]


def test_bytes_buffered_by_http_server_are_found_in_the_background() -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    over = threading.Event()
    received: list[str] = []

    def handle(handler: BaseHTTPRequestHandler) -> None:
        conn = Watershed().accept(handler, handler.connection)
        conn.on("text", received.append)
        conn.on("end", lambda code, reason: over.set())
        conn.run_in_background()

    peer.write(request_head(), peer.frame(TEXT, "early"))
    with theirs:
        in_thread(lambda: serve_http(ours, handle)).result(LIMIT)
        peer.read_head()
        peer.send(TEXT, "later")
        peer.begin_close()
        assert over.wait(LIMIT)
    assert received == ["early", "later"]


FINAL = (Way("threads", "socket", False, SERVER), Way("asyncio", "streams", False, SERVER))


@pytest.mark.parametrize("way", FINAL, ids=str)
def test_a_peer_that_half_closes_after_its_request_ends_as_a_reset(link: Link) -> None:
    live, peer = link(early=lambda peer: b"")
    over = live.run()
    peer.half_close()
    assert over.result(LIMIT) == (1006, "")
    assert live.endings.events == [("connection_reset",), ("end", 1006, "")]


NO_MEMORY = (
    Way("asyncio", "transport", False, SERVER),
    Way("uvloop", "transport", False, SERVER),
    Way("background", "socket", False, SERVER),
    Way("background", "socket", True, SERVER),
)


@pytest.mark.parametrize("way", NO_MEMORY, ids=str)
@pytest.mark.parametrize("early", [True, False])
def test_a_memory_error_on_early_bytes_closes_the_stream(link: Link, early: bool, loop_errors: LoopErrors) -> None:
    """The event loop would only log it, and the peer would wait forever."""

    def trace(probe: str, _connection: object, _data: bytes) -> None:
        if probe == "read-buffer":
            raise MemoryError

    live, peer = link(
        early=(lambda peer: peer.frame(TEXT, "x")) if early else None,
        setup=lambda conn: conn.on("text", lambda message: None),
        trace=trace,
    )
    over = live.run()
    if not early:
        peer.send(TEXT, "x")
    assert over.result(LIMIT)[0] == 1006
    peer.expect_end()
    assert loop_errors.seen
    loop_errors.seen.clear()
