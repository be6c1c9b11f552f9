"""When to stop reading: a bounded queue of what was received and not yet taken.

Reading pauses above a high-water mark of messages or bytes and goes on below half of it, so that
a busy connection does not pause and resume around every message. The queue only says so; to obey
is the shell's part.
"""

from __future__ import annotations

from collections import deque

from .events import Event
from .limits import Limits

__all__ = ["ReceiveQueue"]


class ReceiveQueue:
    """Events in the order in which they came.

    Args:
        limits: gives ``max_queued_messages`` and ``max_queued_bytes``.

    Attributes:
        full: whether reading should pause.
    """

    __slots__ = ("_bytes", "_events", "_max_bytes", "_max_events", "full")

    def __init__(self, limits: Limits) -> None:
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._max_events = limits.max_queued_messages
        self._max_bytes = limits.max_queued_bytes
        self.full = False

    def put(self, event: Event) -> None:
        """Add an event at the end; it is never refused, as what was read cannot be given back."""
        self._events.append(event)
        self._bytes += _size(event)
        if len(self._events) > self._max_events or self._bytes > self._max_bytes:
            self.full = True

    def take(self) -> Event:
        """Remove and return the event that came first.

        Raises:
            IndexError: the queue is empty.
        """
        event = self._events.popleft()
        self._bytes -= _size(event)
        if self.full and len(self._events) <= self._max_events // 2 and self._bytes <= self._max_bytes // 2:
            self.full = False
        return event

    def clear(self) -> None:
        """Forget everything."""
        self._events.clear()
        self._bytes = 0
        self.full = False

    def __len__(self) -> int:
        return len(self._events)


def _size(event: Event) -> int:
    # A str's length in characters stands in for its bytes: exact counting would cost an encoding.
    return len(event) if isinstance(event, (str, bytes)) else 0
