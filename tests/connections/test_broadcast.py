"""watershed_mw.connection.broadcast: one message to connections of every kind."""

from __future__ import annotations

import tracemalloc
import weakref
import zlib
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import until
from tests.support.ways import CLIENT, EACH, SERVER, Live, LiveInBackground, Log, Opener, Way
from tests.support.wire_peer import BINARY, TEXT, WirePeer
from watershed_mw import LocalProtocolError, broadcast

OFFER = (("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),)
ON_LOOP = Way("asyncio", "transport", False, SERVER)
ON_UVLOOP = Way("uvloop", "transport", False, SERVER)


def connections(lives: list[Live]) -> list[Any]:
    return [live.conn for live in lives]


def on_their_loop(live: Live, lives: list[Live], message: Any) -> None:
    """Broadcast in the thread of the first connection's event loop."""
    live.do(lambda _: broadcast(connections(lives), message)).result(LIMIT)


def frame(peer: WirePeer) -> tuple[int, bytes]:
    """The first byte of the next frame, and its payload as it is on the wire."""
    first, size = peer._exactly(2)
    assert size < 126
    return first, peer._exactly(size)


def test_every_kind_of_connection_receives_the_message(opener: Opener) -> None:
    opened = [opener.open(way) for way in EACH]
    for live, _ in opened:
        if isinstance(live, LiveInBackground):
            live.run()
    lives = [live for live, _ in opened]
    for message in ("text é", b"binary"):
        broadcast(connections(lives), message)
        for _, peer in opened:
            peer.expect(TEXT if isinstance(message, str) else BINARY, message)
    on_their_loop(lives[0], lives, bytearray(b"from a loop's own thread"))
    for _, peer in opened:
        peer.expect(BINARY, b"from a loop's own thread")


@pytest.mark.parametrize("way", [ON_LOOP, ON_UVLOOP], ids=str)
def test_counters_and_trace_match_those_of_send(opener: Opener, way: Way) -> None:
    probes = Log()
    opened = [
        opener.open(way, trace=lambda probe, conn, data: probes.note(probe, conn.id, data)),
        opener.open(way),
    ]
    lives = [live for live, _ in opened]
    on_their_loop(lives[0], lives, "to all")
    lives[0].send("to one")
    for _, peer in opened:
        peer.expect(TEXT, "to all")
    opened[0][1].expect(TEXT, "to one")
    number = lives[0].conn.id
    assert [event for event in probes.events if event[0].startswith("send")] == [
        ("send-text", number, b"to all"),
        ("send-text", number, b"to one"),
    ]
    stats = lives[0].conn.stats
    assert (stats.frames_sent, stats.messages_sent, stats.bytes_sent) == (2, 2, 16)
    assert lives[1].conn.stats.bytes_sent == 8


def test_order_is_kept_with_pending_data(opener: Opener) -> None:
    live, peer = opener.open(ON_LOOP)

    def work(conn: Any) -> None:
        for number in range(3):
            conn.send(f"own {number}")
            broadcast([conn], f"all {number}")

    live.do(work).result(LIMIT)
    for number in range(3):
        peer.expect(TEXT, f"own {number}")
        peer.expect(TEXT, f"all {number}")


@pytest.mark.parametrize("way", [ON_LOOP, Way("threads", "socket", False, SERVER)], ids=str)
def test_closing_connections_are_skipped(opener: Opener, way: Way) -> None:
    (leaving, leaver), (gone, goer), (staying, stayer) = (opener.open(way) for _ in range(3))
    ending = leaving.begin("end", "bye")
    leaver.expect_close(1000, "bye")
    gone.call("destroy")
    goer.close()
    for _ in range(2):
        on_their_loop(leaving, [leaving, gone, staying], "hello")
        stayer.expect(TEXT, "hello")
    leaver.send_close(1000, "bye")
    leaver.expect_end()
    leaver.close()
    ending.result(LIMIT)
    assert leaving.conn.stats.messages_sent == 0


def test_a_message_that_cannot_be_sent_reaches_no_connection(opener: Opener) -> None:
    live, peer = opener.open(ON_LOOP)
    with pytest.raises(LocalProtocolError):
        broadcast([live.conn], "\ud800")
    with pytest.raises(TypeError):
        broadcast([live.conn], 5)  # type: ignore[arg-type]
    for stranger in (None, object(), weakref.proxy(live.conn, lambda _: None)):
        with pytest.raises(TypeError, match="expected connections to broadcast to"):
            broadcast([live.conn, stranger], "not for all of these")  # type: ignore[list-item]
    live.send("still there")
    peer.expect(TEXT, "still there")


def test_a_peer_that_does_not_read_is_dropped_and_delays_no_other(opener: Opener) -> None:
    (slow, slow_peer), (fast, fast_peer) = (
        opener.open(ON_LOOP, max_unsent_bytes=2**20, small=small) for small in (True, False)
    )
    message = bytes(2**18)
    sent = 0
    while not slow.conn.closed:
        on_their_loop(slow, [slow, fast], message)
        fast_peer.expect(BINARY, message)
        sent += 1
        assert sent < 40, "expected max_unsent_bytes to hold"
    slow_peer.close()
    assert isinstance(slow.endings.wait(lambda events: events)[0][1], LocalProtocolError)


def test_a_peer_that_does_not_read_costs_no_copy(opener: Opener) -> None:
    """The part of a broadcast that the kernel has not taken is shared between all connections."""
    opened = [opener.open(ON_UVLOOP, small=True) for _ in range(20)]
    lives = [live for live, _ in opened]
    message = bytes(2 * 2**20)
    tracemalloc.start()
    try:
        on_their_loop(lives[0], lives, message)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * len(message)
    for _, peer in opened:
        peer.expect(BINARY, message)


def test_a_broadcast_is_compressed_once_and_other_messages_continue(opener: Opener) -> None:
    opened = [opener.open(way, fields=OFFER, compression=True) for way in (ON_LOOP, ON_LOOP, ON_UVLOOP)]
    inflaters = [zlib.decompressobj(-12) for _ in opened]
    lives = [live for live, _ in opened]
    own, common = "a message that is long enough to be compressed, by and by " * 3, "to everybody who is there " * 5

    def came() -> list[bytes]:
        payloads = []
        for number, (_, peer) in enumerate(opened):
            first, payload = frame(peer)
            assert first == 0xC1, "FIN, RSV1 and TEXT"
            payloads.append(payload)
            messages[number].append(inflaters[number].decompress(payload + b"\0\0\xff\xff").decode())
        return payloads

    messages: list[list[str]] = [[] for _ in opened]
    fresh = []
    for _ in range(2):
        for live in lives:
            live.send(own)
        fresh.append(came()[0])
        on_their_loop(lives[0], lives, common)
        payloads = came()
        assert payloads[0] == payloads[1]
    assert messages == [[own, common] * 2] * 3
    assert fresh[0] == fresh[1], "the context of before is not the peer's any more"
    on_their_loop(lives[0], lives, "short")
    for _, peer in opened:
        peer.expect(TEXT, "short")


def test_a_client_masks_each_frame_with_its_own_key(opener: Opener) -> None:
    opened = [opener.open(Way("asyncio", "transport", False, CLIENT)) for _ in range(2)]
    lives = [live for live, _ in opened]
    on_their_loop(lives[0], lives, "masked")
    keys = []
    for _, peer in opened:
        assert peer._exactly(2) == b"\x81\x86"
        keys.append(peer._exactly(4))
        peer._exactly(6)
    assert keys[0] != keys[1]
    until(lambda: all(live.conn.stats.messages_sent == 1 for live in lives))
