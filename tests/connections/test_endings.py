"""The closing handshake (RFC 6455 section 7) and every other end, for every kind of connection."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import until
from tests.support.ways import ALL, CLIENT, FEW, IN_THREADS, PULLING, SERVER, Link, Way
from tests.support.wire_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WirePeer, close_payload
from watershed_mw import ConnectionClosed, LocalProtocolError, RemoteProtocolError

pulling = pytest.mark.parametrize("way", PULLING, ids=str)
few = pytest.mark.parametrize("way", FEW, ids=str)
# Who closes the TCP stream depends on the role, and how on TLS.
everywhere = pytest.mark.parametrize("way", ALL, ids=str)

MIB = 2**20


def pushing(conn: Any) -> None:
    """A handler for messages makes a connection push."""
    conn.on("text", lambda text: None)


# --- from either side -----------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("code, reason", [(1000, ""), (1001, "going"), (3000, "€" * 41), (4999, "x" * 123)])
def test_our_end_closes_the_connection(link: Link, code: int, reason: str) -> None:
    live, peer = link()
    over = live.run()
    ending = live.begin("end", reason, code=code)
    peer.expect_close(code, reason)
    peer.send_close(4000, "their words")
    peer.finish()
    assert over.result(LIMIT) == (4000, "their words")
    ending.result(LIMIT)
    assert live.endings.events == [("end", 4000, "their words")]
    assert (live.conn.close_code, live.conn.close_reason) == (4000, "their words")


@everywhere
@pytest.mark.parametrize("code, reason", [(1000, ""), (None, ""), (1013, "later"), (4999, "x" * 123)])
def test_the_peers_close_ends_the_connection(link: Link, code: int | None, reason: str) -> None:
    live, peer = link()
    over = live.run()
    peer.send_close(code, reason)
    peer.expect_close(code, reason)
    peer.finish()
    # Section 7.1.5: 1005 stands for a Close without a code.
    assert over.result(LIMIT) == (code or 1005, reason)
    assert live.endings.events == [("end", code or 1005, reason)]


@everywhere
def test_both_sides_may_close_at_once(link: Link) -> None:
    """One Close goes each way, whichever side is first."""
    live, peer = link()
    over = live.run()
    peer.send_close(4001, "theirs")
    ending = live.begin("end", "ours", code=4002)
    frame = peer.read()
    assert frame in ((CLOSE, close_payload(4001, "theirs"), True), (CLOSE, close_payload(4002, "ours"), True))
    peer.finish()
    assert over.result(LIMIT) == (4001, "theirs")
    ending.result(LIMIT)


@pytest.mark.advisory("CVE-2026-45736")
@few
@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70000, True, "1000"])
def test_an_invalid_code_is_refused(link: Link, code: Any) -> None:
    live, peer = link(setup=pushing)
    live.run()
    with pytest.raises(LocalProtocolError, match="close code"):
        live.call("end", "why", code=code)
    live.send("still open")
    peer.expect(TEXT, "still open")


@pytest.mark.advisory("CVE-2026-45736")
@few
@pytest.mark.parametrize("reason", ["x" * 124, "€" * 42, "\ud800", b"bytes", None])
def test_an_invalid_reason_is_refused(link: Link, reason: Any) -> None:
    live, peer = link(setup=pushing)
    live.run()
    with pytest.raises(LocalProtocolError, match="close reason"):
        live.call("end", reason)
    live.send("still open")
    peer.expect(TEXT, "still open")


def test_a_second_end_changes_nothing(link: Link) -> None:
    live, peer = link()
    over = live.run()
    endings = [live.begin("end", "first", code=4001)]
    peer.expect_close(4001, "first")
    endings.append(live.begin("end", "second", code=4002))
    peer.send_close(4001)
    peer.finish()
    for ending in endings:
        ending.result(LIMIT)
    assert over.result(LIMIT) == (4001, "")


def test_messages_after_our_close_are_still_delivered(link: Link) -> None:
    """Section 5.5.1: the peer may send until it has sent its own Close."""
    live, peer = link(record=("text",))
    over = live.run()
    live.begin("end", code=4000)
    peer.expect_close(4000)
    peer.write(peer.frame(TEXT, "on the way"), peer.frame(PING, b"no answer"), peer.frame(CLOSE, close_payload(4000)))
    peer.finish()
    assert over.result(LIMIT) == (4000, "")
    assert live.log.events == [("text", "on the way")]


def test_frames_after_the_peers_close_are_ignored(link: Link) -> None:
    live, peer = link(record=("text", "ping"))
    over = live.run()
    peer.write(peer.frame(CLOSE, close_payload(4000)), peer.frame(TEXT, "late"), b"\xff\xff\xff")
    peer.expect_close(4000)
    peer.finish()
    assert over.result(LIMIT) == (4000, "")
    assert live.log.events == []
    assert live.endings.events == [("end", 4000, "")]


@pulling
def test_replies_to_messages_before_the_peers_close_arrive(link: Link) -> None:
    live, peer = link()
    peer.write(*(peer.frame(TEXT, text) for text in "abc"), peer.frame(CLOSE, close_payload(1000)))
    for text in "abc":
        assert live.receive() == text
        live.send(text * 2)
    receiving = live.begin("receive", LIMIT)
    for text in "abc":
        peer.expect(TEXT, text * 2)
    peer.expect_close(1000)
    peer.finish()
    with pytest.raises(ConnectionClosed):
        receiving.result(LIMIT)


@pulling
def test_the_peers_close_is_answered_without_a_receiver(link: Link, way: Way) -> None:
    """An application that waits for something else has ``reply_timeout`` to reply."""
    live, peer = link(reply_timeout=0.05)
    if way.on_loop:
        peer.begin_close(4000)
        assert live.ended() == (4000, "")
    else:
        # No thread is running: the next call finds that the time is over.
        peer.send_close(4000)
        collecting = live.collect()
        peer.expect_close(4000)
        peer.finish()
        assert collecting.result(LIMIT) == []


# --- nothing is truncated -------------------------------------------------------------------------------


@pytest.mark.need(1)
@few
def test_everything_sent_before_the_end_reaches_a_slow_reader(link: Link) -> None:
    live, peer = link(small=True)
    over = live.run()
    sent = bytes(range(256)) * (MIB // 256)

    def send(conn: Any) -> None:
        for _ in range(8):
            conn.send(sent)

    sending = live.do(send)
    if live.conn.__class__.__name__ == "AsyncioConnection":
        sending.result(LIMIT)
        ending = live.begin("end", "all of it", code=4000)
    else:
        ending = live.do(lambda conn: (sending.result(LIMIT), conn.end("all of it", code=4000)))
    for _ in range(8):
        peer.expect(BINARY, sent)
    peer.expect_close(4000, "all of it")
    peer.send_close(4000)
    peer.finish()
    assert over.result(LIMIT) == (4000, "")
    ending.result(LIMIT)


@few
def test_everything_sent_before_answering_the_peers_close_arrives(link: Link) -> None:
    """A large reply is being sent when the peer starts to close."""
    reply = b"r" * (4 * MIB)
    live, peer = link(small=True, setup=lambda conn: conn.on("text", lambda text: conn.send(reply) and None))
    over = live.run()
    peer.write(peer.frame(TEXT, "ask"), peer.frame(CLOSE, close_payload(4000)))
    peer.expect(BINARY, reply)
    peer.expect_close(4000)
    peer.finish()
    assert over.result(LIMIT) == (4000, "")


# --- time-outs ------------------------------------------------------------------------------------------


@pytest.mark.need(1)
@everywhere
def test_a_peer_that_never_answers_our_close_is_dropped(link: Link) -> None:
    live, peer = link(close_timeout=0.1)
    over = live.run()
    ending = live.begin("end", code=4000)
    peer.expect_close(4000)
    peer.expect_end()
    ending.result(LIMIT)
    assert over.result(LIMIT) == (1006, "")
    assert live.endings.events == [("connection_reset",), ("end", 1006, "")]


@everywhere
def test_a_peer_that_never_ends_the_stream_is_dropped(link: Link, way: Way) -> None:
    """After both Close frames the server ends the TCP stream first, and neither side waits forever."""
    live, peer = link(close_timeout=0.1)
    over = live.run()
    peer.send_close(4000)
    peer.expect_close(4000)
    peer.expect_end()
    assert over.result(LIMIT) == (4000, "")
    assert live.endings.events == [("end", 4000, "")]


@pytest.mark.slow
@few
def test_a_peer_that_never_reads_cannot_delay_the_end(link: Link) -> None:
    live, peer = link(small=True, close_timeout=0.2)
    over = live.run()
    live.do(lambda conn: conn.send(b"x" * (4 * MIB)))
    until(lambda: live.conn.stats.messages_sent == 1)
    ending = live.begin("end")
    ending.result(LIMIT)
    assert over.result(LIMIT) == (1006, "")
    assert not peer.silent()


@pytest.mark.parametrize("way", IN_THREADS, ids=str)
def test_a_timeout_seen_by_one_thread_ends_the_wait_of_others(link: Link) -> None:
    live, peer = link(small=True, close_timeout=0.05, ping_interval=None)
    over = live.run()
    peer.send(PING)
    peer.expect(PONG)  # it reads
    sending = live.begin("send", b"x" * MIB)
    until(lambda: live.conn.stats.messages_sent == 1)
    live.call("start_close")
    peer.sock.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        for _ in range(64):
            peer.sock.recv(2**13)  # the writer writes on, and waits for no longer than close_timeout from now on
    with pytest.raises(ConnectionClosed):
        sending.result(LIMIT)
    assert over.result(LIMIT) == (1006, "")


# --- the peer vanishes ----------------------------------------------------------------------------------

VANISHING = {
    "RST": WirePeer.reset,
    "FIN": WirePeer.half_close,
    "close": WirePeer.close,
}
vanishing = pytest.mark.parametrize("vanish", VANISHING.values(), ids=VANISHING)
RESET = [("connection_reset",), ("end", 1006, "")]


@vanishing
def test_a_peer_that_vanishes_ends_an_open_connection(link: Link, vanish: Any) -> None:
    live, peer = link()
    over = live.run()
    vanish(peer)
    assert over.result(LIMIT) == (1006, "")
    assert live.endings.events == RESET


@vanishing
@pulling
def test_a_peer_that_vanishes_ends_a_receive(link: Link, vanish: Any) -> None:
    live, peer = link()
    peer.send(TEXT, "last")
    assert live.receive() == "last"
    receiving = live.begin("receive", LIMIT)
    vanish(peer)
    with pytest.raises(ConnectionClosed) as caught:
        receiving.result(LIMIT)
    assert caught.value.code == 1006
    live.ended()
    assert live.endings.events == RESET


@vanishing
def test_a_peer_may_vanish_within_a_message(link: Link, vanish: Any) -> None:
    live, peer = link(record=("text", "binary", "ping"))
    over = live.run()
    peer.send(PING)
    peer.write(peer.frame(TEXT, "half", fin=False), peer.frame(BINARY, b"x" * 100)[:20])
    peer.expect(PONG)
    vanish(peer)
    assert over.result(LIMIT) in ((1006, ""), (1002, live.conn.close_reason))


@vanishing
def test_a_peer_may_vanish_after_our_close(link: Link, vanish: Any) -> None:
    live, peer = link()
    over = live.run()
    ending = live.begin("end", code=4000)
    peer.expect_close(4000)
    vanish(peer)
    assert over.result(LIMIT) == (1006, "")
    ending.result(LIMIT)
    assert live.endings.events == RESET


@vanishing
def test_a_peer_may_vanish_after_its_close(link: Link, vanish: Any) -> None:
    """The peer has sent its Close, and that code counts."""
    live, peer = link()
    over = live.run()
    peer.send_close(4000, "bye")
    peer.expect_close(4000)
    vanish(peer)
    assert over.result(LIMIT) == (4000, "bye")
    assert live.endings.events == [("end", 4000, "bye")]


def test_messages_before_the_peers_fin_are_delivered(link: Link) -> None:
    live, peer = link(record=("text",))
    over = live.run()
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(50)))
    peer.half_close()
    assert over.result(LIMIT) == (1006, "")
    assert live.log.events == [("text", str(number)) for number in range(50)]
    assert live.endings.events == RESET


@few
def test_a_peer_may_vanish_while_we_write(link: Link) -> None:
    live, peer = link(small=True)
    over = live.run()
    sending = live.begin("send", b"x" * (4 * MIB))
    until(lambda: not peer.silent())
    peer.reset()
    assert over.result(LIMIT) == (1006, "")
    assert sending.exception(LIMIT) is None or isinstance(sending.exception(), ConnectionClosed)
    assert live.endings.events == RESET


# --- destroy --------------------------------------------------------------------------------------------


@everywhere
def test_destroy_sends_no_close_and_ends_with_1006(link: Link) -> None:
    live, peer = link()
    over = live.run()
    live.call("destroy")
    peer.expect_end()
    assert over.result(LIMIT) == (1006, "")
    assert live.endings.events == [("end", 1006, "")]
    with pytest.raises(ConnectionClosed):
        live.send("too late")


def test_destroy_may_be_the_first_call(link: Link) -> None:
    live, peer = link()
    live.call("destroy")
    peer.expect_end()
    assert live.ended() == (1006, "")
    live.call("destroy")
    live.call("end")
    assert live.endings.events == [("end", 1006, "")]


# --- the peer breaks the protocol -----------------------------------------------------------------------

VIOLATIONS: dict[str, tuple[int, Any]] = {
    "reserved bit": (1002, lambda peer: peer.frame(TEXT, "x", rsv=4)),
    "reserved opcode": (1002, lambda peer: peer.frame(0x3, "x")),
    "continuation of nothing": (1002, lambda peer: peer.frame(CONTINUATION, "x")),
    "fragmented ping": (1002, lambda peer: peer.frame(PING, "x", fin=False)),
    "long ping": (1002, lambda peer: peer.frame(PING, "x" * 126)),
    "wrong mask": (1002, lambda peer: WirePeer(peer.sock, SERVER if peer.role is CLIENT else CLIENT).frame(TEXT, "x")),
    "close code": (1002, lambda peer: peer.frame(CLOSE, close_payload(1005))),
    "close of one byte": (1002, lambda peer: peer.frame(CLOSE, b"\x03")),
    "no UTF-8": (1007, lambda peer: peer.frame(TEXT, b"\xff")),
    "no UTF-8 in a reason": (1007, lambda peer: peer.frame(CLOSE, b"\x03\xe8\xff")),
    "too big": (1009, lambda peer: peer.frame(BINARY, b"x" * 1001)),
    "too big in fragments": (1009, lambda peer: peer.frame(TEXT, "x" * 600, fin=False) + peer.frame(0, "x" * 600)),
    "2**62 bytes": (1009, lambda peer: _declared(peer, 2**62)),
}


def _declared(peer: WirePeer, size: int) -> bytes:
    masked = 0x80 if peer.role is CLIENT else 0
    return bytes([0x82, masked | 127]) + size.to_bytes(8, "big") + b"\0" * 4


@pytest.mark.parametrize("code, violation", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_answered_after_replies_to_earlier_messages(link: Link, code: int, violation: Any) -> None:
    # Over TLS the connection gives a peer that does not end the stream some time to do so. All is written by then.
    live, peer = link(setup=lambda conn: conn.on("text", conn.send), max_message_size=1000, close_timeout=0.05)
    over = live.run()
    peer.write(peer.frame(TEXT, "one"), peer.frame(TEXT, "two"), violation(peer))
    peer.expect(TEXT, "one")
    peer.expect(TEXT, "two")
    peer.expect_close(code)
    peer.expect_end()
    peer.close()
    assert over.result(LIMIT)[0] == code
    (error, failure), (end, end_code, reason) = live.endings.events
    assert (error, end, end_code) == ("error", "end", code)
    assert isinstance(failure, RemoteProtocolError)
    assert failure.close_code == code
    assert reason == str(failure) == live.conn.close_reason


@pytest.mark.slow
@pulling
def test_receive_raises_a_violation_after_earlier_messages(link: Link) -> None:
    live, peer = link()
    peer.write(peer.frame(TEXT, "one"), peer.frame(TEXT, b"\xff"))
    assert live.receive() == "one"
    live.send("reply")
    receiving = live.begin("receive", LIMIT)
    peer.expect(TEXT, "reply")
    peer.expect_close(1007)
    peer.expect_end()
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        receiving.result(LIMIT)
    assert caught.value.code == 1007
    assert isinstance(caught.value.__cause__, RemoteProtocolError)


@pytest.mark.slow
@few
def test_a_violation_does_not_cut_a_large_reply(link: Link) -> None:
    reply = b"r" * (4 * MIB)
    live, peer = link(small=True, setup=lambda conn: conn.on("text", lambda text: conn.send(reply) and None))
    over = live.run()
    peer.send(TEXT, "ask")
    until(lambda: not peer.silent())
    peer.send(TEXT, b"\xff")
    peer.expect(BINARY, reply)
    peer.expect_close(1007)
    peer.expect_end()
    peer.close()
    assert over.result(LIMIT)[0] == 1007


@pytest.mark.slow
@pytest.mark.need(1)
@few
def test_a_peer_that_continues_after_its_violation_still_gets_the_close(link: Link) -> None:
    """Its data is read and discarded, so that no RST can overtake our Close."""
    live, peer = link(setup=pushing)
    over = live.run()
    peer.write(peer.frame(TEXT, b"\xff"), peer.frame(BINARY, b"x" * (2 * MIB)))
    peer.expect_close(1007)
    peer.expect_end()
    peer.close()
    assert over.result(LIMIT)[0] == 1007


@pytest.mark.slow
@everywhere
def test_a_violation_after_our_close_ends_the_connection(link: Link) -> None:
    live, peer = link()
    over = live.run()
    ending = live.begin("end", code=4000)
    peer.expect_close(4000)
    peer.send(0x3, "reserved")
    peer.expect_end()
    peer.close()
    ending.result(LIMIT)
    assert over.result(LIMIT)[0] == 1002
    assert [event[0] for event in live.endings.events] == ["error", "end"]
