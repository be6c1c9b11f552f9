"""How fast messages may inflate, and how slowly they may come.

This file is compiled as well as interpreted; the C types stand in ``pace.pxd``. It reads no clock: the current time
comes as an argument, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from math import inf

from ..errors import RemoteProtocolError
from .limits import INFLATE_ALLOWANCE, SLOWEST_MESSAGE, Limits, inflates_too_much, too_slow

__all__ = ["Arrival", "InflateRate"]

_ALLOWANCE = INFLATE_ALLOWANCE  # numbers of C's where this is compiled
_SLOWEST = SLOWEST_MESSAGE
# Stands for every larger number of bytes, with room for arithmetic in 64 bits.
_HUGE = 2.0**60


class InflateRate:
    """How much a peer's compressed messages may still inflate to.

    Every byte that comes pays for ``max_compression_ratio`` inflated ones, and every message brings a few KiB besides.
    What inflates to more is taken from a token bucket, so that a single message that compresses extremely well is
    accepted, and a stream of them is not.

    Args:
        limits: gives both limits and the size of the bucket; the ratio is a number.
        now: current time.
    """

    __slots__ = ("_at", "_bucket", "_burst", "_paid", "_rate", "_ratio")

    def __init__(self, limits: Limits, now: float) -> None:
        assert limits.max_compression_ratio is not None
        self._ratio = limits.max_compression_ratio
        self._rate = limits.max_inflate_rate
        self._burst = max(self._rate, limits.max_message_size or 0)
        self._bucket = self._burst
        self._at = now
        self._paid = 0.0

    def begin(self) -> None:
        """A message begins."""
        self._paid = _ALLOWANCE

    def allow(self, size: int, now: float) -> int:
        """How many bytes the next ``size`` compressed bytes of the message may inflate to; :meth:`spend` follows."""
        self._bucket = min(self._burst, self._bucket + (now - self._at) * self._rate)
        self._at = now
        self._paid += size * self._ratio
        return int(min(_HUGE, self._paid + self._bucket))

    def spend(self, size: int) -> None:
        """Take note of what they have inflated to."""
        self._paid -= size
        if self._paid < 0.0:
            self._bucket += self._paid
            self._paid = 0.0

    def error(self) -> RemoteProtocolError:
        """What fails the connection when :meth:`allow` was not enough."""
        return inflates_too_much(self._ratio, self._rate)


class Arrival:
    """Something that a peer has begun to send and not finished: a message, or a control frame.

    Args:
        timeout: ``message_timeout``.

    Attributes:
        number: which one it is, for the one who watches.
        since: when it began; moved later by the time in which nothing was read.
    """

    __slots__ = ("_position", "_timeout", "number", "since")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._position = 0
        self.number = 0
        self.since = inf

    def watch(self, number: int, header: int, position: int, now: float) -> None:
        """Watch the arrival of ``number``, which began after ``position`` bytes of the stream.

        It may be watched already, or have been watched as ``header``, when no more of it had come.
        """
        if self.since == inf or (self.number != number and self.number != header):
            self._position = position
            self.since = now
        self.number = number

    def due(self, position: int) -> float:
        """When it is too slow, if the stream is still at ``position`` by then."""
        return self.since + self._timeout + (position - self._position) / _SLOWEST

    def error(self, position: int, now: float) -> RemoteProtocolError:
        """What fails the connection then."""
        return too_slow(self._timeout, now - self.since, position - self._position)
