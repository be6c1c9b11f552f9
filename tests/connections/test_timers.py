"""The timer that all connections of an event loop share: no callback is early, forgotten, or kept alive by it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from tests.support import LIMIT
from watershed_mw.runtime.timers import Timers, timers_of


class Caller:
    """The callback of a timer; it records when it runs."""

    def __init__(self, *, due: float, after: Callable[[], object] = lambda: None) -> None:
        self.due = due
        self.called: list[float] = []
        self.after = after

    def call(self) -> None:
        self.called.append(time.monotonic())
        self.after()


def on_a_loop(scenario: Callable[[Timers], Awaitable[None]]) -> None:
    async def main() -> None:
        timers = timers_of(asyncio.get_running_loop())
        assert timers is timers_of(asyncio.get_running_loop())
        await scenario(timers)
        assert (timers._waiting, timers._times, timers._calls, timers._handle) == (0, [], {}, None)

    asyncio.run(asyncio.wait_for(main(), LIMIT))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # what is waited for is the timers' own doing
        await asyncio.sleep(0.001)


def test_every_callback_runs_once_and_not_too_early() -> None:
    async def scenario(timers: Timers) -> None:
        start = time.monotonic()
        callers = [Caller(due=start + random.uniform(-0.01, 0.05)) for _ in range(500)]
        for caller in callers:
            timers.set(caller.due, Caller.call, caller)
        await until(lambda: all(caller.called for caller in callers))
        for caller in callers:
            (called,) = caller.called
            assert called >= caller.due

    on_a_loop(scenario)


def test_a_cancelled_callback_does_not_run() -> None:
    async def scenario(timers: Timers) -> None:
        now = time.monotonic()
        callers = [Caller(due=now + 0.02) for _ in range(50)]
        times = [timers.set(caller.due, Caller.call, caller) for caller in callers]
        for when, caller in list(zip(times, callers, strict=True))[::2]:
            timers.cancel(when, caller)
            timers.cancel(when, caller)  # once more is no harm
        await until(lambda: all(caller.called for caller in callers[1::2]))
        assert not any(caller.called for caller in callers[::2])

    on_a_loop(scenario)


def test_many_deadlines_at_once_do_not_block_the_loop() -> None:
    async def scenario(timers: Timers) -> None:
        when = time.monotonic() + 0.01
        callers = [Caller(due=when) for _ in range(1000)]
        for caller in callers:
            timers.set(when, Caller.call, caller)
        seen: set[int] = set()
        while (count := sum(map(len, (caller.called for caller in callers)))) < len(callers):
            seen.add(count)
            await asyncio.sleep(0)
        assert all(len(caller.called) == 1 for caller in callers)
        assert len(seen) > 2, "others had their turns between"

    on_a_loop(scenario)


def test_a_cancelled_callback_is_released_immediately() -> None:
    async def scenario(timers: Timers) -> None:
        stays, goes = Caller(due=0.0), Caller(due=0.0)
        when = time.monotonic() + 1000
        times = [timers.set(when, Caller.call, caller) for caller in (stays, goes)]
        reference = weakref.ref(goes)
        timers.cancel(times[1], goes)
        del goes
        gc.collect()
        assert reference() is None
        timers.cancel(times[0], stays)

    on_a_loop(scenario)


def test_a_callback_may_set_and_cancel_others() -> None:
    async def scenario(timers: Timers) -> None:
        when = time.monotonic() + 0.01
        last = Caller(due=0.0)
        victims = [Caller(due=when), Caller(due=when)]

        def spare(other: Caller) -> None:
            """Whichever runs first cancels the other, and sets a time that has already passed."""
            timers.cancel(times[0], other)
            timers.set(0.0, Caller.call, last)

        for victim, other in zip(victims, reversed(victims), strict=True):
            victim.after = partial(spare, other)
        times = [timers.set(when, Caller.call, victim) for victim in victims]
        assert times[0] == times[1], "both are due in the same moment"
        await until(lambda: last.called)
        assert sorted(len(victim.called) for victim in victims) == [0, 1]

    on_a_loop(scenario)


def test_a_callback_that_raises_does_not_stop_others() -> None:
    async def scenario(timers: Timers) -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))

        def fail() -> None:
            raise ValueError("a call failed")

        when = time.monotonic() + 0.01
        callers = [Caller(due=when, after=fail if number % 2 else lambda: None) for number in range(6)]
        for caller in callers:
            timers.set(when, Caller.call, caller)
        await until(lambda: all(caller.called for caller in callers))
        await until(lambda: len(failures) == 3)

    on_a_loop(scenario)


@pytest.mark.parametrize("ahead, late", [(0.5, 0.001), (5.0, 1 / 64), (20.0, 1 / 8), (10**9, 1 / 8)])
def test_distant_deadlines_may_be_coalesced(ahead: float, late: float) -> None:
    async def scenario(timers: Timers) -> None:
        callers = [Caller(due=time.monotonic() + ahead + 0.4 * random.random()) for _ in range(1000)]
        times = [timers.set(caller.due, Caller.call, caller) for caller in callers]
        for when, caller in zip(times, callers, strict=True):
            assert caller.due <= when <= caller.due + late
            timers.cancel(when, caller)
        assert len(set(times)) <= 0.4 / late + 2

    on_a_loop(scenario)
