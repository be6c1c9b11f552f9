"""Received events that the application has not taken, with marks for the read pause.

Reading pauses above a high-water mark of messages or bytes and resumes below half of it, so that a busy connection does
not pause and resume with every message. The queue only sets the flag; the driver pauses. This file is compiled as well
as interpreted.
"""

from __future__ import annotations

import sys

from .events import Event
from .limits import Limits

__all__ = ["ReceiveQueue"]

# From this number of characters on, the width of a character is taken into account; for shorter text the number of
# characters is used, as an exact count would need an encoding.
_LARGE = 4096


class ReceiveQueue:
    """A queue of events.

    The first event has its own attribute, as usually there is no other. The rest use two lists: one that events are
    appended to, and a reversed one that they are popped from. An empty deque would take 700 bytes.

    Args:
        limits: gives ``max_queued_messages`` and ``max_queued_bytes``.

    Attributes:
        full: whether reading should pause.
        size: bytes of the queued messages.
    """

    __slots__ = ("_come", "_first", "_max_bytes", "_max_events", "_next", "count", "full", "size")

    def __init__(self, limits: Limits) -> None:
        self._first: Event | None = None
        # Both are created with the second event.
        self._come: list[Event] | None = None
        self._next: list[Event] | None = None
        self.count = 0
        self.size = 0
        self._max_events = limits.max_queued_messages
        self._max_bytes = limits.max_queued_bytes
        self.full = False

    def put(self, event: Event) -> None:
        """Append an event; it is never refused, as bytes that were read cannot be pushed back."""
        if self.count == 0:
            self._first = event
        else:
            if self._come is None:
                self._come, self._next = [], []
            self._come.append(event)
        self.count += 1
        if isinstance(event, (str, bytes)):
            size = len(event)
            self.size += size if size < _LARGE else _memory_of(event)
        if self.count > self._max_events or self.size > self._max_bytes:
            self.full = True

    def take(self) -> Event:
        """Remove and return the first event.

        Raises:
            IndexError: the queue is empty.
        """
        event = self._first
        if event is None:
            raise IndexError("take from an empty queue")
        self.count -= 1
        self._first = None if self.count == 0 else self._following()
        if isinstance(event, (str, bytes)):
            size = len(event)
            self.size -= size if size < _LARGE else _memory_of(event)
        if self.full and self.count <= self._max_events // 2 and self.size <= self._max_bytes // 2:
            self.full = False
        return event

    def first_size(self) -> int:
        """Bytes by which the next :meth:`take` reduces :attr:`size`."""
        event = self._first
        if not isinstance(event, (str, bytes)):
            return 0
        size = len(event)
        return size if size < _LARGE else _memory_of(event)

    def _following(self) -> Event:
        assert self._come is not None
        assert self._next is not None
        if not self._next:
            self._come.reverse()
            self._come, self._next = self._next, self._come
        return self._next.pop()

    def stay_full(self) -> None:
        """Stay full whatever is taken: an event was dropped, and no later one may be received."""
        self.full = True
        self._max_events = -1

    def clear(self) -> None:
        """Drop all events."""
        self._first = self._come = self._next = None
        self.count = self.size = 0
        self.full = False

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return self.count > 0


def _memory_of(message: str | bytes) -> int:
    """Bytes that a message takes in memory: a single emoji makes every character take four."""
    return len(message) if isinstance(message, bytes) or message.isascii() else sys.getsizeof(message)
