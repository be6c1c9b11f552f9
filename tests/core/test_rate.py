"""core/rate.py: the rate at which a peer may send."""

from __future__ import annotations

import pytest

from watershed_mw.core.rate import MessageRate
from watershed_mw.errors import RemoteProtocolError


def spent_at(subject: MessageRate, now: float, most: int = 1000) -> int:
    """How many messages the peer may send at ``now``, up to ``most``."""
    for number in range(most):
        try:
            subject.spend(now)
        except RemoteProtocolError:
            return number
    return most


@pytest.mark.need(27)
@pytest.mark.parametrize("rate, at_once", [(1, 1), (5, 5), (7.9, 7), (1e9, 1000), (0.25, 1), (0.001, 1)])
def test_one_seconds_allowance_may_arrive_at_once_and_one_message_always(rate: float, at_once: int) -> None:
    assert spent_at(MessageRate(rate, 50.0), 50.0) == at_once


@pytest.mark.need(27)
def test_the_allowance_refills_to_at_most_one_second() -> None:
    subject = MessageRate(4, 0.0)
    assert spent_at(subject, 0.0) == 4
    assert spent_at(subject, 0.125) == 0
    assert spent_at(subject, 0.25) == 1, "what was refused was charged"
    assert spent_at(subject, 0.75) == 2
    assert spent_at(subject, 1.75) == 4
    assert spent_at(subject, 3600.0) == 4, "an hour's silence was saved up"


def test_a_rate_below_one_allows_a_message_every_few_seconds() -> None:
    subject = MessageRate(0.25, 0.0)
    assert [spent_at(subject, float(now)) for now in range(13)] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_steady_peer_at_the_rate_is_never_refused() -> None:
    subject = MessageRate(8, 0.0)
    for number in range(2000):
        subject.spend(number / 8)


def test_one_message_too_many_is_refused_with_1008_and_states_the_limit() -> None:
    subject = MessageRate(2.5, 0.0)
    assert spent_at(subject, 0.0) == 2
    with pytest.raises(
        RemoteProtocolError, match=r"^too many messages: at most 2.5 per second \(max_message_rate\)"
    ) as caught:
        subject.spend(0.0)
    assert caught.value.close_code == 1008
