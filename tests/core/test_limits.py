"""core/limits.py: every limit in one place, on by default (RFC 6455 section 10.4)."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import pytest

from watershed_mw.core.limits import Limits

NAMES = [field.name for field in dataclasses.fields(Limits)]
OPTIONAL = [
    "max_message_size",
    "max_message_rate",
    "max_memory",
    "message_timeout",
    "max_compression_ratio",
    "ping_interval",
    "ping_timeout",
]
RATES = ["max_message_rate", "max_inflate_rate"]
RATIOS = ["max_compression_ratio"]
COUNTS = [name for name in NAMES if name.startswith("max_") and name not in [*RATES, *RATIOS, "max_memory"]]


def make(name: str, value: Any) -> Limits:
    """Limits with one of them set."""
    return Limits(**{name: value})


@pytest.mark.need(6, 16)
def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(Limits()) == {
        "max_message_size": 16 * 2**20,
        "max_fragments": 131072,
        "max_message_rate": None,
        "message_timeout": 30.0,
        "max_compression_ratio": 64.0,
        "max_inflate_rate": 64 * 2**20,
        "ping_interval": 20.0,
        "ping_timeout": 20.0,
        "close_timeout": 10.0,
        "reply_timeout": 1.0,
        "max_queued_messages": 32,
        "max_queued_bytes": 256 * 2**10,
        "max_memory": 0.25,
        "max_unsent_bytes": 64 * 2**20,
    }


def test_limits_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().max_message_size = None  # type: ignore[misc]


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_switches_a_limit_off(name: str) -> None:
    assert getattr(make(name, None), name) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OPTIONAL])
def test_other_limits_cannot_be_switched_off(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} as a .* above 0, got None: only max_message_size, "):
        make(name, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, True, False, "5", b"5", [5], -0.5, math.nan, math.inf, 2**63])
def test_values_that_are_not_positive_numbers_are_refused(name: str, value: object) -> None:
    # Every comparison with NaN is false: such a limit would limit nothing, such a deadline never come.
    with pytest.raises(ValueError, match=f"expected {name} as a ") as caught:
        make(name, value)
    kind = "a number per second" if name in RATES else "a number of seconds"
    if name in RATIOS:
        kind = "a number"
    if name == "max_memory":
        kind = "a share of the memory below 1, or a whole number"
    if name in COUNTS:
        kind = "a whole number"
    assert f"expected {name} as {kind} above 0, got {value!r}: " in str(caught.value)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_must_be_integers(name: str) -> None:
    # 0.5 bytes would become a limit of none; the compiled build cannot hold such a number of fragments.
    for value in (0.5, 1.5, 3.0):
        with pytest.raises(ValueError, match=f"expected {name} as a whole number above 0"):
            make(name, value)
    assert getattr(make(name, 1), name) == 1
    assert getattr(make(name, sys.maxsize), name) == sys.maxsize


@pytest.mark.parametrize("name", [name for name in NAMES if name not in [*COUNTS, "max_memory"]])
def test_times_and_rates_may_be_any_positive_number(name: str) -> None:
    for value in (0.001, 1, 3.5, 1e9):
        assert getattr(make(name, value), name) == value


def test_memory_is_a_fraction_or_a_number_of_bytes() -> None:
    for value in (0.001, 0.25, 0.999, 1, 10**12):
        assert make("max_memory", value).max_memory == value
    for value in (1.0, 1.5, 1e9):
        with pytest.raises(ValueError, match="expected max_memory as a share of the memory below 1, or a whole number"):
            make("max_memory", value)
