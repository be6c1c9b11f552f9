"""core/protocol.py: input is processed in steps, each a bounded piece of work, in any chunking."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import failure, plain
from tests.support.wire import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from watershed_mw.core.events import CloseReceived, Event, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import State

COMPRESSION = DeflateParameters(options=DeflateOptions(window_bits=15))
MEBIBYTE = 2**20


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A frame as a client sends it."""
    return frame(opcode, payload, fin=fin, rsv=rsv, key=wire.KEY)


def deflated(payload: bytes) -> bytes:
    """A message as a peer with zlib sends it, without context takeover."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def steps_of(subject: Protocol, data: bytes) -> list[list[Event]]:
    """The events of each step for ``data``; each step's work must stay within bounds."""
    before = subject.receiver.work
    steps = [subject.receive_step(data, len(data), START)]
    most = len(data) // 4096 + 512
    while subject.receiver.backlog:
        assert subject.receiver.work - before <= most
        before, most = subject.receiver.work, 512
        steps.append(subject.receive_more(START))
    return steps


def joined(steps: list[list[Event]]) -> list[Event]:
    """The events of all steps."""
    return [event for step in steps for event in step]


def test_a_step_ends_with_the_message_that_fills_a_queue(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_messages=32))
    steps = steps_of(subject, masked(TEXT, b"x") * 100)
    assert [len(step) for step in steps] == [33, 33, 33, 1]
    assert joined(steps) == ["x"] * 100


def test_a_step_ends_with_the_bytes_that_fill_a_queue(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_bytes=1000))
    steps = steps_of(subject, masked(BINARY, bytes(400)) * 7)
    assert [len(step) for step in steps] == [3, 3, 1]


def test_a_message_that_fills_a_queue_by_itself_leaves_no_backlog_behind(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_bytes=1000))
    assert steps_of(subject, masked(BINARY, bytes(5000))) == [[bytes(5000)]]
    assert steps_of(subject, masked(BINARY, bytes(10))) == [[bytes(10)]]


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_fragments_without_an_event_count_as_work(build: Build, payload: bytes) -> None:
    subject = build.make()
    data = masked(BINARY, fin=False) + masked(CONTINUATION, payload, fin=False) * 5000 + masked(CONTINUATION, b"end")
    steps = steps_of(subject, data)
    assert joined(steps) == [payload * 5000 + b"end"]
    assert len(steps) >= 5000 // 256


@pytest.mark.parametrize("opcode, kind", [(PING, Ping), (PONG, Pong)])
def test_control_frames_count_as_work(build: Build, opcode: int, kind: Callable[[bytes], Ping | Pong]) -> None:
    steps = steps_of(build.make(), masked(opcode, b"1") * 1000)
    assert plain(joined(steps)) == [kind(b"1")] * 1000
    assert max(map(len, steps)) <= 33


@pytest.mark.slow
@pytest.mark.parametrize("size", [MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1, 5 * MEBIBYTE, 16 * MEBIBYTE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_compressed_message_is_inflated_a_mebibyte_at_a_time(build: Build, opcode: int, size: int) -> None:
    subject = build.make(parameters=COMPRESSION)
    message = b"x" * size
    data = masked(opcode, deflated(message), rsv=4)
    expected = message.decode() if opcode == TEXT else message
    for _ in range(2):  # the next message finds everything in order
        steps = steps_of(subject, data)
        assert joined(steps) == [expected]
        assert len(steps) >= size // MEBIBYTE
    assert subject.state is State.OPEN


def test_compressed_messages_arrive_one_by_one_as_the_queue_fills(build: Build) -> None:
    subject = build.make(parameters=COMPRESSION)
    data = masked(BINARY, deflated(bytes(200_000)), rsv=4)
    steps = steps_of(subject, data * 9)
    assert [len(step) for step in steps] == [2, 2, 2, 2, 1]


def test_the_limit_holds_across_steps(build: Build) -> None:
    subject = build.make(limits=Limits(max_message_size=3 * MEBIBYTE), parameters=COMPRESSION)
    assert joined(steps_of(subject, masked(BINARY, deflated(bytes(3 * MEBIBYTE)), rsv=4))) == [bytes(3 * MEBIBYTE)]
    (event,) = joined(steps_of(subject, masked(BINARY, deflated(bytes(3 * MEBIBYTE + 1)), rsv=4)))
    assert failure(plain([event])[0])[1] == 1009
    assert not subject.receiver.backlog


def test_bad_utf_8_in_a_later_step_fails_the_connection_and_drops_the_rest(build: Build) -> None:
    subject = build.make(parameters=COMPRESSION)
    text = b"x" * (3 * MEBIBYTE) + b"\xff" + b"x" * MEBIBYTE
    (event,) = joined(steps_of(subject, masked(TEXT, deflated(text), rsv=4) + masked(TEXT, b"behind")))
    assert failure(plain([event])[0])[1] == 1007
    assert subject.receive_more(START) == []


def test_new_bytes_wait_behind_a_backlog(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_messages=2))
    first = b"".join(masked(TEXT, b"%d" % number) for number in range(10))
    rest = b"".join(masked(TEXT, b"%d" % number) for number in range(10, 20))
    events = subject.receive_step(first, len(first), START)
    memory = bytearray(rest)
    assert subject.receive_step(memory[:7], 7, START) == []
    assert subject.receive_step(memory[7:], len(rest) - 7, START) == []
    memory[:] = b"\xff" * len(memory)
    while subject.receiver.backlog:
        events += subject.receive_more(START)
    assert events == [str(number) for number in range(20)]


@pytest.mark.parametrize("borrowed", [bytes, bytearray])
def test_borrowed_memory_may_change_between_steps(build: Build, borrowed: type) -> None:
    subject = build.make(limits=Limits(max_queued_messages=2))
    memory = borrowed(b"".join(masked(TEXT, b"%d" % number) for number in range(50)))
    events = subject.receive_step(memory, len(memory), START)
    if isinstance(memory, bytearray):
        memory[:] = b"\xff" * len(memory)
    while subject.receiver.backlog:
        events += subject.receive_more(START)
    assert events == [str(number) for number in range(50)]


def test_a_close_in_a_backlog_ends_it(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_messages=2))
    data = masked(TEXT, b"x") * 10 + wire.close(1000, "bye", key=wire.KEY) + masked(TEXT, b"behind")
    assert joined(steps_of(subject, data)) == ["x"] * 10 + [CloseReceived(1000, "bye")]
    assert not subject.receiver.backlog


def test_the_end_of_the_connection_drops_a_backlog(build: Build) -> None:
    for end in (Protocol.abort, Protocol.receive_eof):
        subject = build.make(limits=Limits(max_queued_messages=2))
        data = masked(TEXT, b"x") * 10
        assert len(subject.receive_step(data, len(data), START)) == 3
        getattr(subject, end.__name__)()
        assert not subject.receiver.backlog
        assert subject.receive_more(START) == []


def test_a_message_behind_a_backlog_is_not_read_in_place(build: Build) -> None:
    subject = build.make(limits=Limits(max_queued_messages=2))
    data = masked(TEXT, b"x") * 10 + masked(BINARY, bytes(100_000))[:500]
    events = subject.receive_step(data, len(data), START)
    assert subject.receiver.payload_to_come() == 0
    while subject.receiver.backlog:
        events += subject.receive_more(START)
    assert events == ["x"] * 10
    assert subject.receiver.payload_to_come() > 90_000
