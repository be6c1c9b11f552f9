"""core/protocol.py: keepalive and timeouts, with a clock passed in (RFC 6455 sections 5.5.2 and 7.1.1).

No test waits: time is a number.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import failure, peer_key, plain
from tests.support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role, State

ROLES = [Role.SERVER, Role.CLIENT]
LIMITS = Limits(ping_interval=20, ping_timeout=15, close_timeout=10)
PING_SIZE = len(frame(PING, b"keepalive 1"))
SILENT = "expected an answer to a PING within 15 seconds (ping_timeout), got none"


def sent(subject: Protocol) -> list[wire.Frame]:
    """The outgoing frames of ``subject``."""
    return [wire.Frame(item.opcode, item.payload) for item in wire.frames(subject.data_to_send())]


def pinged(build: Build, role: Role = Role.SERVER, unsent: int = 0, limits: Limits = LIMITS) -> Protocol:
    """A protocol that sent its first keepalive PING at ``START + 20``, behind ``unsent`` bytes."""
    subject = build.make(role, limits)
    assert subject.handle_timeout(START + 20, unsent) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 1")]
    return subject


# --- the PING -------------------------------------------------------------------------------------


@pytest.mark.need(16)
@pytest.mark.parametrize("role", ROLES)
def test_a_ping_is_due_after_ping_interval(build: Build, role: Role) -> None:
    subject = build.make(role, LIMITS)
    assert subject.next_deadline() == START + 20
    assert subject.handle_timeout(START + 19.99, 0) == []
    assert sent(subject) == []
    assert subject.handle_timeout(START + 20, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 1")]


def test_data_does_not_postpone_the_ping(build: Build) -> None:
    # A proxy that drops idle streams counts each direction for itself.
    subject = build.make(limits=LIMITS)
    subject.receive_data(frame(TEXT, b"x", key=wire.KEY), START + 19)
    assert subject.next_deadline() == START + 20


def test_pings_continue_while_they_are_answered(build: Build) -> None:
    subject = pinged(build)
    for number in (2, 3, 4):
        now = START + 20 * number
        pong = frame(PONG, b"keepalive %d" % (number - 1), key=wire.KEY)
        subject.receive_data(pong, now - 19.5)
        assert subject.latency == 0.5
        assert subject.next_deadline() == now
        assert subject.handle_timeout(now, 0) == []
        assert sent(subject) == [wire.Frame(PING, b"keepalive %d" % number)]


@pytest.mark.need(16)
def test_no_interval_means_no_keepalive(build: Build) -> None:
    subject = build.make(limits=Limits(ping_interval=None, ping_timeout=15))
    assert subject.next_deadline() is None
    assert subject.handle_timeout(START + 10**6, 0) == []
    assert sent(subject) == []
    assert subject.state is State.OPEN


def test_an_application_ping_is_not_a_keepalive_ping(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.ping(b"mine", START + 1)
    assert subject.next_deadline() == START + 20


def test_the_answer_to_an_application_ping_counts_as_activity(build: Build) -> None:
    subject = pinged(build)
    subject.receive_data(frame(PONG, b"other", key=wire.KEY), START + 21)
    assert subject.next_deadline() == START + 40


# --- the answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_silent_peer_is_dropped_with_1011(build: Build, role: Role) -> None:
    subject = pinged(build, role)
    assert subject.next_deadline() == START + 35
    assert subject.handle_timeout(START + 34.99, 0) == []
    (event,) = plain(subject.handle_timeout(START + 35, 0))
    assert failure(event) == (SILENT, 1011)
    assert sent(subject) == [wire.Frame(CLOSE, b"\x03\xf3" + SILENT.encode())]
    assert (subject.state, subject.close_code, subject.close_reason) == (State.ENDING, 1011, SILENT)
    assert subject.half_close
    assert subject.next_deadline() == START + 45
    assert subject.handle_timeout(START + 45, 0) == []
    assert (subject.state, subject.reset) == (State.CLOSED, False)


def test_without_a_timeout_silence_is_tolerated(build: Build) -> None:
    subject = build.make(limits=Limits(ping_interval=20, ping_timeout=None))
    for number in range(1, 6):
        assert subject.next_deadline() == START + 20 * number
        assert subject.handle_timeout(START + 20 * number, 0) == []
        assert sent(subject) == [wire.Frame(PING, b"keepalive %d" % number)]
    assert subject.state is State.OPEN


@pytest.mark.need(16)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_any_byte_from_the_peer_counts_as_activity(build: Build, role: Role, size: int) -> None:
    # uvicorn#2884, websockets#501: a large message that is on its way is no silence.
    subject = pinged(build, role)
    data = frame(TEXT, b"a large message", key=peer_key(role))
    subject.receive_data(data[:size], START + 34)
    assert subject.next_deadline() == START + 40
    assert subject.handle_timeout(START + 35, 0) == []
    assert subject.state is State.OPEN
    assert subject.handle_timeout(START + 40, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 2")]


def test_an_empty_read_is_not_activity(build: Build) -> None:
    subject = pinged(build)
    subject.receive_data(b"", START + 34)
    assert subject.next_deadline() == START + 35


def test_activity_before_the_ping_does_not_answer_it(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.receive_data(frame(TEXT, b"x", key=wire.KEY), START + 19.9)
    subject.handle_timeout(START + 20, 0)
    assert subject.next_deadline() == START + 35


def test_a_late_answer_does_not_delay_the_next_ping(build: Build) -> None:
    limits = Limits(ping_interval=20, ping_timeout=100)
    subject = pinged(build, limits=limits)
    assert subject.next_deadline() == START + 120
    subject.receive_data(frame(PONG, b"keepalive 1", key=wire.KEY), START + 90)
    assert subject.latency == 70.0
    assert subject.next_deadline() == START + 40
    assert subject.handle_timeout(START + 90, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 2")]
    assert subject.next_deadline() == START + 190


def test_a_clock_that_jumps_past_both_deadlines_sends_the_ping_first(build: Build) -> None:
    # A laptop that slept: the peer gets its chance to answer.
    subject = build.make(limits=LIMITS)
    assert subject.handle_timeout(START + 10_000, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 1")]
    assert subject.next_deadline() == START + 10_015


# --- a large message that goes out slowly ---------------------------------------------------------


@pytest.mark.need(16)
def test_a_peer_that_reads_is_alive(build: Build) -> None:
    # The PING waits behind a large message: it cannot have been seen.
    subject = pinged(build, unsent=100_000)
    now = START + 20
    for left in (60_000, 59_999, PING_SIZE + 1, 0):
        deadline = subject.next_deadline()
        assert deadline == now + 15
        now = deadline
        assert subject.handle_timeout(now, left) == []
        assert (sent(subject), subject.state) == ([], State.OPEN)
    (event,) = plain(subject.handle_timeout(now + 15, 0))
    assert failure(event) == (SILENT, 1011)


def test_a_peer_that_does_not_read_is_dropped(build: Build) -> None:
    subject = pinged(build, unsent=100_000)
    assert subject.handle_timeout(START + 35, 50_000 + PING_SIZE) == []
    (event,) = plain(subject.handle_timeout(START + 50, 50_000 + PING_SIZE))
    assert failure(event) == (SILENT, 1011)


def test_data_sent_after_the_ping_does_not_hide_that_the_peer_reads_earlier_data(build: Build) -> None:
    # A stream to a slow client: there is always as much unsent as there was.
    subject = pinged(build, unsent=100_000)
    subject.send_binary(bytes(50_000))
    written = len(subject.data_to_send())
    # 40,000 of the 100,000 bytes before the PING have been taken.
    assert subject.handle_timeout(START + 35, 60_000 + PING_SIZE + written) == []
    assert subject.state is State.OPEN


def test_data_sent_after_the_ping_does_not_count_as_activity(build: Build) -> None:
    # The kernel's buffer takes small messages for a long time after the peer has gone.
    subject = pinged(build, unsent=0)
    subject.send_text("into the void")
    subject.data_to_send()
    (event,) = plain(subject.handle_timeout(START + 35, 0))
    assert failure(event) == (SILENT, 1011)


def test_silence_is_not_counted_while_we_do_not_read(build: Build) -> None:
    subject = pinged(build)
    subject.read_paused = True
    for number in range(1, 4):
        assert subject.handle_timeout(START + 20 + 15 * number, 0) == []
        assert subject.state is State.OPEN
    subject.read_paused = False
    (event,) = plain(subject.handle_timeout(START + 80, 0))
    assert failure(event) == (SILENT, 1011)


def test_silence_is_not_counted_while_a_backlog_waits(build: Build) -> None:
    """Nothing is read before the backlog is consumed, which may be long after the PING: the answer is unread."""
    subject = build.make(limits=replace(LIMITS, max_queued_messages=1))
    data = b"".join(frame(TEXT, b"x", key=wire.KEY) for _ in range(6))
    assert len(subject.receive_step(data, len(data), START + 1)) == 2
    assert subject.handle_timeout(START + 20, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 1")]
    assert subject.handle_timeout(START + 36, 0) == []
    assert len(subject.receive_more(START + 60)) == 2
    assert subject.handle_timeout(START + 60, 0) == []
    assert len(subject.receive_more(START + 90)) == 2  # the last of it: reading may resume
    assert not subject.receiver.backlog
    assert subject.handle_timeout(START + 90, 0) == []
    assert subject.next_deadline() == START + 105
    (event,) = plain(subject.handle_timeout(START + 105, 0))
    assert failure(event) == (SILENT, 1011)


def test_a_peer_that_does_not_read_is_dropped_even_while_we_do_not_read(build: Build) -> None:
    # Both sides wait for the other to read: only an end helps.
    subject = pinged(build, unsent=1000)
    subject.read_paused = True
    (event,) = plain(subject.handle_timeout(START + 35, 1000 + PING_SIZE))
    assert failure(event) == (SILENT, 1011)


# --- the end of keepalive -------------------------------------------------------------------------


@pytest.mark.parametrize("unanswered", [True, False])
def test_keepalive_ends_with_our_close(build: Build, unanswered: bool) -> None:
    subject = pinged(build) if unanswered else build.make(limits=LIMITS)
    subject.close(1000, "", START + 21)
    subject.data_to_send()
    assert subject.next_deadline() == START + 31
    assert subject.handle_timeout(START + 30.99, 0) == []
    assert sent(subject) == []
    subject.handle_timeout(START + 31, 0)
    assert subject.state is State.CLOSED


def test_nothing_is_due_after_the_end(build: Build) -> None:
    subject = pinged(build)
    subject.receive_eof()
    assert subject.next_deadline() is None
    assert subject.handle_timeout(START + 10**6, 0) == []
    assert sent(subject) == []


@pytest.mark.parametrize("now", [0, 0.0, -5.0, 1e9])
def test_the_clock_may_start_at_any_value(build: Build, now: float) -> None:
    subject = build.make(limits=LIMITS, now=now)
    assert subject.next_deadline() == now + 20
    subject.handle_timeout(now + 20, 0)
    (event,) = plain(subject.handle_timeout(now + 35, 0))
    assert failure(event) == (SILENT, 1011)


@pytest.mark.parametrize("timeout, text", [(15, "15"), (15.0, "15"), (0.5, "0.5"), (1e-3, "0.001")])
def test_the_refusal_states_the_elapsed_time(build: Build, timeout: float, text: str) -> None:
    subject = pinged(build, limits=Limits(ping_interval=20, ping_timeout=timeout))
    (event,) = plain(subject.handle_timeout(START + 40, 0))
    assert failure(event)[0] == f"expected an answer to a PING within {text} seconds (ping_timeout), got none"


@given(
    interval=st.none() | st.floats(0.01, 100),
    timeout=st.none() | st.floats(0.01, 100),
    happenings=st.lists(st.tuples(st.sampled_from(["deadline", "data"]), st.floats(0.001, 50)), max_size=20),
)
def test_a_peer_that_answers_within_ping_timeout_is_never_dropped(
    build: Build, interval: float | None, timeout: float | None, happenings: list[tuple[str, float]]
) -> None:
    subject = build.make(limits=Limits(ping_interval=interval, ping_timeout=timeout))
    now = START
    for what, later in happenings:
        if what == "data":
            now += later
            subject.receive_data(frame(TEXT, b"x", key=wire.KEY), now)
        # Everything that is due by now is done, and every PING is answered a moment later.
        for _ in range(50):
            deadline = subject.next_deadline()
            if deadline is None or deadline > now + later:
                break
            now = max(now, deadline)
            assert subject.handle_timeout(now, 0) == []
            for item in sent(subject):
                assert item.opcode == PING
                now += 1e-6
                subject.receive_data(frame(PONG, item.payload, key=wire.KEY), now)
    assert subject.state is State.OPEN


# --- what arrives too slowly ------------------------------------------------------------------------


SLOW = Limits(ping_interval=None, message_timeout=30)
MASKED_TEXT = frame(TEXT, b"x" * 1000, key=wire.KEY)


def too_slow(size: int, seconds: int, timeout: str = "30") -> tuple[str, int]:
    return (
        (
            f"message too slow: at least 512 bytes per second after {timeout} seconds (message_timeout), got {size} "
            f"bytes in {seconds} seconds"
        ),
        1008,
    )


def trickle(subject: Protocol, data: bytes, every: float, now: float = START) -> float:
    """Deliver ``data`` one byte every few seconds, and keep time; return the time of the last byte."""
    for index in range(len(data)):
        now += every
        deadline = subject.next_deadline()
        if deadline is not None and deadline <= now and (events := subject.handle_timeout(deadline, 0)):
            raise AssertionError(f"failed after {index} bytes, {deadline - START:.1f} s: {plain(events)}")
        subject.receive_data(data[index : index + 1], now)
    return now


@pytest.mark.need(16)
@pytest.mark.parametrize(
    "data",
    [
        MASKED_TEXT,
        wire.message(TEXT, [b"x"] * 200, key=wire.KEY),
        frame(TEXT, b"x", fin=False, key=wire.KEY) + frame(PING, b"p", key=wire.KEY) * 50,
        frame(PING, b"p" * 125, key=wire.KEY),
    ],
    ids=["payload", "fragments", "PINGs within a message", "a control frame"],
)
def test_a_trickling_message_fails_with_1008(build: Build, data: bytes) -> None:
    subject = build.make(limits=SLOW)
    with pytest.raises(AssertionError, match=r"failed after 31 bytes, 31\.1 s: .*message_timeout.*1008"):
        trickle(subject, data, 1)


@pytest.mark.need(16)
def test_the_refusal_states_the_measured_rate(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.receive_data(MASKED_TEXT[:512], START)
    assert subject.next_deadline() == START + 31
    assert subject.handle_timeout(START + 30.99, 0) == []
    (event,) = plain(subject.handle_timeout(START + 31, 0))
    assert failure(event) == too_slow(512, 31)
    assert subject.state is not State.OPEN


def test_half_a_header_begins_a_message(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.receive_data(MASKED_TEXT[:1], START)
    assert subject.handle_timeout(START + 30, 0) == []
    (event,) = plain(subject.handle_timeout(START + 30.01, 0))
    assert failure(event) == too_slow(1, 30)


def test_a_message_at_the_minimum_rate_may_take_any_time(build: Build) -> None:
    subject = build.make(limits=SLOW)
    payload = bytes(600 * 1000)
    data = frame(wire.BINARY, payload, key=wire.KEY)
    now = START
    events = []
    for index in range(0, len(data), 600):
        now += 1
        assert subject.handle_timeout(now, 0) == []
        events += subject.receive_data(data[index : index + 600], now)
    assert events == [payload]
    assert subject.next_deadline() is None


def test_bytes_received_at_once_count_in_full_in_any_number_of_steps(build: Build) -> None:
    subject = build.make(limits=SLOW)
    piece = frame(CONTINUATION, bytes(1024), fin=False, key=wire.KEY)
    burst = frame(BINARY, fin=False, key=wire.KEY) + piece * 200
    assert subject.receive_data(burst, START) == []
    assert subject.next_deadline() == pytest.approx(START + 30 + len(burst) / 512)
    assert subject.receive_data(piece, START + 50) == []
    assert subject.next_deadline() == pytest.approx(START + 30 + (len(burst) + len(piece)) / 512)
    assert subject.handle_timeout(START + 50, 0) == []


def test_each_message_has_its_own_deadline(build: Build) -> None:
    subject = build.make(limits=SLOW)
    now = trickle(subject, frame(TEXT, b"x" * 12, key=wire.KEY) * 20, 1.2)
    assert subject.counts().messages_received == 20
    # The end of one message and the beginning of the next in one read, forever.
    whole = frame(TEXT, b"x" * 100, key=wire.KEY)
    subject.receive_data(whole[:50], now)
    for _ in range(50):
        now += 20
        assert subject.handle_timeout(now, 0) == []
        subject.receive_data(whole[50:] + whole[:50], now)
    assert subject.counts().messages_received == 70


def test_between_messages_there_is_no_time_limit(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.receive_data(MASKED_TEXT[:10], START)
    assert subject.next_deadline() is not None
    subject.receive_data(MASKED_TEXT[10:], START + 1)
    assert subject.next_deadline() is None
    assert subject.handle_timeout(START + 10**6, 0) == []


def test_a_large_message_read_in_place_has_the_same_limit(build: Build) -> None:
    subject = build.make(limits=SLOW)
    data = frame(wire.BINARY, bytes(200_000), key=wire.KEY)
    subject.receive_data(data[:100_000], START)
    rest = data[100_000:]
    subject.receiver.get_buffer()[:1000] = rest[:1000]
    subject.receive_in_place(1000, START + 1)
    assert subject.next_deadline() == START + 30 + 101_000 / 512
    while subject.receiver.payload_to_come():
        size = min(len(subject.receiver.get_buffer()), subject.receiver.payload_to_come())
        subject.receiver.get_buffer()[:size] = bytes(size)
        subject.receive_in_place(size, START + 2)
    assert subject.next_deadline() is None


def test_time_without_reading_does_not_count(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.receive_data(MASKED_TEXT[:512], START)
    subject.reading_paused(START + 10)
    assert subject.next_deadline() is None
    assert subject.handle_timeout(START + 1000, 0) == []
    subject.reading_resumed(START + 1000)
    assert subject.next_deadline() == START + 1000 + 21
    subject.liveness.was_not_read(START + 1005, START + 1015)
    assert subject.next_deadline() == START + 1000 + 31
    (event,) = plain(subject.handle_timeout(START + 1031, 0))
    assert failure(event) == too_slow(512, 31)


def test_a_pause_that_started_before_the_message_counts_from_its_beginning(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.reading_paused(START)
    subject.receive_data(MASKED_TEXT[:512], START + 50)  # it had been read already
    subject.reading_resumed(START + 60)
    assert subject.next_deadline() == START + 60 + 31


def test_keepalive_continues_while_a_message_arrives(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.receive_data(MASKED_TEXT[:512], START + 10)
    assert subject.handle_timeout(START + 20, 0) == []
    assert sent(subject) == [wire.Frame(PING, b"keepalive 1")]
    subject.receive_data(MASKED_TEXT[512:524], START + 21)
    assert subject.next_deadline() == START + 40


@pytest.mark.parametrize("role", ROLES)
def test_without_message_timeout_a_message_may_trickle(build: Build, role: Role) -> None:
    subject = build.make(role, Limits(ping_interval=None, message_timeout=None))
    data = frame(TEXT, b"x" * 1000, key=peer_key(role))
    trickle(subject, data, 100)
    assert subject.counts().messages_received == 1


def test_after_the_close_only_close_timeout_applies(build: Build) -> None:
    subject = build.make(limits=SLOW)
    subject.receive_data(MASKED_TEXT[:512], START)
    subject.close(1000, "", START + 25)
    assert subject.next_deadline() == START + 35
