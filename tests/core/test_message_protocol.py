"""core/message_protocol.py: a connection whose server handles the frames: states, limits and counters of messages.

The file is not compiled, so its tests run once and take no ``build``; its events at an end are compared with those of
core/protocol.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.builds import START, Build
from tests.support.deliveries import failure, plain
from tests.support.memory import measured
from tests.support.wire import BINARY, KEY, close, frame
from watershed_mw.core.events import Event, Failed
from watershed_mw.core.limits import Limits
from watershed_mw.core.message_protocol import MessageProtocol, Outgoing
from watershed_mw.core.states import TRANSITIONS, State
from watershed_mw.errors import ConnectionClosed, LocalProtocolError

TOO_LARGE = "message too large: at most 10 bytes (max_message_size), got 11 or more"
TOO_MANY = "too many messages: at most 2 per second (max_message_rate)"


def make(**limits: Any) -> MessageProtocol:
    """A new protocol; messages may have 10 bytes by default."""
    return MessageProtocol(Limits(**{"max_message_size": 10, **limits}), START)


def refused(events: list[Event]) -> tuple[str, int]:
    """Text and close code of the only event, which must be a failure of the peer."""
    (event,) = plain(events)
    return failure(event)


def take_all(subject: MessageProtocol) -> list[Outgoing]:
    """Everything that the server takes until nothing is left."""
    items = []
    while (item := subject.next_to_send()) is not None:
        items.append(item)
        subject.taken()
    return items


# --- every state, as it is reached ------------------------------------------------------------------


def opened() -> MessageProtocol:
    return make()


def closing() -> MessageProtocol:
    subject = make()
    subject.close(4001, "ours", START)
    return subject


def closing_after_messages() -> MessageProtocol:
    subject = make()
    subject.send_text("before")
    subject.close(4001, "ours", START)
    return subject


def closed_by_us() -> MessageProtocol:
    subject = closing()
    subject.taken()
    return subject


def violated() -> MessageProtocol:
    subject = make()
    subject.receive_message(bytes(11), START)
    return subject


def violated_and_told() -> MessageProtocol:
    subject = violated()
    subject.taken()
    return subject


def violated_after_our_close() -> MessageProtocol:
    subject = closing()
    subject.receive_message(bytes(11), START)
    return subject


def closed_by_the_peer() -> MessageProtocol:
    subject = make()
    subject.receive_disconnect(4002, "theirs")
    return subject


def closed_by_both() -> MessageProtocol:
    subject = closing()
    subject.receive_disconnect(4002, "theirs")
    return subject


def vanished() -> MessageProtocol:
    subject = make()
    subject.receive_disconnect(1006, "")
    return subject


def aborted() -> MessageProtocol:
    subject = make()
    subject.abort()
    return subject


def aborted_after_our_close() -> MessageProtocol:
    subject = closing()
    subject.abort()
    return subject


Way = Callable[[], MessageProtocol]

# The cause, the state, and the reported end: code, reason, and whether the peer has vanished.
TABLE: list[tuple[Way, State, int | None, str | None, bool]] = [
    (opened, State.OPEN, None, None, False),
    (closing, State.CLOSING, None, None, False),
    (closing_after_messages, State.CLOSING, None, None, False),
    (closed_by_us, State.CLOSED, 4001, "ours", False),
    (violated, State.ENDING, 1009, TOO_LARGE, False),
    (violated_and_told, State.CLOSED, 1009, TOO_LARGE, False),
    (violated_after_our_close, State.ENDING, 1009, TOO_LARGE, False),
    (closed_by_the_peer, State.CLOSED, 4002, "theirs", False),
    (closed_by_both, State.CLOSED, 4002, "theirs", False),
    (vanished, State.CLOSED, 1006, "", True),
    (aborted, State.CLOSED, 1006, "", True),
    (aborted_after_our_close, State.CLOSED, 4001, "ours", False),
]
WAYS = [row[0] for row in TABLE]


@pytest.mark.parametrize("way, state, code, reason, reset", TABLE)
def test_each_state_has_its_flags_and_close_code(
    way: Way, state: State, code: int | None, reason: str | None, reset: bool
) -> None:
    subject = way()
    assert subject.state is state
    assert subject.sending is (state is State.OPEN)
    assert subject.ended is (state in (State.ENDING, State.CLOSED))
    assert (subject.close_code, subject.close_reason, subject.reset) == (code, reason, reset)
    assert (subject.latency, subject.write_paused, subject.counts().frames_received, subject.counts().frames_sent) == (
        None,
        False,
        0,
        0,
    )


@pytest.mark.parametrize("way", WAYS)
def test_messages_are_sent_only_while_the_connection_is_open(way: Way) -> None:
    subject = way()
    waiting, queued = subject.next_to_send(), subject.items_queued
    if subject.sending:
        subject.send_text("é")
        subject.send_binary(b"abc")
        assert take_all(subject) == ["é", b"abc"]
        assert (subject.messages_sent, subject.counts().bytes_sent) == (2, 5)
        return
    late: list[Callable[[], None]] = [lambda: subject.send_text("late"), lambda: subject.send_binary(b"late")]
    for send in late:
        with pytest.raises(ConnectionClosed) as caught:
            send()
        if subject.ended:
            assert (caught.value.code, caught.value.reason) == (subject.close_code, subject.close_reason)
        else:
            assert (caught.value.code, caught.value.reason) == (4001, "ours"), "what it is about to end with"
    assert (subject.next_to_send(), subject.items_queued) == (waiting, queued)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("message", ["héllo", b"hello"])
def test_messages_are_received_until_the_end(way: Way, message: str | bytes) -> None:
    subject = way()
    before = subject.counts().messages_received, subject.counts().bytes_received
    if subject.ended:
        assert subject.receive_message(message, START) == []
        assert (subject.counts().messages_received, subject.counts().bytes_received) == before
        return
    assert subject.receive_message(message, START) == [message]
    size = 6 if isinstance(message, str) else 5
    assert (subject.counts().messages_received, subject.counts().bytes_received) == (before[0] + 1, before[1] + size)


@pytest.mark.parametrize("way", WAYS)
def test_a_close_is_sent_once_and_only_from_the_open_state(way: Way) -> None:
    subject = way()
    state, sent, waiting = subject.state, subject.close_sent, subject.items_queued
    subject.close(4005, "again", START)
    if state is State.OPEN:
        assert (subject.state, subject.close_sent) == (State.CLOSING, (4005, "again"))
        assert take_all(subject) == [(4005, "again")]
        assert (subject.state, subject.close_code, subject.close_reason) == (State.CLOSED, 4005, "again")
    else:
        assert (subject.state, subject.close_sent, subject.items_queued) == (state, sent, waiting)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "code, reason", [(1006, ""), (999, ""), (5000, ""), (1000, "r" * 124), (1005, "why"), (1000, 5)]
)
def test_an_invalid_close_is_a_local_error_in_every_state(way: Way, code: int, reason: Any) -> None:
    subject = way()
    before = subject.state, subject.items_queued
    with pytest.raises(LocalProtocolError):
        subject.close(code, reason, START)
    assert (subject.state, subject.items_queued) == before


@pytest.mark.parametrize("way, state, code, reason, reset", TABLE)
def test_an_end_reported_by_the_server_closes_the_connection(
    way: Way, state: State, code: int | None, reason: str | None, reset: bool
) -> None:
    subject = way()
    subject.receive_disconnect(4009, "told")
    assert subject.state is State.CLOSED
    if state in (State.OPEN, State.CLOSING):
        assert (subject.close_code, subject.close_reason, subject.reset) == (4009, "told", False)
    else:  # what ended it is known, and a second telling changes nothing
        assert (subject.close_code, subject.close_reason, subject.reset) == (code, reason, reset)


@pytest.mark.parametrize("way", WAYS)
def test_an_abort_discards_queued_messages(way: Way) -> None:
    subject = way()
    told = subject.close_code, subject.close_reason
    if subject.sending:
        subject.send_text("never sent")
    subject.abort()
    assert (subject.state, subject.unsent_size, subject.next_to_send()) == (State.CLOSED, 0, None)
    if told[0] is not None:
        assert (subject.close_code, subject.close_reason) == told
    subject.abort()
    assert subject.state is State.CLOSED


@pytest.mark.parametrize("way", WAYS)
def test_pings_belong_to_the_server(way: Way) -> None:
    subject = way()
    with pytest.raises(LocalProtocolError, match="ASGI has no message for a PING"):
        subject.ping(b"", START)


# --- what is sent -----------------------------------------------------------------------------------


def test_the_server_receives_messages_in_order_and_the_close_last() -> None:
    subject = make()
    for number in range(3):
        subject.send_text(f"é{number}")
        subject.send_binary(b"%d" % number)
    subject.close(1005, "", START)
    assert subject.unsent_size == 3 * 3 + 3
    assert (subject.items_queued, subject.items_taken) == (7, 0)
    seen = []
    while (item := subject.next_to_send()) is not None:
        assert subject.next_to_send() is item, "looking takes nothing"
        seen.append((item, subject.unsent_size, subject.state))
        subject.taken()
    assert [one for one, _, _ in seen] == ["é0", b"0", "é1", b"1", "é2", b"2", (1005, "")]
    assert [size for _, size, _ in seen] == [12, 9, 8, 5, 4, 1, 0]
    assert {state for _, _, state in seen} == {State.CLOSING}
    assert (subject.state, subject.items_taken, subject.unsent_size) == (State.CLOSED, 7, 0)


def test_the_close_does_not_count_as_a_message() -> None:
    subject = closing_after_messages()
    assert (subject.messages_sent, subject.counts().bytes_sent, subject.unsent_size) == (1, 6, 6)


def test_text_that_cannot_be_encoded_is_a_local_error_and_nothing_is_sent() -> None:
    subject = make()
    with pytest.raises(LocalProtocolError, match="expected text that UTF-8 can encode"):
        subject.send_text("\ud800")
    assert (subject.next_to_send(), subject.messages_sent, subject.unsent_size) == (None, 0, 0)


def test_a_message_discarded_while_the_server_takes_it_is_not_counted_twice() -> None:
    subject = make()
    subject.send_binary(b"in the server's hands")
    subject.abort()
    subject.taken()
    assert (subject.items_taken, subject.unsent_size, subject.state) == (0, 0, State.CLOSED)


def test_messages_overtaken_by_the_end_may_still_be_taken() -> None:
    subject = make()
    subject.send_text("late")
    subject.close(4001, "", START)
    subject.receive_disconnect(4002, "theirs")
    assert take_all(subject) == ["late", (4001, "")]
    assert (subject.state, subject.unsent_size, subject.close_code) == (State.CLOSED, 0, 4002)


# --- limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits, more", [("x" * 10, "x" * 11), ("é" * 5, "é" * 5 + "x"), (bytes(10), bytes(11))])
def test_a_message_at_the_limit_is_accepted_and_one_byte_more_is_not(fits: str | bytes, more: str | bytes) -> None:
    subject = make()
    assert subject.receive_message(fits, START) == [fits]
    assert refused(subject.receive_message(more, START)) == (TOO_LARGE, 1009)
    assert (subject.counts().messages_received, subject.counts().bytes_received) == (1, 10)
    assert take_all(subject) == [(1009, TOO_LARGE)]
    assert (subject.state, subject.close_sent) == (State.CLOSED, (1009, TOO_LARGE))


def test_without_a_limit_every_size_is_accepted() -> None:
    assert make(max_message_size=None).receive_message(bytes(2**25), START) == [bytes(2**25)]


def test_a_lone_surrogate_from_the_server_is_harmless() -> None:
    assert make().receive_message("\ud800", START) == ["\ud800"]


def test_a_violation_is_reported_after_earlier_messages_are_sent() -> None:
    subject = make()
    subject.send_text("before")
    assert refused(subject.receive_message(bytes(11), START)) == (TOO_LARGE, 1009)
    assert subject.ended
    assert not subject.sending
    assert take_all(subject) == ["before", (1009, TOO_LARGE)]
    assert subject.unsent_size == 0


def test_after_our_close_a_violation_sends_nothing() -> None:
    subject = violated_after_our_close()
    assert take_all(subject) == [(4001, "ours")]
    assert (subject.state, subject.close_code) == (State.CLOSED, 1009)


def test_input_after_a_violation_is_ignored() -> None:
    subject = violated()
    assert subject.receive_message("x", START) == []
    assert subject.receive_message(bytes(11), START) == []
    assert take_all(subject) == [(1009, TOO_LARGE)]


@pytest.mark.need(27)
def test_one_message_too_many_is_refused_with_1008() -> None:
    subject = make(max_message_rate=2)
    assert [subject.receive_message("x", START) for _ in range(2)] == [["x"], ["x"]]
    assert refused(subject.receive_message("x", START)) == (TOO_MANY, 1008)
    assert take_all(subject) == [(1008, TOO_MANY)]
    assert (subject.close_code, subject.close_reason, subject.counts().messages_received) == (1008, TOO_MANY, 2)


@pytest.mark.need(27)
def test_the_rate_allowance_refills_over_time() -> None:
    subject = make(max_message_rate=2)
    for step in range(20):
        assert subject.receive_message(b"x", START + step / 2) == [b"x"]
    for _ in range(2):
        assert subject.receive_message(b"x", START + 1000) == [b"x"]
    assert refused(subject.receive_message(b"x", START + 1000)) == (TOO_MANY, 1008)


def test_without_a_rate_any_number_of_messages_may_arrive_at_once() -> None:
    subject = make()
    assert sum(len(subject.receive_message(b"x", START)) for _ in range(5000)) == 5000


def test_a_failure_keeps_no_part_of_the_message() -> None:
    subject = make()
    with measured() as memory:
        events = subject.receive_message(bytes(1_000_000), START)
        (event,) = events
    assert isinstance(event, Failed)
    assert memory.held < 5_000


# --- the same end as over frames -----------------------------------------------------------------------


@pytest.mark.parametrize("ours", [None, (4001, "ours")])
@pytest.mark.parametrize("theirs", [(4002, "theirs"), (1005, ""), (1006, "")])
def test_an_end_emits_the_same_events_as_the_native_protocol(
    build: Build, ours: tuple[int, str] | None, theirs: tuple[int, str]
) -> None:
    one, other = make(), build.make()
    if ours is not None:
        one.close(*ours, START)
        other.close(*ours, START)
    one.receive_disconnect(*theirs)
    if theirs[0] == 1005:
        other.receive_data(frame(8, key=KEY), START)
    elif theirs[0] != 1006:
        other.receive_data(close(*theirs, key=KEY), START)
    other.receive_eof()
    assert (one.close_code, one.close_reason, one.reset) == (other.close_code, other.close_reason, other.reset)


def test_a_violation_emits_the_same_events_as_the_native_protocol(build: Build) -> None:
    for limits, data in ((Limits(max_message_size=10), [bytes(11)]), (Limits(max_message_rate=2), [b"x"] * 3)):
        one, other = MessageProtocol(limits, START), build.make(limits=limits)
        events = [plain(one.receive_message(message, START)) for message in data]
        others = [plain(other.receive_data(frame(BINARY, message, key=KEY), START)) for message in data]
        assert events == others
        # The native protocol lets the application reply to earlier messages; here the Close is queued immediately.
        other.messages_handed_over(START)
        assert (one.state, one.close_sent) == (other.state, other.close_sent)
        assert (one.close_code, one.close_reason) == (other.close_code, other.close_reason)


# --- any order of happenings ---------------------------------------------------------------------------

messages = st.text(max_size=12) | st.binary(max_size=12)
closes = st.tuples(st.sampled_from([1000, 1005, 1011, 3000, 4999]), st.text(max_size=5)).filter(
    lambda pair: pair[0] != 1005 or not pair[1]
)


def size_of(message: str | bytes) -> int:
    return len(message) if isinstance(message, bytes) else len(message.encode())


class Conversation(RuleBasedStateMachine):
    """A connection, beside the simplest model of its expected state."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.subject = make(max_message_rate=3)
        self.waiting: list[Outgoing] = []
        self.taken: list[Outgoing] = []
        self.allowance = 3.0
        self.before = State.OPEN
        self.first_end: tuple[int | None, str | None] | None = None

    @rule(message=messages)
    def send(self, message: str | bytes) -> None:
        send: Callable[[Any], None] = self.subject.send_text if isinstance(message, str) else self.subject.send_binary
        if self.subject.state is State.OPEN:
            send(message)
            self.waiting.append(message)
        else:
            with pytest.raises(ConnectionClosed):
                send(message)

    @rule(message=messages)
    def receive(self, message: str | bytes) -> None:
        state = self.subject.state
        events = self.subject.receive_message(message, self.now)
        if state not in (State.OPEN, State.CLOSING):
            assert events == []
            return
        within = self.allowance >= 1 - 1e-9
        if within:
            self.allowance -= 1
        if within and size_of(message) <= 10:
            assert events == [message]
            return
        failed = refused(events)
        assert failed[1] == (1009 if within else 1008)
        if state is State.OPEN:
            self.waiting.append((failed[1], failed[0]))
        assert self.subject.state is State.ENDING

    @rule(pair=closes)
    def close(self, pair: tuple[int, str]) -> None:
        if self.subject.state is State.OPEN:
            self.waiting.append(pair)
        self.subject.close(*pair, self.now)

    @rule(pair=closes)
    def disconnect(self, pair: tuple[int, str]) -> None:
        ending = self.subject.ended
        self.subject.receive_disconnect(*pair)
        assert self.subject.state is State.CLOSED
        if not ending:
            assert (self.subject.close_code, self.subject.close_reason) == pair

    @rule()
    def abort(self) -> None:
        self.waiting.clear()
        self.subject.abort()
        assert self.subject.state is State.CLOSED

    @precondition(lambda self: self.waiting)
    @rule()
    def server_takes(self) -> None:
        item = self.waiting.pop(0)
        assert self.subject.next_to_send() == item
        self.subject.taken()
        self.taken.append(item)

    @rule(seconds=st.sampled_from([0.25, 0.5, 5.0]))
    def time_passes(self, seconds: float) -> None:
        # Quarters and halves are exact in binary: the account below is the subject's to the last bit.
        self.now += seconds
        self.allowance = min(3.0, self.allowance + seconds * 3)

    @invariant()
    def accounts_are_right(self) -> None:
        subject = self.subject
        assert subject.next_to_send() == (self.waiting[0] if self.waiting else None)
        assert subject.unsent_size == sum(size_of(item) for item in self.waiting if not isinstance(item, tuple))
        assert subject.items_taken == len(self.taken)
        assert subject.items_queued >= len(self.taken) + len(self.waiting)

    @invariant()
    def nothing_follows_a_close(self) -> None:
        closed = [isinstance(item, tuple) for item in self.taken + self.waiting]
        assert sum(closed) <= 1
        assert not any(closed[:-1])

    @invariant()
    def the_state_is_one_that_the_table_allows(self) -> None:
        subject, reachable = self.subject, {self.before}
        for _ in range(2):  # a violation passes through FAILING
            reachable |= {target for state in reachable for target in TRANSITIONS[state].values()}
        assert subject.state in reachable
        assert subject.state in (State.OPEN, State.CLOSING, State.ENDING, State.CLOSED)
        self.before = subject.state

    @invariant()
    def an_end_is_told_once(self) -> None:
        subject = self.subject
        assert (subject.close_code is None) is (not subject.ended)
        assert (subject.close_reason is None) is (not subject.ended)
        if subject.ended:
            end = subject.close_code, subject.close_reason
            assert self.first_end in (None, end), "it changed its mind"
            self.first_end = end

    def teardown(self) -> None:
        taken = take_all(self.subject)
        assert taken == self.waiting
        assert self.subject.unsent_size == 0


Conversation.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestConversation = Conversation.TestCase
