"""One timer per event loop for all of its connections: an idle connection owns no timer.

Connections say when they next want to be called; the loop's own timer is set for the earliest.
A time that moves later costs nothing: the call then comes early and the connection asks again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from weakref import WeakKeyDictionary

__all__ = ["Alarm", "Entry", "alarm_of"]


# Seconds: loops count in milliseconds, and one that rings too early finds nothing to do and has to ring again.
_GRAIN = 0.001


@dataclass(slots=True, eq=False)
class Entry:
    """A call to come; ``callback`` is None once it is cancelled."""

    when: float
    callback: Callable[[], None] | None


class Alarm:
    """The timer of one event loop; used on that loop's thread alone."""

    def __init__(self) -> None:
        # In tuples, which C compares: the number decides between equal times.
        self._heap: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()
        self._waiting = 0
        self._handle: asyncio.TimerHandle | None = None
        self._handle_time = inf

    def set(self, when: float, callback: Callable[[], None]) -> Entry:
        """Call ``callback`` at ``when``, in seconds of ``time.monotonic()``; :meth:`cancel` takes the result."""
        entry = Entry(when, callback)
        heapq.heappush(self._heap, (when, next(self._numbers), entry))
        self._waiting += 1
        if when < self._handle_time:
            self._start(when)
        return entry

    def cancel(self, entry: Entry) -> None:
        """Forget an entry; its callback, and whatever that holds on to, is let go at once."""
        if entry.callback is None:
            return
        entry.callback = None
        self._waiting -= 1
        if self._waiting == 0:
            # Nothing holds on to the loop once its last connection has gone.
            self._heap.clear()
            self._stop()
        elif len(self._heap) > 64 and len(self._heap) > 2 * self._waiting:
            # Many short connections beside a long one leave their cancelled entries behind.
            self._heap = [item for item in self._heap if item[2].callback is not None]
            heapq.heapify(self._heap)

    def _start(self, when: float) -> None:
        self._stop()
        self._handle_time = when
        self._handle = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()) + _GRAIN, self._ring)

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._handle_time = inf

    def _ring(self) -> None:
        self._stop()
        now = time.monotonic()
        try:
            while self._heap and (self._heap[0][2].callback is None or self._heap[0][0] <= now):
                entry = heapq.heappop(self._heap)[2]
                callback = entry.callback
                if callback is not None:
                    entry.callback = None
                    self._waiting -= 1
                    callback()
        finally:
            # Whatever a callback raised, the others' time will come.
            if self._heap and self._heap[0][0] < self._handle_time:
                self._start(self._heap[0][0])


_alarms: WeakKeyDictionary[asyncio.AbstractEventLoop, Alarm] = WeakKeyDictionary()


def alarm_of(loop: asyncio.AbstractEventLoop) -> Alarm:
    """The one :class:`Alarm` of ``loop``."""
    alarm = _alarms.get(loop)
    if alarm is None:
        alarm = _alarms[loop] = Alarm()
    return alarm
