"""Limits on the speed of messages: how fast they may inflate, and how slowly they may arrive.

This file is compiled as well as interpreted; the C types are in ``pace.pxd``. It reads no clock: the current time is an
argument, in seconds of a monotonic clock.
"""

from __future__ import annotations

from math import inf

from ..errors import RemoteProtocolError
from .limits import INFLATE_ALLOWANCE, SLOWEST_MESSAGE, Limits, inflates_too_much, too_slow

__all__ = ["Arrival", "InflateRate"]

_ALLOWANCE = INFLATE_ALLOWANCE  # C integers in the compiled build
_SLOWEST = SLOWEST_MESSAGE
# Caps numbers of bytes, with room for 64-bit arithmetic.
_HUGE = 2.0**60


class InflateRate:
    """How many bytes a peer's compressed messages may inflate to.

    Each compressed byte pays for ``max_compression_ratio`` decompressed ones, and the first few KiB of each message are
    free. The excess is taken from a token bucket, so that a single message that compresses extremely well is accepted,
    and a stream of them is not.

    Args:
        limits: both limits, and the size of the bucket; the ratio is not None.
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
        """Start a message."""
        self._paid = _ALLOWANCE

    def allow(self, size: int, now: float) -> int:
        """How many bytes the message's next ``size`` bytes may inflate to; call :meth:`spend` afterwards."""
        self._bucket = min(self._burst, self._bucket + (now - self._at) * self._rate)
        self._at = now
        self._paid += size * self._ratio
        return int(min(_HUGE, self._paid + self._bucket))

    def spend(self, size: int) -> None:
        """Record how many bytes they inflated to."""
        self._paid -= size
        if self._paid < 0.0:
            self._bucket += self._paid
            self._paid = 0.0

    def error(self) -> RemoteProtocolError:
        """The error for data that inflates to more than :meth:`allow` returned."""
        return inflates_too_much(self._ratio, self._rate)


class Arrival:
    """An incomplete message or control frame from the peer.

    Args:
        timeout: ``message_timeout``.

    Attributes:
        number: identifies it for the caller.
        since: when it started, plus the time in which nothing was read.
    """

    __slots__ = ("_position", "_timeout", "number", "since")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._position = 0
        self.number = 0
        self.since = inf

    def watch(self, number: int, header: int, position: int, now: float) -> None:
        """Watch the arrival of ``number``, which starts after ``position`` bytes of the stream.

        It may be watched already, possibly as ``header`` while only its header had arrived.
        """
        if self.since == inf or (self.number != number and self.number != header):
            self._position = position
            self.since = now
        self.number = number

    def due(self, position: int) -> float:
        """The time at which it is too slow if the stream has not advanced beyond ``position``."""
        return self.since + self._timeout + (position - self._position) / _SLOWEST

    def error(self, position: int, now: float) -> RemoteProtocolError:
        """The error for an arrival that is too slow."""
        return too_slow(self._timeout, now - self.since, position - self._position)
