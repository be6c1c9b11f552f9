"""core/flow.py: when to stop reading. No section of an RFC asks for it: what is not read, TCP's window holds back."""

from __future__ import annotations

import random

import pytest

from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.core.flow import MessageRate, ReceiveQueue
from watershed_mw.core.limits import Limits
from watershed_mw.errors import RemoteProtocolError


def queue(messages: int = 10, size: int = 1000) -> ReceiveQueue:
    """A queue with small marks."""
    return ReceiveQueue(Limits(max_queued_messages=messages, max_queued_bytes=size))


def test_events_come_out_in_their_order() -> None:
    subject = queue()
    events: list[Event] = ["a", b"b", Ping(b"c"), Pong(b"d"), CloseReceived(1000, ""), Failed(RemoteProtocolError("e"))]
    for event in events:
        subject.put(event)
    assert len(subject) == 6
    assert [subject.take() for _ in events] == events
    assert len(subject) == 0


def test_an_empty_queue_gives_nothing() -> None:
    with pytest.raises(IndexError):
        queue().take()


def test_it_is_full_above_the_number_of_messages_and_until_half_of_them_are_taken() -> None:
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


def test_it_is_full_above_the_number_of_bytes_and_until_half_of_them_are_taken() -> None:
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


def test_one_message_may_be_larger_than_the_mark() -> None:
    subject = queue(size=1000)
    subject.put(bytes(100_000))
    assert subject.full
    assert subject.take() == bytes(100_000)
    assert not subject.full


def test_one_message_may_be_all_that_is_allowed() -> None:
    subject = queue(messages=1)
    subject.put("a")
    assert not subject.full
    subject.put("b")
    assert subject.full
    subject.take()
    assert subject.full
    subject.take()
    assert not subject.full


def test_a_flood_of_control_frames_fills_it_too() -> None:
    subject = queue(messages=10)
    for _ in range(11):
        subject.put(Ping(b""))
    assert subject.full


def test_clearing_forgets_everything() -> None:
    subject = queue()
    for _ in range(20):
        subject.put(bytes(100))
    subject.clear()
    assert (len(subject), subject.full) == (0, False)
    for _ in range(10):
        subject.put(bytes(100))
    assert not subject.full


def test_bytes_are_given_back_exactly() -> None:
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


# --- how often a peer may send --------------------------------------------------------------------------


def spent_at(subject: MessageRate, now: float, most: int = 1000) -> int:
    """How many the peer may send at ``now``, at most ``most``."""
    for number in range(most):
        try:
            subject.spend(now)
        except RemoteProtocolError:
            return number
    return most


@pytest.mark.need(27)
@pytest.mark.parametrize("rate, at_once", [(1, 1), (5, 5), (7.9, 7), (1e9, 1000), (0.25, 1), (0.001, 1)])
def test_one_seconds_worth_may_come_at_once_and_one_message_always(rate: float, at_once: int) -> None:
    assert spent_at(MessageRate(rate, 50.0), 50.0) == at_once


@pytest.mark.need(27)
def test_the_allowance_fills_up_with_time_and_never_beyond_one_seconds_worth() -> None:
    subject = MessageRate(4, 0.0)
    assert spent_at(subject, 0.0) == 4
    assert spent_at(subject, 0.125) == 0
    assert spent_at(subject, 0.25) == 1, "what was refused was charged"
    assert spent_at(subject, 0.75) == 2
    assert spent_at(subject, 1.75) == 4
    assert spent_at(subject, 3600.0) == 4, "an hour's silence was saved up"


def test_a_rate_below_one_is_a_message_every_so_often() -> None:
    subject = MessageRate(0.25, 0.0)
    assert [spent_at(subject, float(now)) for now in range(13)] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_steady_peer_at_the_rate_is_never_refused() -> None:
    subject = MessageRate(8, 0.0)
    for number in range(2000):
        subject.spend(number / 8)


def test_one_too_many_is_refused_with_1008_and_says_what_was_expected() -> None:
    subject = MessageRate(2.5, 0.0)
    assert spent_at(subject, 0.0) == 2
    with pytest.raises(
        RemoteProtocolError, match=r"^expected at most 2.5 messages a second \(max_message_rate\)"
    ) as caught:
        subject.spend(0.0)
    assert caught.value.close_code == 1008
