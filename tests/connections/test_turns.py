"""One peer's bytes never monopolise the event loop, never exceed the queue's limits, and are never lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import in_thread, until
from tests.support.ways import FEW_PULLING, ON_LOOP, Link, Live, LiveOnLoop, Way
from tests.support.wire_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WirePeer, close_payload
from watershed_mw import ConnectionClosed

on_loop = pytest.mark.parametrize("way", ON_LOOP, ids=str)
pulling = pytest.mark.parametrize("way", FEW_PULLING, ids=str)
plain_on_loop = pytest.mark.parametrize("way", [way for way in ON_LOOP if not way.tls], ids=str)
MIB = 2**20
DEFLATE = (("Sec-WebSocket-Extensions", "permessage-deflate"),)
# Units of work that one connection may do in one iteration: its budget, and the step that goes past it.
MOST_WORK = 1024 + 512


def deflated(payload: bytes) -> bytes:
    """A message as a peer with zlib sends it, without context takeover."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def tiny_texts(peer: WirePeer) -> bytes:
    return peer.frame(TEXT, "x") * 30_000


def empty_fragments(peer: WirePeer) -> bytes:
    return peer.frame(BINARY, fin=False) + peer.frame(CONTINUATION, fin=False) * 60_000 + peer.frame(CONTINUATION)


def pongs(peer: WirePeer) -> bytes:
    return peer.frame(PONG) * 40_000


def pings(peer: WirePeer) -> bytes:
    return peer.frame(PING) * 40_000


def zeros(peer: WirePeer) -> bytes:
    return peer.frame(BINARY, deflated(bytes(64 * 2**10)), rsv=4) * 300


def bombs(peer: WirePeer) -> bytes:
    return peer.frame(BINARY, deflated(bytes(16 * MIB)), rsv=4) * 3


FLOODS = [tiny_texts, empty_fragments, pongs, pings, zeros, bombs]


class Ticker:
    """Records in each iteration of a connection's event loop how much work the connection has done so far."""

    def __init__(self, live: LiveOnLoop) -> None:
        self._core = live.conn._core
        self._loop = live.loop.loop
        self._on = True
        self.marks: list[int] = []
        self._loop.call_soon_threadsafe(self._tick)

    def _tick(self) -> None:
        self.marks.append(self._core.receiver.work)
        if self._on:
            self._loop.call_soon(self._tick)

    def stop(self) -> int:
        """The most work between two iterations."""
        self._on = False
        return max((after - before for before, after in itertools.pairwise(self.marks)), default=0)


@pytest.mark.slow
@on_loop
@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("push", [False, True], ids=["pull", "push"])
def test_no_peer_monopolises_the_loop(link: Link, way: Way, flood: Callable[[WirePeer], bytes], push: bool) -> None:
    setup = (lambda conn: conn.on("binary", len)) if push else None
    live, peer = link(setup=setup, fields=DEFLATE, ping_interval=None)
    assert isinstance(live, LiveOnLoop)
    ticker = Ticker(live)
    working = live.run() if push else live.collect()
    reading = in_thread(lambda: _read_until_close(peer))
    peer.write(flood(peer))
    peer.send_close(1000)
    reading.result(LIMIT)
    peer.close()
    working.result(LIMIT)
    assert ticker.stop() <= MOST_WORK
    assert live.conn._core.receiver.work >= 1000


def _read_until_close(peer: WirePeer) -> None:
    while peer.read().opcode != CLOSE:
        pass


@pytest.mark.slow
@on_loop
def test_slow_handlers_let_other_connections_run(link: Link, way: Way) -> None:
    came: list[float] = []

    def slow(_text: str) -> None:
        until_then = time.perf_counter() + 0.001
        while time.perf_counter() < until_then:
            pass
        came.append(until_then)

    live, peer = link(setup=lambda conn: conn.on("text", slow), ping_interval=None)
    assert isinstance(live, LiveOnLoop)
    counts = [0]
    loop = live.loop.loop

    def tick() -> None:
        counts.append(len(came))
        if len(came) < 500:
            loop.call_soon(tick)

    loop.call_soon_threadsafe(tick)
    live.run()
    peer.write(peer.frame(TEXT, "x") * 500)
    until(lambda: len(came) == 500)
    # A step brings as many as the queue takes; after it the time that it took is looked at.
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 100


@pytest.mark.slow
@pulling
def test_the_queue_stays_within_its_limits_for_any_read(link: Link) -> None:
    live, peer = link(fields=DEFLATE, ping_interval=None)
    message = bytes(100_000)
    count = 200
    peer.write(peer.frame(BINARY, deflated(message), rsv=4) * count)
    assert live.receive() == message
    until(lambda: live.conn.stats.messages_received >= 3)
    # 256 KiB are three of them; at half of that a step brings three more.
    for taken in range(2, count):
        assert live.receive() == message
        assert live.conn.stats.messages_received <= taken + 5
    assert live.receive() == message


@pytest.mark.slow
@pulling
def test_after_our_end_messages_come_without_gaps(link: Link) -> None:
    live, peer = link(close_timeout=LIMIT)
    ending = live.begin("end", "enough")
    peer.expect_close(1000, "enough")
    got: list[int] = []
    for part in range(4):
        before = live.conn.stats.frames_received
        peer.write(*(peer.frame(TEXT, str(number)) for number in range(part * 50, part * 50 + 50)))
        if way_reads_by_itself(live):
            wait_for_frames(live, before + 50)
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            got.extend(int(live.receive(0.2)) for _ in range(30))
    peer.send_close(1000)
    peer.finish()
    ending.result(LIMIT)
    with contextlib.suppress(ConnectionClosed):
        while True:
            got.append(int(live.receive()))
    assert got == list(range(len(got)))
    assert len(got) >= 30


@pytest.mark.parametrize("way", ON_LOOP, ids=str)
def test_after_our_end_handlers_get_messages_without_gaps(link: Link) -> None:
    live, peer = link(close_timeout=LIMIT)
    got: list[int] = []
    turns = asyncio.Semaphore(0)

    async def on_text(text: str) -> None:
        got.append(int(text))
        await turns.acquire()

    def let(number: int) -> None:
        def release(_: Any) -> None:
            for _ in range(number):
                turns.release()

        live.do(release).result(LIMIT)

    live.on("text", on_text)
    over = live.run()
    ending = live.begin("end", "enough")
    peer.expect_close(1000, "enough")
    for part in range(4):
        before = live.conn.stats.frames_received
        peer.write(*(peer.frame(TEXT, str(number)) for number in range(part * 50, part * 50 + 50)))
        wait_for_frames(live, before + 50)
        let(30)
        until(partial(has, got, min(33, 30 * part + 31)))
    let(200)
    peer.send_close(1000)
    peer.finish()
    ending.result(LIMIT)
    over.result(LIMIT)
    assert got == list(range(33))  # what the queue holds


def has(got: list[int], number: int) -> bool:
    return len(got) >= number


def wait_for_frames(live: Live, number: int) -> None:
    until(lambda: live.conn.stats.frames_received == number)


def way_reads_by_itself(live: Live) -> bool:
    """Whether bytes are accepted while nothing receives."""
    return isinstance(live, LiveOnLoop)


@pytest.mark.slow
@pulling
@pytest.mark.parametrize("end", ["close", "eof"])
def test_messages_before_the_end_of_the_stream_are_received(link: Link, way: Way, end: str) -> None:
    live, peer = link(ping_interval=None)
    data = [peer.frame(TEXT, str(number)) for number in range(5000)]
    if end == "close":
        data.append(peer.frame(CLOSE, close_payload(1000, "bye")))
    peer.write(*data)
    if not way.tls:
        peer.half_close()  # TLS of the event loops drops what it holds when the stream ends while reading is paused
    assert [int(live.receive()) for _ in range(5000)] == list(range(5000))
    if way.tls:
        peer.half_close()
    with pytest.raises(ConnectionClosed) as caught:
        live.receive()
    assert caught.value.code == (1000 if end == "close" else 1006)


@plain_on_loop
def test_replies_to_messages_before_a_half_close_are_written(link: Link) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", conn.send), ping_interval=None)
    live.run()
    peer.write(peer.frame(TEXT, "x" * 20) * 5000)
    peer.half_close()
    for _ in range(5000):
        peer.expect(TEXT, "x" * 20)


@pytest.mark.slow
@on_loop
def test_a_connection_that_is_lost_with_a_backlog_ends_without_a_receiver(link: Link) -> None:
    live, peer = link(ping_interval=None)
    peer.write(peer.frame(TEXT, "x") * 20_000)
    until(lambda: live.conn.stats.messages_received >= 33)

    async def send_on(conn: Any) -> None:
        while True:
            await conn.send(b"x" * 1000)

    sending = live.do(send_on)
    peer.reset()
    assert live.ended()[0] == 1006
    with pytest.raises(ConnectionClosed):
        sending.result(LIMIT)


@on_loop
def test_destroying_a_connection_discards_its_backlog(link: Link) -> None:
    live, peer = link(ping_interval=None)
    peer.write(peer.frame(TEXT, "x") * 20_000)
    until(lambda: live.conn._core.receiver.backlog)
    live.call("destroy")
    assert not live.conn._core.receiver.backlog
    live.ended()


@pytest.mark.slow
@plain_on_loop
def test_pings_beside_pulled_messages_take_linear_time(link: Link) -> None:
    told: list[bytes] = []
    live, peer = link(setup=lambda conn: conn.on("ping", told.append), ping_interval=None)
    reading = in_thread(lambda: _read_until_close(peer))
    receiving = live.begin("receive")
    peer.write(peer.frame(PING) * 43_000, peer.frame(TEXT, "last"))
    assert receiving.result(LIMIT) == "last"
    assert len(told) == 43_000
    peer.send_close()
    reading.result(LIMIT)


@plain_on_loop
def test_tasks_waiting_for_a_slow_peer_resume_in_order_except_cancelled_ones(link: Link) -> None:
    live, peer = link(small=True, ping_interval=None)
    order: list[int] = []

    async def send_all(conn: Any) -> None:
        conn.send(bytes(4 * MIB))

        async def wait(number: int) -> None:
            await conn.send(b"x")
            order.append(number)

        tasks = [asyncio.create_task(wait(number)) for number in range(100)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    sending = live.do(send_all)
    until(lambda: live.conn._writer.paused)
    peer.expect(BINARY, bytes(4 * MIB))
    for _ in range(100):
        peer.expect(BINARY, b"x")
    sending.result(LIMIT)
    assert order == list(range(1, 100, 2))
