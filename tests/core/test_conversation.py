"""A server and a client against each other, in any order of events (RFC 6455 sections 1.4, 5 and 7).

Two protocols, a pipe each way, one clock. The pipes deliver any number of bytes at any time, or break; each end may
send, ping, close, abort, pause reading or pause writing. The invariants state what must hold at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.builds import START, Build
from tests.support.strategies import agreements, mirrored
from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role, State
from watershed_mw.errors import ConnectionClosed

LIMITS = Limits(ping_interval=20, ping_timeout=15, close_timeout=10, reply_timeout=1)
ORDER = list(State)
ENDS = st.sampled_from(Role)


@dataclass
class End:
    """One end: its protocol, the pipe towards it, and its record of sent and received events."""

    subject: Protocol
    pipe: bytearray = field(default_factory=bytearray)
    pipe_ended: bool = False  # the other end's direction of the stream is over
    sent: list[str | bytes] = field(default_factory=list)
    seen: list[str | bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    state: State = State.OPEN
    close_asked: tuple[int, str] | None = None
    told: tuple[int | None, str | None] | None = None


class Conversation(RuleBasedStateMachine):
    """See the module's docstring."""

    build: ClassVar[Build]

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.ends: dict[Role, End] = {}
        self.lossy = False  # an end has aborted, or the network has failed

    @initialize(parameters=st.none() | agreements)
    def begin(self, parameters: DeflateParameters | None) -> None:
        for role in Role:
            agreed = parameters if parameters is None or role is Role.SERVER else mirrored(parameters)
            self.ends[role] = End(self.build.make(role, LIMITS, agreed))

    # --- what the applications do -------------------------------------------------------------------------------

    @rule(role=ENDS, message=st.text(max_size=100) | st.binary(max_size=100) | st.just(b"x" * 70_000))
    def send(self, role: Role, message: str | bytes) -> None:
        end = self.ends[role]
        try:
            end.subject.send_text(message) if isinstance(message, str) else end.subject.send_binary(message)
        except ConnectionClosed:
            assert not end.subject.sending
        else:
            end.sent.append(message)

    @rule(role=ENDS, payload=st.binary(max_size=125))
    def ping(self, role: Role, payload: bytes) -> None:
        try:
            self.ends[role].subject.ping(payload, self.now)
        except ConnectionClosed:
            assert not self.ends[role].subject.sending
        else:
            self.ends[role].pings.append(payload)

    @rule(role=ENDS, code=st.sampled_from([1000, 1005, 4000]), reason=st.sampled_from(["", "bye"]))
    def close(self, role: Role, code: int, reason: str) -> None:
        end = self.ends[role]
        reason = "" if code == 1005 else reason
        if end.subject.sending and end.close_asked is None:
            end.close_asked = code, reason
        end.subject.close(code, reason, self.now)
        assert not end.subject.sending

    @rule(role=ENDS)
    def hand_over(self, role: Role) -> None:
        self.ends[role].subject.messages_handed_over(self.now)

    @precondition(lambda self: len(self.ends) == 2 and self.now > START + 30)
    @rule(role=ENDS)
    def abort(self, role: Role) -> None:
        self.lossy = True
        self.ends[role].subject.abort()
        self._other(role).pipe_ended = True

    # --- what the network and the drivers do ---------------------------------------------------------------------

    @rule(role=ENDS, size=st.sampled_from([1, 2, 10, 1000, 10**6]), times=st.integers(1, 5))
    def deliver(self, role: Role, size: int, times: int) -> None:
        self._write(role)
        end = self._other(role)
        for _ in range(times):
            chunk = bytes(end.pipe[:size])
            del end.pipe[:size]
            if chunk:
                self._note(end, end.subject.receive_data(chunk, self.now))

    @rule(role=ENDS, paused=st.booleans())
    def pause_writing(self, role: Role, paused: bool) -> None:
        if paused:
            self.ends[role].subject.write_paused = True
        else:
            self.ends[role].subject.writing_resumed()

    @rule(seconds=st.sampled_from([0.25, 1.0, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = [end.subject.next_deadline() for end in self.ends.values()]
            soonest = min((deadline for deadline in due if deadline is not None), default=None)
            if soonest is None or soonest > until:
                break
            self.now = max(self.now, soonest)
            for end in self.ends.values():
                before = end.subject.state
                self._note(end, end.subject.handle_timeout(self.now, 0))
                self.lossy |= before is not end.subject.state
                deadline = end.subject.next_deadline()
                assert deadline is None or deadline > self.now, "a deadline that is met must move"
        self.now = until

    @rule(role=ENDS)
    def end_stream(self, role: Role) -> None:
        """The other end's FIN, if it has sent one and all bytes before it have arrived."""
        end = self.ends[role]
        self._write(Role.CLIENT if role is Role.SERVER else Role.SERVER)
        if (end.pipe_ended or self._other_done(role)) and not end.pipe:
            end.subject.receive_eof()

    @precondition(lambda self: len(self.ends) == 2 and self.now > START + 30)
    @rule(role=ENDS)
    def break_stream(self, role: Role) -> None:
        """The network fails: bytes in transit are lost."""
        self.lossy = True
        self.ends[role].pipe.clear()
        self.ends[role].subject.receive_eof()

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def states_go_forward(self) -> None:
        for end in self.ends.values():
            assert ORDER.index(end.subject.state) >= ORDER.index(end.state)
            end.state = end.subject.state
            assert end.subject.sending is (end.state in (State.OPEN, State.ANSWERING, State.FAILING))
            assert end.subject.ended is (end.state in (State.ENDING, State.CLOSED))
            assert (end.subject.next_deadline() is None) is (end.state is State.CLOSED)

    @invariant()
    def messages_arrive_in_order_and_unharmed(self) -> None:
        for role, end in self.ends.items():
            sent = self._other(role).sent
            assert end.seen == sent[: len(end.seen)]

    @invariant()
    def nobody_breaks_the_rules(self) -> None:
        for end in self.ends.values():
            failures = [event for event in end.events if isinstance(event, Failed)]
            # Two ends of this package never violate the protocol against each other; they may fall silent.
            assert all(event.error.close_code == 1011 for event in failures)

    @invariant()
    def the_outcome_is_told_once_and_for_all(self) -> None:
        for end in self.ends.values():
            told = end.subject.close_code, end.subject.close_reason
            assert (told == (None, None)) is not end.subject.ended
            if end.told is not None:
                assert told == end.told
            if end.subject.ended:
                end.told = told

    @invariant()
    def a_close_comes_last(self) -> None:
        for end in self.ends.values():
            closes = [number for number, event in enumerate(end.events) if isinstance(event, CloseReceived)]
            assert closes in ([], [len(end.events) - 1])

    def teardown(self) -> None:
        """Let everything arrive and time pass: both ends must close, and agree if nothing was lost."""
        if not self.ends:
            return
        for end in self.ends.values():
            end.subject.writing_resumed()
        for _ in range(4):
            for role in Role:
                self.deliver(role, 10**6, 5)
                self.hand_over(role)
        self.states_go_forward()
        self.messages_arrive_in_order_and_unharmed()
        self.nobody_breaks_the_rules()
        for role, end in self.ends.items():
            assert self.lossy or end.seen == self._other(role).sent
        for role in Role:
            self.close(role, 1000, "")
        for _ in range(3):
            for role in Role:
                self.deliver(role, 10**6, 5)
                self.end_stream(role)
        self.let_time_pass(100)
        for end in self.ends.values():
            assert end.subject.state is State.CLOSED
            assert end.subject.close_code is not None
        self.the_outcome_is_told_once_and_for_all()
        self.a_close_comes_last()

    # --- helpers ------------------------------------------------------------------------------------------------

    def _other(self, role: Role) -> End:
        return self.ends[Role.CLIENT if role is Role.SERVER else Role.SERVER]

    def _other_done(self, role: Role) -> bool:
        other = self._other(role).subject
        return other.half_close or other.state is State.CLOSED

    def _write(self, role: Role) -> None:
        data = self.ends[role].subject.data_to_send()
        self._other(role).pipe += data

    def _note(self, end: End, events: Sequence[Event]) -> None:
        end.events += events
        end.seen += [event for event in events if isinstance(event, (str, bytes))]
        for event in events:
            assert isinstance(event, (str, bytes, Ping, Pong, CloseReceived, Failed))


def test_client_and_server_always_understand_each_other(build: Build) -> None:
    class OnThisBuild(Conversation):
        pass

    OnThisBuild.build = build
    run_state_machine_as_test(OnThisBuild, settings=settings(stateful_step_count=30))
