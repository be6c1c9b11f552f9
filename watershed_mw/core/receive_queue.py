"""When to stop reading: what was received, and the application has not taken yet.

Reading pauses above a high-water mark of messages or bytes and goes on below half of it, so that
a busy connection does not pause and resume around every message. The queue only says so; to obey
is the driver's part. This file is compiled as well as interpreted.
"""

from __future__ import annotations

import sys

from .events import Event
from .limits import Limits

__all__ = ["ReceiveQueue"]

# Characters from which on it is looked at how many bytes each takes; below, their number stands in for bytes, as exact
# counting would cost an encoding.
_LARGE = 4096


class ReceiveQueue:
    """Events in the order in which they came.

    The first has a place of its own, as mostly there is no other. Those that come after it are put on one pile, and
    taken from another that is the first one turned over: a deque that is empty takes 700 bytes.

    Args:
        limits: gives ``max_queued_messages`` and ``max_queued_bytes``.

    Attributes:
        full: whether reading should pause.
        size: bytes of the messages in it.
    """

    __slots__ = ("_come", "_first", "_max_bytes", "_max_events", "_next", "count", "full", "size")

    def __init__(self, limits: Limits) -> None:
        self._first: Event | None = None
        # Both at once, with the second event.
        self._come: list[Event] | None = None
        self._next: list[Event] | None = None
        self.count = 0
        self.size = 0
        self._max_events = limits.max_queued_messages
        self._max_bytes = limits.max_queued_bytes
        self.full = False

    def put(self, event: Event) -> None:
        """Add an event at the end; it is never refused, as what was read cannot be given back."""
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
        """Remove and return the event that came first.

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
        """Bytes by which :attr:`size` drops with the next :meth:`take`."""
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
        """Stay full, however much is taken: an event has been dropped, and none after it is to be received."""
        self.full = True
        self._max_events = -1

    def clear(self) -> None:
        """Forget everything."""
        self._first = self._come = self._next = None
        self.count = self.size = 0
        self.full = False

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return self.count > 0


def _memory_of(message: str | bytes) -> int:
    """Bytes that a message takes: a single emoji makes four of every character."""
    return len(message) if isinstance(message, bytes) or message.isascii() else sys.getsizeof(message)
