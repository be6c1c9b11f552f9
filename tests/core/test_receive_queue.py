"""core/receive_queue.py: when to pause reading. No RFC requires it: TCP holds back unread data."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest

from tests.support.builds import Build
from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.core.limits import Limits
from watershed_mw.core.receive_queue import ReceiveQueue
from watershed_mw.errors import RemoteProtocolError

Queues: TypeAlias = "Callable[..., ReceiveQueue]"


@pytest.fixture
def queue(build: Build) -> Queues:
    """Makes queues with small limits."""

    def make(messages: int = 10, size: int = 1000) -> ReceiveQueue:
        return build.ReceiveQueue(Limits(max_queued_messages=messages, max_queued_bytes=size))

    return make


def test_events_come_out_in_order(queue: Queues) -> None:
    subject = queue()
    events: list[Event] = ["a", b"b", Ping(b"c"), Pong(b"d"), CloseReceived(1000, ""), Failed(RemoteProtocolError("e"))]
    for event in events:
        subject.put(event)
    assert len(subject) == 6
    assert [subject.take() for _ in events] == events
    assert len(subject) == 0


def test_an_empty_queue_returns_nothing(queue: Queues) -> None:
    with pytest.raises(IndexError):
        queue().take()


def test_the_queue_is_full_above_the_message_limit_until_half_are_taken(queue: Queues) -> None:
    subject = queue(messages=10)
    for _ in range(10):
        subject.put("")
        assert not subject.full
    subject.put("")
    assert subject.full
    while len(subject) > 6:
        subject.take()
        assert subject.full
    subject.take()
    assert not subject.full


def test_the_queue_is_full_above_the_byte_limit_until_half_are_taken(queue: Queues) -> None:
    subject = queue(size=1000)
    for message in (b"x" * 500, "x" * 500):
        subject.put(message)
        assert not subject.full
    subject.put(b"x")
    assert subject.full
    subject.take()
    assert subject.full
    subject.take()
    assert not subject.full


def test_one_message_may_exceed_the_limit(queue: Queues) -> None:
    subject = queue(size=1000)
    subject.put(bytes(100_000))
    assert subject.full
    assert subject.take() == bytes(100_000)
    assert not subject.full


def test_the_limit_may_be_a_single_message(queue: Queues) -> None:
    subject = queue(messages=1)
    subject.put("a")
    assert not subject.full
    subject.put("b")
    assert subject.full
    subject.take()
    assert subject.full
    subject.take()
    assert not subject.full


def test_a_flood_of_control_frames_fills_the_queue_too(queue: Queues) -> None:
    subject = queue(messages=10)
    for _ in range(11):
        subject.put(Ping(b""))
    assert subject.full


def test_clearing_forgets_everything(queue: Queues) -> None:
    subject = queue()
    for _ in range(20):
        subject.put(bytes(100))
    subject.clear()
    assert (len(subject), subject.full) == (0, False)
    for _ in range(10):
        subject.put(bytes(100))
    assert not subject.full


def test_bytes_are_released_exactly(queue: Queues) -> None:
    source = random.Random(1)
    subject = queue(messages=1000, size=1000)
    for _ in range(200):
        sizes = [source.randint(0, 90) for _ in range(source.randint(1, 11))]
        for size in sizes:
            subject.put(bytes(size))
        assert subject.full is (sum(sizes) > 1000)
        for _ in sizes:
            subject.take()
    subject.put(bytes(1000))
    assert not subject.full


def test_a_huge_limit_is_never_reached(queue: Queues) -> None:
    subject = queue(messages=2**63 - 1, size=2**63 - 1)
    subject.put("a")
    assert not subject.full


def test_the_order_is_kept_when_events_are_taken_in_between(queue: Queues) -> None:
    source = random.Random(2)
    subject = queue(messages=10_000)
    come: list[str] = []
    taken: list[Event] = []
    for _ in range(500):
        for _ in range(source.randint(0, 5)):
            come.append(str(len(come)))
            subject.put(come[-1])
        taken += [subject.take() for _ in range(min(source.randint(0, 5), len(subject)))]
        assert bool(subject) is (len(subject) > 0)
    assert taken == come[: len(taken)]
    assert len(subject) == len(come) - len(taken)
