"""Keepalive: a peer that does not answer is dropped, and no other (RFC 6455 section 5.5.2)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import in_thread, until
from tests.support.ways import EACH, FEW, FEW_PULLING, SERVER, Link, Live, Way
from tests.support.wire_peer import BINARY, PING, PONG, TEXT, WirePeer
from watershed_mw import ConnectionClosed, RemoteProtocolError

few = pytest.mark.parametrize("way", FEW, ids=str)
# A TLS socket of the standard library cannot be read and written by two threads at once: here the peer does both.
plain = pytest.mark.parametrize("way", [way for way in EACH if not way.tls], ids=str)
few_pulling = pytest.mark.parametrize("way", FEW_PULLING, ids=str)
each = pytest.mark.parametrize("way", EACH, ids=str)
QUICK = {"ping_interval": 0.03, "ping_timeout": 0.06, "close_timeout": 0.1}
# Quick, and yet long enough for a busy machine to answer in time.
PATIENT = {"ping_interval": 0.05, "ping_timeout": LIMIT}
# Where the length of time is what a test is about: a busy machine may hold a program up for as long as TIMEOUT.
TIMEOUT, LONGER = 1.5, 2.0
MIB = 2**20


def given_up(live: Live, over: Any) -> None:
    code, reason = over.result(LIMIT)
    assert code == 1011
    assert "ping_timeout" in reason
    (error, failure), end = live.endings.events
    assert error == "error"
    assert isinstance(failure, RemoteProtocolError)
    assert end == ("end", 1011, reason)


@pytest.mark.need(16)
@each
def test_a_silent_peer_is_dropped(link: Link) -> None:
    live, peer = link(**QUICK)
    over = live.run()
    frame = peer.read()
    assert frame.opcode == PING
    peer.expect_close(1011)
    given_up(live, over)


@few_pulling
def test_a_silent_peer_is_dropped_while_a_receive_waits(link: Link) -> None:
    live, peer = link(**QUICK)
    receiving = live.begin("receive", LIMIT)
    assert peer.read().opcode == PING
    peer.expect_close(1011)
    with pytest.raises(ConnectionClosed) as caught:
        receiving.result(LIMIT)
    assert caught.value.code == 1011
    assert isinstance(caught.value.__cause__, RemoteProtocolError)


@pytest.mark.need(16)
@few
def test_a_peer_that_answers_is_kept_and_its_latency_is_known(link: Link) -> None:
    live, peer = link(record=("text",), **PATIENT)
    live.run()
    began = time.monotonic()
    for _ in range(5):
        frame = peer.read()
        assert frame.opcode == PING
        assert frame.payload
        peer.send(PONG, frame.payload)
    # At every ping_interval, even if ping_timeout is longer.
    assert time.monotonic() - began < PATIENT["ping_timeout"]
    peer.send(TEXT, "still there")
    live.log.wait_for("text", "still there")
    until(lambda: live.conn.latency is not None)
    assert 0 <= live.conn.latency < LIMIT


@pytest.mark.slow
@pytest.mark.need(16)
@few
def test_a_peer_that_sends_but_answers_no_ping_is_kept(link: Link) -> None:
    """Any byte is a sign of life."""
    live, peer = link(record=("text",), ping_interval=0.05, ping_timeout=TIMEOUT)
    over = live.run()
    began = time.monotonic()
    pings = 0
    while time.monotonic() < began + LONGER:  # a length of time is what this is about
        peer.send(TEXT, "busy")
        if not peer.silent():
            assert peer.read().opcode == PING
            pings += 1
        threading.Event().wait(0.01)
    assert pings
    assert not over.done()
    assert live.conn.close_code is None


@pytest.mark.slow
@pytest.mark.need(16)
@few
def test_a_peer_that_trickles_one_message_is_kept(link: Link) -> None:
    live, peer = link(record=("text",), ping_interval=0.05, ping_timeout=TIMEOUT)
    over = live.run()
    frame, position = peer.frame(TEXT, "x" * 2000), 0
    began = time.monotonic()
    while time.monotonic() < began + LONGER:
        peer.write(frame[position : position + 1])
        position += 1
        threading.Event().wait(0.01)
    assert position < len(frame), "the message was too short for this"
    peer.write(frame[position:])
    live.log.wait_for("text")
    assert not over.done()


@pytest.mark.need(16)
@few
def test_without_keepalive_no_ping_is_sent(link: Link) -> None:
    live, peer = link(record=("text",), ping_interval=None, ping_timeout=0.01)
    over = live.run()
    threading.Event().wait(0.1)
    assert peer.silent()
    peer.send(TEXT, "there")
    live.log.wait_for("text", "there")
    assert not over.done()


@few
def test_without_a_timeout_no_peer_is_dropped(link: Link) -> None:
    live, peer = link(record=("text",), ping_interval=0.02, ping_timeout=None)
    over = live.run()
    for _ in range(5):
        assert peer.read().opcode == PING
    assert not over.done()


# --- delays on this side ----------------------------------------------------------------------------------


@pytest.mark.slow
@plain
def test_an_application_that_is_slow_to_take_messages_is_not_blamed_on_the_peer(link: Link, way: Way) -> None:
    """The receive queue is full, so PONGs stay unread."""
    gate = threading.Event()

    def setup(conn: Any) -> None:
        if not way.on_loop:
            conn.on("binary", lambda data: gate.wait(LIMIT) and None)

    live, peer = link(
        small=True, setup=setup, max_queued_messages=2, ping_interval=0.05, ping_timeout=0.1, close_timeout=0.2
    )
    over = None if way.on_loop else live.run()
    answering = in_thread(lambda: _answer_pings(peer))
    peer.write(*(peer.frame(BINARY, b"x" * 10) for _ in range(20)))
    threading.Event().wait(0.5)  # several times ping_timeout: elapsed time is the subject
    assert live.conn.close_code is None
    gate.set()
    if over is None:
        assert [live.receive() for _ in range(20)] == [b"x" * 10] * 20
    else:
        until(lambda: live.conn.stats.messages_received == 20)
        assert not over.done()
    assert live.conn.close_code is None
    live.call("destroy")
    answering.result(LIMIT)


def _answer_pings(peer: WirePeer) -> None:
    try:
        while True:
            frame = peer.read()
            if frame.opcode == PING:
                peer.send(PONG, frame.payload)
    except (EOFError, OSError):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("way", [Way("threads", "socket", False, SERVER)], ids=str)
def test_a_busy_thread_still_finds_the_peers_answer(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was read meanwhile, as the watcher is switched off: the PONG has been there all the time."""
    monkeypatch.setattr("watershed_mw.connection.threads.watcher._enabled", False)
    live, peer = link(ping_interval=0.05, ping_timeout=0.1)
    receiving = live.begin("receive", 0.07)
    frame = peer.read()
    assert frame.opcode == PING
    peer.send(PONG, frame.payload)
    with pytest.raises(TimeoutError):
        receiving.result(LIMIT)
    for method, argument in (("receive", 0.0), ("send", "x"), ("receive", 0.0)):
        threading.Event().wait(0.3)
        try:
            live.call(method, argument)
        except TimeoutError:
            pass
        assert live.conn.close_code is None
        while not peer.silent():
            frame = peer.read()
            if frame.opcode == PING:
                peer.send(PONG, frame.payload)


@pytest.mark.parametrize("way", [Way("threads", "socket", False, SERVER)], ids=str)
def test_a_busy_thread_may_send_more_than_the_kernel_buffers(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receive queue is full, so the PONG cannot be read; the peer reads, and is only slow at this moment."""
    monkeypatch.setattr("watershed_mw.connection.threads.watcher._enabled", False)
    live, peer = link(small=True, max_queued_messages=1, ping_interval=0.05, ping_timeout=0.1, close_timeout=0.2)
    receiving = live.begin("receive", 0.07)
    frame = peer.read()
    assert frame.opcode == PING
    with pytest.raises(TimeoutError):
        receiving.result(LIMIT)
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(10)), peer.frame(PONG, frame.payload))
    assert live.receive() == "0"  # the others are in the queue, and the PONG perhaps not yet read
    threading.Event().wait(0.3)
    sending = live.begin("send", b"x" * (4 * MIB))
    threading.Event().wait(0.05)
    reading = in_thread(lambda: _read_message(peer))
    sending.result(LIMIT)
    assert reading.result(LIMIT) == 4 * MIB
    assert [live.receive() for _ in range(9)] == [str(number) for number in range(1, 10)]


def _read_message(peer: WirePeer) -> int:
    while True:
        frame = peer.read()
        if frame.opcode == BINARY:
            return len(frame.payload)
        if frame.opcode == PING:
            peer.send(PONG, frame.payload)


@pytest.mark.slow
@pytest.mark.need(16)
@plain
def test_a_peer_that_reads_slowly_is_kept(link: Link) -> None:
    """The peer cannot see the PING behind a large message, but is reading the message."""
    live, peer = link(small=True, record=("text",), ping_interval=0.05, ping_timeout=TIMEOUT, close_timeout=0.2)
    over = live.run()
    sending = live.begin("send", bytes(2 * MIB))
    began = time.monotonic()
    received = 0
    while received < 2 * MIB:
        piece = peer.sock.recv(MIB // 64)
        assert piece, "it was given up"
        received += len(piece)
        threading.Event().wait(0.02)
    assert time.monotonic() - began > TIMEOUT, "the message was too short for this"
    sending.result(LIMIT)
    assert not over.done()
    assert live.conn.close_code is None


@few
def test_a_peer_that_never_reads_is_dropped_while_we_send(link: Link) -> None:
    live, peer = link(small=True, **QUICK)
    over = live.run()
    sending = live.begin("send", bytes(8 * MIB))
    assert over.result(LIMIT)[0] == 1011
    error = sending.exception(LIMIT)
    assert error is None or isinstance(error, ConnectionClosed)
    assert not peer.silent()


@pytest.mark.need(16)
@each
def test_a_trickling_message_ends_the_connection(link: Link) -> None:
    """Every byte of it counts as activity, and PINGs are answered: it would hold its memory forever."""
    live, peer = link(ping_interval=None, message_timeout=0.1, close_timeout=0.2)
    over = live.run()
    data = memoryview(peer.frame(BINARY, bytes(1000)))
    stop = threading.Event()

    def trickle() -> None:
        for index in range(len(data)):
            try:
                peer.sock.sendall(data[index : index + 1])
            except OSError:
                return
            if stop.wait(0.02):
                return

    trickling = in_thread(trickle)
    code, reason = over.result(LIMIT)
    stop.set()
    assert (code, "message_timeout" in reason) == (1008, True)
    trickling.result(LIMIT)
    peer.expect_close(1008)


@pytest.mark.slow
@few_pulling
def test_time_without_reading_does_not_count_against_the_peer(link: Link) -> None:
    live, peer = link(ping_interval=None, message_timeout=0.2, max_queued_messages=1)
    peer.write(peer.frame(TEXT, "1"), peer.frame(TEXT, "2"), peer.frame(TEXT, "3")[:4])
    assert live.receive() == "1"
    threading.Event().wait(0.5)  # no event to wait for: nothing is read, and no peer is dropped
    peer.write(peer.frame(TEXT, "3")[4:])
    assert [live.receive(), live.receive()] == ["2", "3"]
