"""core/protocol.py: the closing handshake, failing, the end of the stream (RFC 6455 sections 5.5.1, 7.1 and 7.2).

It also walks every pair of the state table through the protocol, and checks that no other pair does anything.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import deliver, failure, feed, peer_key, plain
from tests.support.memory import measured
from tests.support.wire import BINARY, CLOSE, PING, PONG, TEXT, frame
from watershed_mw.core.events import CloseReceived, Ping
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import TRANSITIONS, Role, State, Trigger
from watershed_mw.errors import ConnectionClosed, LocalProtocolError

ROLES = [Role.SERVER, Role.CLIENT]
LIMITS = Limits(ping_interval=20, ping_timeout=20, close_timeout=10, reply_timeout=1)


class Walk:
    """A protocol, and the events that a driver can cause."""

    def __init__(self, build: Build, role: Role) -> None:
        self.key = peer_key(role)
        self.subject: Protocol = build.make(role, LIMITS)
        self.now = START

    def to(self, state: State) -> None:
        """Bring a new protocol to ``state``."""
        # Without a message nothing would have to be handed over, and the states in between were skipped.
        self.subject.receive_data(frame(TEXT, b"a message", key=self.key), self.now)
        for trigger in {
            State.OPEN: [],
            State.ANSWERING: [Trigger.PEER_CLOSE],
            State.FAILING: [Trigger.VIOLATION],
            State.CLOSING: [Trigger.LOCAL_CLOSE],
            State.ENDING: [Trigger.LOCAL_CLOSE, Trigger.PEER_CLOSE],
            State.CLOSED: [Trigger.EOF],
        }[state]:
            self.pull(trigger)
        assert self.subject.state is state

    def pull(self, trigger: Trigger) -> None:
        """Cause the event that ``trigger`` stands for."""
        happenings: dict[Trigger, Callable[[], object]] = {
            Trigger.LOCAL_CLOSE: lambda: self.subject.close(1000, "", self.now),
            Trigger.PEER_CLOSE: lambda: self.subject.receive_data(wire.close(1001, "x", key=self.key), self.now),
            Trigger.VIOLATION: lambda: self.subject.receive_data(b"\xff\xff", self.now),
            Trigger.HANDED_OVER: lambda: self.subject.messages_handed_over(self.now),
            Trigger.PEER_SILENT: self._stay_silent,
            Trigger.TIMEOUT: self._time_out,
            Trigger.EOF: self.subject.receive_eof,
            Trigger.ABORT: self.subject.abort,
        }
        happenings[trigger]()

    def _stay_silent(self) -> None:
        for _ in range(2):  # one deadline sends the PING, the next gives up
            self._time_out()

    def _time_out(self) -> None:
        deadline = self.subject.next_deadline()
        if deadline is not None:
            self.now = deadline
            self.subject.handle_timeout(self.now, 0)


# --- the table ------------------------------------------------------------------------------------

PAIRS = [(state, trigger) for state, row in TRANSITIONS.items() for trigger in row]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state, trigger", PAIRS, ids=lambda item: item.name)
def test_every_transition_of_the_table_is_reached(build: Build, role: Role, state: State, trigger: Trigger) -> None:
    walk = Walk(build, role)
    walk.to(state)
    walk.pull(trigger)
    assert walk.subject.state is TRANSITIONS[state][trigger]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", State, ids=lambda item: item.name)
@pytest.mark.parametrize(
    "trigger",
    # Time is the one thing that cannot be told apart from outside: what is due depends on the state.
    [item for item in Trigger if item not in (Trigger.TIMEOUT, Trigger.PEER_SILENT)],
    ids=lambda item: item.name,
)
def test_no_other_trigger_has_an_effect(build: Build, role: Role, state: State, trigger: Trigger) -> None:
    if trigger in TRANSITIONS[state]:
        return
    walk = Walk(build, role)
    walk.to(state)
    walk.subject.data_to_send()
    before = walk.subject.next_deadline(), walk.subject.close_code, walk.subject.close_reason
    walk.pull(trigger)
    assert walk.subject.state is state
    assert walk.subject.data_to_send() == b""
    assert (walk.subject.next_deadline(), walk.subject.close_code, walk.subject.close_reason) == before


@pytest.mark.parametrize(
    "state, sending, ended",
    [
        (State.OPEN, True, False),
        (State.ANSWERING, True, False),
        (State.FAILING, True, False),
        (State.CLOSING, False, False),
        (State.ENDING, False, True),
        (State.CLOSED, False, True),
    ],
)
def test_every_state_allows_or_refuses_sending(build: Build, state: State, sending: bool, ended: bool) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(state)
    subject = walk.subject
    subject.data_to_send()
    assert (subject.sending, subject.ended) == (sending, ended)
    assert (subject.close_code is not None, subject.close_reason is not None) == (ended, ended)
    if sending:
        subject.send_text("x")
        assert len(wire.frames(subject.data_to_send())) == 1
    else:
        with pytest.raises(ConnectionClosed):
            subject.send_text("x")
        assert subject.data_to_send() == b""


@pytest.mark.parametrize("state", State, ids=lambda item: item.name)
def test_an_invalid_code_or_reason_is_a_local_error_in_every_state(build: Build, state: State) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(state)
    walk.subject.data_to_send()
    for code, reason in ((1006, ""), (999, ""), (1000, "x" * 124), (1000, "\ud800"), (1005, "x")):
        with pytest.raises(LocalProtocolError):
            walk.subject.close(code, reason, START)
    assert walk.subject.state is state
    assert walk.subject.data_to_send() == b""


# --- we close first -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_our_close_waits_for_the_peers(build: Build, role: Role) -> None:
    subject = build.make(role, LIMITS)
    subject.send_text("last")
    subject.close(1000, "bye", START + 5)
    assert [(item.opcode, item.payload) for item in wire.frames(subject.data_to_send())] == [
        (TEXT, b"last"),
        (CLOSE, b"\x03\xe8bye"),
    ]
    assert subject.state is State.CLOSING
    assert subject.next_deadline() == START + 15
    assert not subject.half_close
    assert subject.close_code is None


@pytest.mark.parametrize("role", ROLES)
def test_the_peers_answer_ends_the_handshake(build: Build, role: Role) -> None:
    subject = build.make(role, LIMITS)
    subject.close(1000, "bye", START)
    subject.data_to_send()
    events = subject.receive_data(wire.close(1000, "bye", key=peer_key(role)), START + 1)
    assert events == [CloseReceived(1000, "bye")]
    assert subject.state is State.ENDING
    assert subject.data_to_send() == b"", "a Close is answered once"
    # Section 7.1.1: the server closes the TCP stream first, the client waits for it.
    assert subject.half_close is (role is Role.SERVER)
    assert (subject.close_code, subject.close_reason) == (1000, "bye")
    assert subject.next_deadline() == START + 10, "the whole closing takes no longer than close_timeout"
    subject.receive_eof()
    assert (subject.state, subject.reset, subject.half_close) == (State.CLOSED, False, False)
    assert subject.next_deadline() is None


def test_the_peers_code_counts_if_both_close_at_once(build: Build) -> None:
    subject = build.make()
    subject.close(1000, "ours", START)
    subject.receive_data(wire.close(4000, "theirs", key=wire.KEY), START)
    assert (subject.close_code, subject.close_reason) == (4000, "theirs")


@pytest.mark.parametrize("role", ROLES)
def test_a_close_without_a_code_is_empty(build: Build, role: Role) -> None:
    subject = build.make(role)
    subject.close(1005, "", START)
    assert [(item.opcode, item.payload) for item in wire.frames(subject.data_to_send())] == [(CLOSE, b"")]
    with pytest.raises(ConnectionClosed) as caught:
        subject.send_text("x")
    assert caught.value.code == 1005


def test_messages_still_arrive_until_the_peers_close(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.close(1000, "", START)
    subject.data_to_send()
    events = subject.receive_data(
        frame(TEXT, b"on its way", key=wire.KEY) + frame(PING, b"x", key=wire.KEY) + wire.close(1000, key=wire.KEY),
        START,
    )
    assert events == ["on its way", Ping(b"x"), CloseReceived(1000, "")]
    assert subject.data_to_send() == b"", "after our Close no PONG may go"


def test_a_peer_that_never_answers_is_dropped(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.close(1000, "", START)
    assert subject.handle_timeout(START + 9.99, 0) == []
    assert not subject.ended
    assert subject.handle_timeout(START + 10, 0) == []
    assert subject.state is State.CLOSED
    assert (subject.close_code, subject.close_reason, subject.reset) == (1006, "", True)


def test_a_peer_that_keeps_its_stream_open_is_dropped(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.close(1000, "", START)
    subject.receive_data(wire.close(1000, key=wire.KEY), START + 9)
    subject.handle_timeout(START + 10, 0)
    assert subject.state is State.CLOSED
    assert (subject.close_code, subject.reset) == (1000, False)


def test_a_second_close_from_this_end_changes_nothing(build: Build) -> None:
    subject = build.make(limits=LIMITS)
    subject.close(1000, "first", START)
    subject.close(1001, "second", START + 5)
    assert wire.frames(subject.data_to_send()) == [wire.Frame(CLOSE, b"\x03\xe8first")]
    assert subject.next_deadline() == START + 10


# --- the peer closes first ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("code, reason", [(1000, ""), (1000, "bye"), (4999, "é" * 61), (1011, "")])
def test_the_peers_close_is_echoed_once_earlier_messages_are_delivered(
    build: Build, role: Role, code: int, reason: str
) -> None:
    key = peer_key(role)
    subject = build.make(role, LIMITS)
    events = subject.receive_data(frame(TEXT, b"question", key=key) + wire.close(code, reason, key=key), START)
    assert events == ["question", CloseReceived(code, reason)]
    assert (subject.state, subject.data_to_send(), subject.close_code) == (State.ANSWERING, b"", None)
    subject.send_text("answer")
    subject.ping(b"p", START)
    subject.messages_handed_over(START + 0.5)
    assert [(item.opcode, item.payload) for item in wire.frames(subject.data_to_send())] == [
        (TEXT, b"answer"),
        (PING, b"p"),
        (CLOSE, code.to_bytes(2, "big") + reason.encode()),
    ]
    assert subject.state is State.ENDING
    assert subject.half_close is (role is Role.SERVER)
    assert (subject.close_code, subject.close_reason) == (code, reason)
    assert subject.next_deadline() == START + 10.5


@pytest.mark.parametrize("role", ROLES)
def test_the_peers_close_is_echoed_immediately_without_earlier_messages(build: Build, role: Role) -> None:
    key = peer_key(role)
    data = frame(PING, key=key) + wire.close(1000, "bye", key=key)
    result = deliver(lambda: build.make(role, LIMITS), data, role)
    assert result.events == [Ping(b""), CloseReceived(1000, "bye")]
    assert result.sent == [wire.Frame(PONG, b""), wire.Frame(CLOSE, b"\x03\xe8bye")]
    assert (result.state, result.deadline) == (State.ENDING, START + 10)


@pytest.mark.parametrize("role", ROLES)
def test_a_close_without_a_code_is_echoed_without_one(build: Build, role: Role) -> None:
    result = deliver(lambda: build.make(role), frame(CLOSE, key=peer_key(role)), role)
    assert result.events == [CloseReceived(1005, "")]
    assert result.sent == [wire.Frame(CLOSE, b"")]
    assert (result.close_code, result.close_reason) == (1005, "")


def test_waiting_for_replies_takes_at_most_reply_timeout(build: Build) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(State.ANSWERING)
    subject = walk.subject
    assert subject.next_deadline() == START + 1
    assert subject.handle_timeout(START + 0.99, 0) == []
    assert subject.data_to_send() == b""
    assert subject.handle_timeout(START + 1, 0) == []
    assert wire.frames(subject.data_to_send()) == [wire.Frame(CLOSE, b"\x03\xe9x")]
    assert (subject.state, subject.next_deadline()) == (State.ENDING, START + 11)


def test_the_applications_own_close_answers_the_peers(build: Build) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(State.ANSWERING)
    walk.subject.close(4000, "mine", START + 0.25)
    assert wire.frames(walk.subject.data_to_send()) == [wire.Frame(CLOSE, b"\x0f\xa0mine")]
    assert (walk.subject.state, walk.subject.next_deadline()) == (State.ENDING, START + 10.25)
    assert (walk.subject.close_code, walk.subject.close_reason) == (1001, "x")


@pytest.mark.parametrize("role", ROLES)
def test_data_after_the_peers_close_is_ignored(build: Build, role: Role) -> None:
    key = peer_key(role)
    behind = frame(TEXT, b"x", key=key) + frame(PING, key=key) + wire.close(1011, key=key) + b"\xff" * 50
    walk = Walk(build, role)
    walk.to(State.OPEN)
    assert walk.subject.receive_data(wire.close(1000, key=key) + behind, START) == [CloseReceived(1000, "")]
    assert feed(walk.subject, [behind[:7], behind[7:]]) == []
    walk.subject.messages_handed_over(START)
    assert feed(walk.subject, [behind]) == []
    frames = wire.frames(walk.subject.data_to_send())
    assert [(item.opcode, item.payload) for item in frames] == [(CLOSE, b"\x03\xe8")]


def test_a_close_inside_a_message_discards_it(build: Build) -> None:
    data = frame(TEXT, b"never finished", fin=False, key=wire.KEY) + wire.close(1001, key=wire.KEY)
    assert deliver(build.make, data).events == [CloseReceived(1001, "")]


def test_pings_before_the_peers_close_are_answered(build: Build) -> None:
    data = frame(TEXT, b"x", key=wire.KEY) + frame(PING, b"p", key=wire.KEY) + wire.close(1000, key=wire.KEY)
    result = deliver(build.make, data)
    assert result.sent == [wire.Frame(PONG, b"p")]


@pytest.mark.parametrize(
    "payload, message, code",
    [
        (b"\x03", "expected a Close payload of 0 or at least 2 bytes, got 1", 1002),
        (b"\x03\xec", "close code 1004 is not allowed in a Close frame", 1002),
        (b"\x03\xed", "close code 1005 is not allowed in a Close frame", 1002),
        (b"\x03\xee", "close code 1006 is not allowed in a Close frame", 1002),
        (b"\x03\xf7", "close code 1015 is not allowed in a Close frame", 1002),
        (b"\x00\x00", "close code 0 is not allowed in a Close frame", 1002),
        (b"\xff\xff", "close code 65535 is not allowed in a Close frame", 1002),
        (b"\x03\xe8\xff", "invalid UTF-8 in the close reason", 1007),
    ],
)
def test_a_malformed_close_is_a_violation(build: Build, payload: bytes, message: str, code: int) -> None:
    result = deliver(build.make, frame(CLOSE, payload, key=wire.KEY))
    assert failure(result.events[0]) == (message, code)
    assert result.sent == [wire.Frame(CLOSE, code.to_bytes(2, "big") + message.encode())]
    assert (result.close_code, result.close_reason) == (code, message)


# --- the peer breaks the rules --------------------------------------------------------------------

RESERVED = "expected reserved bits of 0, got one that no extension has given a meaning"


@pytest.mark.parametrize("role", ROLES)
def test_a_violation_is_answered_once_earlier_messages_are_delivered(build: Build, role: Role) -> None:
    key = peer_key(role)
    subject = build.make(role, LIMITS)
    events = plain(subject.receive_data(frame(TEXT, b"question", key=key) + b"\xff\xff", START))
    assert events[0] == "question"
    assert failure(events[1]) == (RESERVED, 1002)
    assert (subject.state, subject.data_to_send(), subject.close_code) == (State.FAILING, b"", None)
    subject.send_text("answer")
    subject.messages_handed_over(START + 0.5)
    assert [(item.opcode, item.payload) for item in wire.frames(subject.data_to_send())] == [
        (TEXT, b"answer"),
        (CLOSE, b"\x03\xea" + RESERVED.encode()),
    ]
    assert (subject.state, subject.next_deadline()) == (State.ENDING, START + 10.5)
    # Section 7.1.7: either end closes the stream when it fails the connection.
    assert subject.half_close
    assert (subject.close_code, subject.close_reason) == (1002, RESERVED)


@pytest.mark.parametrize("role", ROLES)
def test_a_violation_is_answered_immediately_without_earlier_messages(build: Build, role: Role) -> None:
    result = deliver(lambda: build.make(role, LIMITS), b"\xff\xff", role)
    assert failure(result.events[0]) == (RESERVED, 1002)
    assert result.sent == [wire.Frame(CLOSE, b"\x03\xea" + RESERVED.encode())]
    assert (result.state, result.deadline) == (State.ENDING, START + 10)


def test_a_violation_is_answered_after_reply_timeout_at_the_latest(build: Build) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(State.FAILING)
    assert walk.subject.next_deadline() == START + 1
    assert walk.subject.handle_timeout(START + 0.99, 0) == []
    assert walk.subject.data_to_send() == b""
    assert walk.subject.handle_timeout(START + 1, 0) == []
    assert wire.frames(walk.subject.data_to_send()) == [wire.Frame(CLOSE, b"\x03\xea" + RESERVED.encode())]
    assert (walk.subject.state, walk.subject.next_deadline()) == (State.ENDING, START + 11)


def test_the_applications_own_close_reports_the_peers_violation(build: Build) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(State.FAILING)
    walk.subject.close(1000, "all is well", START)
    assert wire.frames(walk.subject.data_to_send()) == [wire.Frame(CLOSE, b"\x03\xea" + RESERVED.encode())]
    assert walk.subject.close_code == 1002


@pytest.mark.parametrize("role", ROLES)
def test_a_violation_after_our_close_ends_the_connection(build: Build, role: Role) -> None:
    subject = build.make(role, LIMITS)
    subject.close(1000, "", START)
    subject.data_to_send()
    (event,) = plain(subject.receive_data(b"\xff\xff", START + 1))
    assert failure(event) == (RESERVED, 1002)
    assert subject.data_to_send() == b""
    assert (subject.state, subject.half_close, subject.close_code) == (State.ENDING, True, 1002)
    assert subject.next_deadline() == START + 10


def test_data_after_a_violation_is_ignored(build: Build) -> None:
    walk = Walk(build, Role.SERVER)
    walk.to(State.FAILING)
    behind = frame(TEXT, b"x", key=wire.KEY) + wire.close(1000, key=wire.KEY)
    assert feed(walk.subject, [behind[:5], behind[5:]]) == []
    assert walk.subject.state is State.FAILING


def test_the_text_of_a_violation_fits_into_a_close_frame(build: Build) -> None:
    # The longest that a peer can bring about: a refusal may never fail itself.
    for limits in (Limits(max_message_size=10**18), Limits(max_message_size=2**62 - 1)):
        subject = build.make(limits=limits)
        subject.receive_data(frame(BINARY, key=wire.KEY, declared=2**63 - 1, form=64), START)
        (item,) = wire.frames(subject.data_to_send())
        assert item.opcode == CLOSE
        assert len(item.payload) <= 125
        assert (subject.close_reason or "").encode().startswith(item.payload[2:])


# --- the end of the stream ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state, code, reason, reset",
    [
        (State.OPEN, 1006, "", True),
        (State.ANSWERING, 1001, "x", False),
        (State.FAILING, 1002, RESERVED, False),
        (State.CLOSING, 1006, "", True),
        (State.ENDING, 1001, "x", False),
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_the_end_of_the_stream_leaves_1006_or_the_peers_code(
    build: Build, role: Role, state: State, code: int, reason: str, reset: bool
) -> None:
    walk = Walk(build, role)
    walk.to(state)
    walk.subject.receive_eof()
    subject = walk.subject
    assert (subject.close_code, subject.close_reason, subject.reset) == (code, reason, reset)
    assert subject.next_deadline() is None
    with pytest.raises(ConnectionClosed) as caught:
        subject.send_text("x")
    assert (caught.value.code, caught.value.reason) == (code, reason)


@pytest.mark.parametrize("role", ROLES)
def test_the_stream_may_end_at_every_byte(build: Build, role: Role) -> None:
    key = peer_key(role)
    data = b"".join(
        [
            frame(TEXT, "é".encode(), key=key),
            frame(BINARY, b"ab", fin=False, key=key),
            frame(PING, b"p", key=key),
            frame(wire.CONTINUATION, b"c", key=key),
            wire.close(1000, "bye", key=key),
        ]
    )
    every = build.make(role).receive_data(data, START)
    for size in range(len(data) + 1):
        subject = build.make(role)
        events = subject.receive_data(data[:size], START)
        subject.receive_eof()
        assert events == every[: len(events)]
        complete = size == len(data)
        assert (subject.state, subject.reset) == (State.CLOSED, not complete)
        assert subject.close_code == (1000 if complete else 1006)
        assert subject.receive_data(data[size:], START) == []


def test_the_end_may_be_reported_twice(build: Build) -> None:
    subject = build.make()
    subject.receive_eof()
    subject.receive_eof()
    assert subject.state is State.CLOSED


# --- giving up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", State, ids=lambda item: item.name)
def test_an_abort_discards_queued_bytes(build: Build, role: Role, state: State) -> None:
    walk = Walk(build, role)
    walk.subject.send_text("queued")
    walk.subject.write_paused = True
    walk.subject.receive_data(frame(PING, b"waits", key=walk.key), START)
    walk.to(state)
    walk.subject.abort()
    walk.subject.writing_resumed()
    assert walk.subject.state is State.CLOSED
    assert walk.subject.data_to_send() == b""
    assert walk.subject.outgoing.unsent_size == 0
    assert walk.subject.next_deadline() is None


def test_bytes_queued_before_the_end_may_still_be_written(build: Build) -> None:
    subject = build.make()
    subject.send_text("last words")
    subject.receive_eof()
    assert wire.frames(subject.data_to_send()) == [wire.Frame(TEXT, b"last words")]


# --- memory ----------------------------------------------------------------------------------------


ENDS = {
    "Close": wire.close(1000, key=wire.KEY),
    "violation": b"\xff\xff",
    "bad text": frame(TEXT, b"\xff" * 50_000, key=wire.KEY),
    "bad code": wire.close(999, key=wire.KEY),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_ended_connection_keeps_no_received_data(build: Build, end: str) -> None:
    # Applications keep connections for their close code, and errors for their logs; the bytes that came must not
    # stay with them: not in the reader, not in the frames of a traceback, not in the context of an exception.
    data = frame(BINARY, b"x", key=wire.KEY) + ENDS[end] + bytes(256 * 1024)
    subject = build.make()
    with measured() as memory:
        events = subject.receive_data(bytes(bytearray(data)), START)
        subject.messages_handed_over(START)
        subject.receive_eof()
    assert len(events) == 2
    assert memory.held < 10_000


def test_an_incomplete_message_is_released(build: Build) -> None:
    for end in (wire.close(1000, key=wire.KEY), b"\xff\xff", b""):
        subject = build.make()
        data = frame(BINARY, bytes(100_000), fin=False, key=wire.KEY)
        with measured() as memory:
            subject.receive_data(data, START)
            subject.receive_data(end, START)
            if not end:
                subject.receive_eof()
        assert memory.held < 10_000


@given(st.lists(st.sampled_from(Trigger), max_size=12), st.sampled_from(ROLES))
def test_any_order_of_events_is_harmless(build: Build, triggers: list[Trigger], role: Role) -> None:
    order = list(State)
    walk = Walk(build, role)
    walk.to(State.OPEN)
    for trigger in triggers:
        before = walk.subject.state
        walk.pull(trigger)
        assert order.index(walk.subject.state) >= order.index(before)
        walk.subject.data_to_send()
    for _ in range(4):
        walk.pull(Trigger.TIMEOUT)
        walk.pull(Trigger.TIMEOUT)
    # Time alone ends every connection whose peer is silent.
    assert walk.subject.state is State.CLOSED
