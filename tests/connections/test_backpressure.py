"""Backpressure: a slow peer or application makes the other end wait, memory is bounded, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import in_thread, until
from tests.support.ways import CLIENT, EACH, FEW, ON_LOOP, SERVER, Link, LiveOnLoop, Opener, Way
from tests.support.wire_peer import BINARY, PING, PONG, TEXT
from watershed_mw import ConnectionClosed, LocalProtocolError

few = pytest.mark.parametrize("way", FEW, ids=str)
# A TLS socket of the standard library cannot be read and written by two threads at once: here the peer does both.
plain = pytest.mark.parametrize("way", [way for way in EACH if not way.tls], ids=str)
plain_pulling = pytest.mark.parametrize("way", [way for way in EACH if not way.tls and way.pulls], ids=str)
on_loop = pytest.mark.parametrize("way", ON_LOOP, ids=str)
MIB = 2**20
PIECE = b"p" * 10_000


# --- the application does not read ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.need(5)
@plain_pulling
def test_a_flood_pauses_without_a_receiver_and_then_arrives(link: Link) -> None:
    live, peer = link(small=True)
    if isinstance(live, LiveOnLoop):
        most = 4 * MIB  # queue, kernel and the transport's own buffers
    else:
        most = 2 * MIB
    frame = peer.frame(BINARY, PIECE)
    count = peer.flood(frame, most)
    finishing = in_thread(peer.finish_flood)
    assert [live.receive() for _ in range(count)] == [PIECE] * count
    finishing.result(LIMIT)
    peer.send(TEXT, "and on")
    assert live.receive() == "and on"


@pytest.mark.slow
@pytest.mark.need(5)
@few
def test_a_flood_pauses_while_a_handler_is_busy(link: Link, way: Way) -> None:
    gate = threading.Event()
    open_gate: list[asyncio.Event] = []

    async def wait(_data: bytes) -> None:
        await open_gate[0].wait()

    def setup(conn: Any) -> None:
        if way.on_loop:
            open_gate.append(asyncio.Event())
            conn.on("binary", wait)
        else:
            conn.on("binary", lambda data: gate.wait(LIMIT) and None)

    live, peer = link(small=True, setup=setup, ping_interval=None)
    live.run()
    frame = peer.frame(BINARY, PIECE)
    count = peer.flood(frame, 4 * MIB)
    gate.set()
    if isinstance(live, LiveOnLoop):
        live.loop.loop.call_soon_threadsafe(open_gate[0].set)
    peer.finish_flood()
    until(lambda: live.conn.stats.messages_received == count)


# --- the peer does not read --------------------------------------------------------------------------------


@pytest.mark.need(4)
@on_loop
def test_send_waits_for_a_peer_that_does_not_read_and_drain_follows(link: Link) -> None:
    live, peer = link(small=True, record=("drain",))
    sent = 0

    async def send(conn: Any) -> None:
        nonlocal sent
        while sent < 100:
            await conn.send(bytes(200_000))
            sent += 1

    sending = live.do(send)
    until(lambda: live.conn._writer.paused)
    assert sent < 50
    assert not sending.done()
    assert live.log.events == []
    for _ in range(100):
        peer.expect(BINARY, bytes(200_000))
    sending.result(LIMIT)
    assert ("drain",) in live.log.events


@pytest.mark.need(4)
@pytest.mark.parametrize("way", [Way("threads", "socket", False, SERVER), Way("threads", "socket", True, CLIENT)])
def test_a_threads_send_blocks_until_the_peer_reads(link: Link) -> None:
    live, peer = link(small=True)
    sent = 0

    def send(conn: Any) -> None:
        nonlocal sent
        while sent < 100:
            conn.send(bytes(200_000))
            sent += 1

    sending = live.do(send)
    until(lambda: live.conn._core.write_paused)
    assert sent < 50
    for _ in range(100):
        peer.expect(BINARY, bytes(200_000))
    sending.result(LIMIT)


@pytest.mark.slow
@pytest.mark.need(4, 5)
@plain
def test_an_echo_waits_for_a_peer_that_does_not_read(link: Link) -> None:
    """``conn.on("binary", conn.send)`` is all that an application has to write."""
    live, peer = link(small=True, setup=lambda conn: conn.on("binary", conn.send), ping_interval=None)
    live.run()
    frame = peer.frame(BINARY, PIECE)
    count = peer.flood(frame, 8 * MIB)
    finishing = in_thread(peer.finish_flood)
    for _ in range(count):
        peer.expect(BINARY, PIECE)
    finishing.result(LIMIT)


@pytest.mark.need(4)
@pytest.mark.advisory("CVE-2026-48802")
@pytest.mark.parametrize("way", [way for way in FEW if way.flavour != "background"], ids=str)
def test_pings_from_a_peer_that_does_not_read_cannot_fill_memory(link: Link) -> None:
    """Section 5.5.3: only the newest PING needs a PONG."""
    live, peer = link(small=True, ping_interval=None)
    live.run()
    frame = peer.frame(PING, b"p" * 125)
    count = 0
    for _ in range(40):
        peer.write(frame * 1000)
        count += 1000
        if live.conn._core.write_paused:
            break
    peer.send(PING, b"last")
    while (answer := peer.read()).payload != b"last":
        assert answer.opcode == PONG
        count -= 1
    assert count >= 0


@pytest.mark.slow
@few
def test_two_peers_that_send_16_mib_to_each_other_both_finish(opener: Opener, way: Way) -> None:
    other_way = Way("threads", "socket", way.tls, CLIENT if way.role is SERVER else SERVER)
    live, other = opener.open_both(way, other_way, small=True, compression=False, record=("binary",))
    live.run()
    data = b"\xa5" * (16 * MIB)
    sendings = [live.begin("send", data), other.begin("send", data)]
    assert other.receive() == data
    live.log.wait_for("binary", data)
    for sending in sendings:
        sending.result(LIMIT)


# --- sending without await -----------------------------------------------------------------------------------


@pytest.mark.need(4)
@on_loop
def test_sending_without_await_ends_at_max_unsent_bytes(link: Link) -> None:
    live, peer = link(small=True, max_unsent_bytes=MIB, close_timeout=LIMIT)

    async def send(conn: Any) -> None:
        for _ in range(1000):
            conn.send(bytes(100_000))
            if conn.closed:
                return

    live.do(send).exception(LIMIT)
    assert live.endings.wait(lambda events: ("end", 1006, "") in events)
    assert live.endings.events[0][0] == "error"
    assert isinstance(live.endings.events[0][1], LocalProtocolError)
    until(lambda: live._sock.fileno() == -1, "the stream is dropped at once")
    with pytest.raises(ConnectionClosed):
        live.send("more")
    assert not peer.silent()


@on_loop
def test_sending_without_await_in_a_handler_ends_at_max_unsent_bytes(link: Link) -> None:
    """Data passed to the transport must not stay in memory for all of ``close_timeout``."""

    def setup(conn: Any) -> None:
        def flood(_text: str) -> None:
            for _ in range(100):
                conn.send(bytes(100_000))

        conn.on("text", flood)

    live, peer = link(small=True, setup=setup, max_unsent_bytes=MIB, close_timeout=60)
    live.run()
    peer.send(TEXT, "ask")
    live.endings.wait_for("end", 1006)
    until(lambda: live._sock.fileno() == -1, "the stream is dropped at once")


@pytest.mark.parametrize("way", [way for way in ON_LOOP if not way.tls], ids=str)
def test_an_awaited_send_may_exceed_max_unsent_bytes(link: Link) -> None:
    live, peer = link(small=True, max_unsent_bytes=MIB)
    sending = live.begin("send", bytes(4 * MIB))
    peer.expect(BINARY, bytes(4 * MIB))
    sending.result(LIMIT)
    live.send("and on")
    peer.expect(TEXT, "and on")


@pytest.mark.slow
@on_loop
def test_destroy_immediately_drops_data_that_a_close_left_unsent(link: Link) -> None:
    """After the closing handshake has timed out, unsent data may still arrive, but not after ``destroy``."""
    live, peer = link(small=True, close_timeout=1.0, ping_interval=None)
    live.run()
    live.do(lambda conn: conn.send(bytes(8 * MIB)) and None).result(LIMIT)
    live.do(lambda conn: conn.end() and None).result(LIMIT)
    assert live.ended() == (1006, "")
    live.call("destroy")

    async def closed(conn: Any) -> None:
        async with asyncio.timeout(0.5):
            await conn.wait_closed()

    live.do(closed).result(LIMIT)
    assert not peer.silent()
