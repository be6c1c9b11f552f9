"""The memory of all connections together (max_memory): the largest pause, then end, and others are unaffected."""

from __future__ import annotations

import logging
import zlib
from contextlib import suppress
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.memory import held_by_connections
from tests.support.waiting import until
from tests.support.ways import EACH, IN_THREADS, ON_LOOP, Opener, Way
from tests.support.wire_peer import BINARY, TEXT, WirePeer
from watershed_mw import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from watershed_mw.connection.memory import memory_budget
from watershed_mw.core.memory_budget import MAX_PAUSE

MIB = 2**20
each = pytest.mark.parametrize("way", [way for way in EACH if not way.tls], ids=str)
on_loop = pytest.mark.parametrize("way", [way for way in EACH if way.on_loop and not way.tls], ids=str)
pulling = pytest.mark.parametrize("way", [way for way in EACH if way.pulls and not way.tls], ids=str)
pulling_on_loop = pytest.mark.parametrize(
    "way", [way for way in EACH if way.on_loop and way.pulls and not way.tls], ids=str
)
OPTIONS: dict[str, Any] = {
    "max_memory": 4 * MIB,
    "max_message_size": 64 * MIB,
    "ping_interval": None,
    "close_timeout": 0.3,
}
OFFER = (("Sec-WebSocket-Extensions", "permessage-deflate"),)


@pytest.fixture(autouse=True)
def nothing_is_held() -> None:
    """The budget belongs to the process, so memory left by other tests would count here."""
    until(lambda: held_by_connections() == 0, "nothing is held by other tests")


def half(peer: WirePeer, size: int, whole: int = 32 * MIB) -> None:
    """The first ``size`` bytes of a message of ``whole`` bytes."""
    frame = peer.frame(BINARY, bytes(whole))
    peer.write(frame[:size])


def held(size: float) -> bool:
    return memory_budget().total >= size * MIB


@pytest.mark.slow
@pytest.mark.need(6)
@each
def test_partial_messages_close_only_the_largest_with_1009(
    way: Way, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "watershed_mw")
    large, large_peer = opener.open(way, **OPTIONS)
    over = large.run()
    half(large_peer, 2 * MIB)
    until(lambda: held(1.9))
    small, small_peer = opener.open(way, record=("text",), **OPTIONS)
    small.run()
    other, other_peer = opener.open(way, record=("binary",), **OPTIONS)
    other.run()
    half(other_peer, int(1.8 * MIB))
    until(lambda: held(3.5))
    small_peer.send(TEXT, "a small one")
    small.log.wait_for("text", "a small one")
    third, third_peer = opener.open(way, record=("binary",), **OPTIONS)
    third.run()
    half(third_peer, int(0.9 * MIB), MIB)
    large_peer.expect_close(1009)
    large_peer.close()
    code, reason = over.result(LIMIT)
    assert (code, "max_memory" in reason) == (1009, True)
    assert isinstance(large.endings.events[0][1], RemoteProtocolError)
    # Memory is free again: the arriving message continues.
    third_peer.write(third_peer.frame(BINARY, bytes(MIB))[int(0.9 * MIB) :])
    third.log.wait_for("binary", bytes(MIB))
    small_peer.send(TEXT, "and another")
    small.log.wait_for("text", "and another")
    assert other.conn.close_code is None
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("the largest are closed, 1 with 2." in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.need(6)
@pytest.mark.parametrize("way", [ON_LOOP[0], IN_THREADS[0]], ids=str)
def test_many_small_partial_messages_are_counted_together(way: Way, opener: Opener) -> None:
    opened = [opener.open(way, **OPTIONS) for _ in range(100)]
    for live, peer in opened:
        live.run()
        half(peer, 60_000, 70_000)
    until(lambda: len({live for live, _ in opened if live.conn.closed}) > 30, "past 4 MiB the largest end")
    until(lambda: all(live.conn.closed or live.conn.stats.bytes_received >= 60_000 for live, _ in opened))
    until(lambda: memory_budget().total <= OPTIONS["max_memory"], "what ended is let go of")
    alive = [(live, peer) for live, peer in opened if not live.conn.closed]
    assert len(alive) > 50
    for live, peer in opened:
        if live.conn.closed:
            peer.expect_close(1009)


@pytest.mark.need(6)
@pulling_on_loop
def test_consumed_and_answered_messages_are_no_longer_counted(way: Way, opener: Opener) -> None:
    """If a full queue is answered in one iteration, the answers are unsent when its last message is consumed."""
    live, peer = opener.open(way, **OPTIONS)
    for _ in range(30):
        peer.send(BINARY, bytes(3000))
    until(lambda: memory_budget().total >= 60_000)

    async def echo(conn: Any) -> None:
        for _ in range(30):
            conn.send(await conn.receive())
        with suppress(ConnectionClosed):
            await conn.receive()

    live.do(echo)
    for _ in range(30):
        peer.expect(BINARY, bytes(3000))
    until(lambda: memory_budget().total == 0)


@pytest.mark.need(6)
@pulling
def test_the_largest_pauses_and_resumes_when_memory_is_free(way: Way, opener: Opener) -> None:
    live, peer = opener.open(way, max_queued_bytes=64 * MIB, **OPTIONS)
    small, small_peer = opener.open(way, **OPTIONS)
    for _ in range(3):
        peer.send(BINARY, bytes(MIB))
    peer.send(BINARY, bytes(MIB // 4))
    until(lambda: live.conn._core.read_paused)
    peer.send(TEXT, "the last")
    small_peer.send(TEXT, "not touched by that")
    assert small.receive() == "not touched by that"
    assert not small.conn._core.read_paused
    assert live.conn.stats.messages_received < 5
    for size in (MIB, MIB, MIB, MIB // 4):
        assert live.receive() == bytes(size)
    assert live.receive() == "the last"
    assert memory_budget().total == 0


@pytest.mark.slow
@pytest.mark.need(6)
@pulling
def test_consuming_everything_at_once_frees_memory(way: Way, opener: Opener) -> None:
    live, peer = opener.open(way, max_queued_bytes=64 * MIB, **OPTIONS)
    first, second = bytes(MIB), bytes(int(2.3 * MIB))
    for _ in range(2):
        peer.send(BINARY, first)
        peer.send(BINARY, second)
        until(lambda: live.conn._core.read_paused)
        peer.send(TEXT, "the next")
        # After the first one, too much is held to read on; after the second nothing is.
        assert live.receive() == first
        assert live.receive() == second
        assert live.receive() == "the next"
    assert memory_budget().total == 0


@pytest.mark.slow
@pytest.mark.need(6)
@pulling
def test_unconsumed_messages_close_with_1013(way: Way, opener: Opener) -> None:
    live, peer = opener.open(way, max_queued_bytes=64 * MIB, **OPTIONS)
    peer.send(BINARY, bytes(int(2.9 * MIB)))
    until(lambda: held(2.8))
    second, second_peer = opener.open(way, max_queued_bytes=64 * MIB, **OPTIONS)
    second_peer.send(BINARY, bytes(int(1.4 * MIB)))
    peer.expect_close(1013)
    with pytest.raises(ConnectionClosed) as caught:
        live.receive()
    assert caught.value.code == 1013
    assert isinstance(caught.value.__cause__, LocalProtocolError)
    assert second.receive() == bytes(int(1.4 * MIB))


@pytest.mark.need(6)
@on_loop
def test_unsent_data_drops_the_connection(way: Way, opener: Opener) -> None:
    live, peer = opener.open(way, small=True, **OPTIONS)

    async def send(conn: Any) -> None:
        for _ in range(1000):
            conn.send(bytes(100_000))
            if conn.closed:
                return

    live.do(send).exception(LIMIT)
    live.endings.wait_for("end", 1013)
    assert isinstance(live.endings.events[0][1], LocalProtocolError)
    assert "max_memory" in str(live.endings.events[0][1])
    until(lambda: live._sock.fileno() == -1, "the stream is dropped at once")
    assert not peer.silent()
    assert memory_budget().total == 0


@pytest.mark.slow
@pytest.mark.need(6)
@pytest.mark.parametrize("way", [ON_LOOP[0], IN_THREADS[0]], ids=str)
def test_memory_that_is_never_released_ends_the_connection_after_a_while(way: Way, opener: Opener) -> None:
    """Partial messages at the threshold: all readers of large messages would wait forever."""
    live, peer = opener.open(way, **OPTIONS)
    over = live.run()
    half(peer, int(3.3 * MIB))
    until(lambda: held(3))
    peer.sock.settimeout(LIMIT + MAX_PAUSE)
    peer.expect_close(1009)
    peer.close()
    assert over.result(LIMIT)[0] == 1009


@pytest.mark.need(6)
@each
def test_a_context_that_cannot_be_released_is_counted(way: Way, opener: Opener) -> None:
    """A few compressed bytes make this end hold a zlib context for as long as the message is incomplete."""
    live, peer = opener.open(way, fields=OFFER, **OPTIONS)
    live.run()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    begun = deflater.compress(b"a few bytes") + deflater.flush(zlib.Z_SYNC_FLUSH)
    peer.write(peer.frame(TEXT, begun, fin=False, rsv=4))
    until(lambda: memory_budget().total >= 64 * 2**10)
    live.conn.destroy()
    until(lambda: memory_budget().total == 0)


@each
def test_a_connection_without_a_limit_is_not_counted(way: Way, opener: Opener) -> None:
    live, peer = opener.open(way, record=("binary",), **{**OPTIONS, "max_memory": None})
    live.run()
    data = bytes(8 * MIB)
    frame = peer.frame(BINARY, data)
    peer.write(frame[: 6 * MIB])
    until(lambda: live.conn.stats.bytes_received > 5 * MIB)
    assert memory_budget().total == 0
    peer.write(frame[6 * MIB :])
    live.log.wait_for("binary", data)
