"""One timer per event loop, shared by all of its connections: an idle connection owns no timer.

Connections set the time of their next call; the loop's own timer is set for the earliest one. Postponing a call costs
nothing: the call is made at its old time, and the connection sets a new one.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

__all__ = ["Timers", "timers_of"]

_S = TypeVar("_S")

# Seconds. Loops count in milliseconds, and a timer that fires too early finds no call due and must be set again.
_GRAIN = 0.001
# Distant calls are delayed slightly, to be made together with others: waking the loop costs more than a call. Each pair
# is a bound on the seconds ahead, and the multiple of seconds that calls below that bound are rounded up to.
_GRAINS = ((1.0, 2**-10), (8.0, 2**-6), (math.inf, 2**-3))

# Calls per loop iteration, which take a few milliseconds: connections opened together are due together.
_CALLS_PER_TURN = 256


class Timers:
    """The timer of one event loop; used on that loop's thread only."""

    def __init__(self) -> None:
        # Times, and the calls due then. A call is not an object, as every idle connection has one pending.
        self._calls: dict[float, dict[Any, Callable[[Any], object]]] = {}
        # Their keys as a heap. A time whose calls have all been cancelled stays until it is reached.
        self._times: list[float] = []
        self._waiting = 0
        self._handle: asyncio.TimerHandle | None = None
        self._handle_time = math.inf

    def set(self, when: float, call: Callable[[_S], object], subject: _S) -> float:
        """Call ``call(subject)`` at ``when`` or soon after, in seconds of ``time.monotonic()``.

        Args:
            when: a call that is at least 8 seconds ahead may be an eighth of a second late, others less.
            call: the function; referenced until the call.
            subject: its argument, hashable; it can have only one call per time.

        Returns:
            the time to pass to :meth:`cancel`.
        """
        ahead = when - time.monotonic()
        grain = next(grain for most, grain in _GRAINS if ahead < most)
        when = math.ceil(when / grain) * grain
        calls = self._calls.get(when)
        if calls is None:
            calls = self._calls[when] = {}
            heapq.heappush(self._times, when)
        if subject not in calls:
            self._waiting += 1
        calls[subject] = call
        if when < self._handle_time:
            self._start(when)
        return when

    def cancel(self, when: float, subject: object) -> None:
        """Drop a call that has not been made, and the reference to its subject."""
        calls = self._calls.get(when)
        if calls and calls.pop(subject, None) is not None:
            self._waiting -= 1
            if self._waiting == 0:
                self._stop_all()

    def _start(self, when: float) -> None:
        self._stop()
        self._handle_time = when
        self._handle = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()) + _GRAIN, self._run_due)

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._handle_time = math.inf

    def _stop_all(self) -> None:
        # After the last connection, no timer may keep a reference to the loop.
        self._calls.clear()
        self._times.clear()
        self._stop()

    def _run_due(self) -> None:
        self._stop()
        now = time.monotonic()
        try:
            left = _CALLS_PER_TURN
            # Looked up each time, as a call may set and cancel others.
            while left and self._times and self._times[0] <= now:
                calls = self._calls[self._times[0]]
                if calls:
                    subject, call = calls.popitem()
                    self._waiting -= 1
                    left -= 1
                    call(subject)
                else:
                    del self._calls[heapq.heappop(self._times)]
        finally:
            # The other calls must be made even if one raised.
            if self._waiting == 0:
                self._stop_all()
            elif self._times[0] < self._handle_time:
                self._start(self._times[0])


# Weak on both sides: timers refer to connections, which refer to their loop, which would then never be collected. While
# calls are pending, the loop owns the handle, which keeps the timers alive.
_timers: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Timers]] = WeakKeyDictionary()


def timers_of(loop: asyncio.AbstractEventLoop) -> Timers:
    """The :class:`Timers` of ``loop``."""
    known = _timers.get(loop)
    timers = None if known is None else known()
    if timers is None:
        timers = Timers()
        _timers[loop] = ref(timers)
    return timers
