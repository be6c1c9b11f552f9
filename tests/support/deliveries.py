"""Bytes fed to a protocol in every way that a network can deliver them, and the observable results.

Most protocol tests are built on ``deliver``: a stream must have the same result whole, byte by byte, in random pieces,
and with more bytes behind it. It relies on public names only, so that it trusts neither build.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.support import wire
from tests.support.builds import START
from watershed_mw.core import protocol
from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.core.states import Role, State

# --- events that can be compared -------------------------------------------------------------------------

Plain: TypeAlias = "str | bytes | Ping | Pong | CloseReceived | tuple[str, str, int]"


def plain(events: Sequence[Event]) -> list[Plain]:
    """``events`` with each failure as (type, text, close code), because equal exceptions do not compare equal."""
    return [
        (type(event.error).__name__, str(event.error), event.error.close_code) if isinstance(event, Failed) else event
        for event in events
    ]


def failure(event: Plain) -> tuple[str, int]:
    """Text and close code of an event that must be a failure of the peer."""
    assert isinstance(event, tuple), f"expected a failure, got {event!r}"
    name, text, close_code = event
    assert name == "RemoteProtocolError"
    return text, close_code


@dataclass
class Outcome:
    """Everything that is observable from outside after some bytes were received."""

    events: list[Plain] = field(default_factory=list)
    state: State = State.OPEN
    sent: list[wire.Frame] = field(default_factory=list)
    deadline: float | None = None
    close_code: int | None = None
    close_reason: str | None = None
    counts: tuple[int, ...] = ()


def outcome(subject: protocol.Protocol, events: Sequence[Event]) -> Outcome:
    """The observable state of ``subject``; takes its outgoing bytes.

    A client's masking keys must be random, so they are left out and only checked for presence.
    """
    sent = wire.frames(subject.data_to_send())
    return Outcome(
        plain(events),
        subject.state,
        [wire.Frame(item.opcode, item.payload, item.fin, item.rsv) for item in sent],
        subject.next_deadline(),
        subject.close_code,
        subject.close_reason,
        (
            subject.counts().frames_received,
            subject.counts().frames_sent,
            subject.counts().messages_received,
            subject.messages_sent,
        ),
    )


# --- chunkings -------------------------------------------------------------------------------------------


def chunkings(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in eight random chunkings that are the same in every run."""
    yield [data]
    yield [data[index : index + 1] for index in range(len(data))]
    source = random.Random(len(data))
    for most in (2, 3, 7, 14, 40, 126, 1000, 5000):
        yield cut(data, source, most)


def cut(data: bytes, source: random.Random, most: int) -> list[bytes]:
    """``data`` in pieces of 0 to ``most`` bytes: an empty read must be harmless too."""
    chunks = []
    position = 0
    while position < len(data):
        size = source.randint(0, most)
        chunks.append(data[position : position + size])
        position += size
    return chunks


def feed(subject: protocol.Protocol, chunks: Sequence[bytes], now: float = START) -> list[Event]:
    """Feed ``chunks`` to ``subject`` one after another."""
    events: list[Event] = []
    for chunk in chunks:
        events += subject.receive_data(chunk, now)
    return events


def lend(subject: protocol.Protocol, chunks: Sequence[bytes], now: float = START) -> list[Event]:
    """As :func:`feed`, but all through one memory block, with other bytes behind the chunk, overwritten afterwards."""
    events: list[Event] = []
    memory = bytearray(max(map(len, chunks), default=0) + 1)
    for chunk in filter(None, chunks):
        memory[: len(chunk)] = chunk
        events += subject.receive_step(memory, len(chunk), now)
        memory[:] = b"\xff" * len(memory)
        while subject.receiver.backlog:
            events += subject.receive_more(now)
    return events


def deliver(make: Callable[[], protocol.Protocol], data: bytes, role: Role = Role.SERVER) -> Outcome:
    """Feed ``data`` to a new protocol in every chunking, and with bytes behind it; all must come to the same.

    Args:
        make: gives a new protocol each time.
        data: complete frames, or frames up to a violation.
        role: that of the protocols which ``make`` gives.
    """
    subject = make()
    expected = outcome(subject, subject.receive_data(data, START))
    for chunks in chunkings(data):
        for give in (feed, lend):
            subject = make()
            seen = outcome(subject, give(subject, chunks))
            assert seen == expected, f"{give.__name__} in chunks of {[len(chunk) for chunk in chunks][:50]}"
    over = expected.state not in (State.OPEN, State.CLOSING)
    pong = wire.frame(wire.PONG, b"behind", key=peer_key(role))
    _deliver_with_trailing_bytes(make(), data, pong[:1], expected.events)
    _deliver_with_trailing_bytes(make(), data, pong, expected.events + ([] if over else [Pong(b"behind")]))
    _deliver_with_trailing_bytes(make(), data, b"\xff" * 20, expected.events + ([] if over else [RESERVED_BITS]))
    return expected


def _deliver_with_trailing_bytes(
    subject: protocol.Protocol, data: bytes, trailing: bytes, expected: list[Plain]
) -> None:
    assert plain(subject.receive_data(data + trailing, START)) == expected


RESERVED_BITS: Plain = (
    "RemoteProtocolError",
    "expected reserved bits of 0, got one that no extension has given a meaning",
    1002,
)
"""What a frame means that begins with bytes of 0xFF."""


def peer_key(role: Role) -> bytes | None:
    """The masking key that a peer of ``role`` uses: clients mask, servers do not."""
    return wire.KEY if role is Role.SERVER else None


# --- memory ---------------------------------------------------------------------------------------
