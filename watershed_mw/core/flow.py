"""When to stop reading, and when a peer sends too often.

Reading pauses above a high-water mark of messages or bytes and goes on below half of it, so that
a busy connection does not pause and resume around every message. The queue only says so; to obey
is the shell's part.
"""

from __future__ import annotations

from collections import deque

from ..errors import RemoteProtocolError
from .events import Event
from .limits import Limits

__all__ = ["MessageRate", "ReceiveQueue"]


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


class MessageRate:
    """How many messages and control frames a peer may still send: an allowance that fills up with time.

    Args:
        rate: per second; one second's worth may come at once, and one message always.
        now: current time in seconds, of the clock that :meth:`spend` is given.
    """

    __slots__ = ("_allowance", "_at", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._allowance = max(1.0, rate)
        self._at = now

    def spend(self, now: float) -> None:
        """Count one that came at ``now``.

        Raises:
            RemoteProtocolError: it is one too many; close code 1008.
        """
        self._allowance = min(max(1.0, self._rate), self._allowance + (now - self._at) * self._rate)
        self._at = now
        if self._allowance < 1.0:
            raise RemoteProtocolError(
                f"expected at most {self._rate:g} messages a second (max_message_rate), got more", close_code=1008
            )
        self._allowance -= 1.0
