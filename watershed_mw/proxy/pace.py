"""The time limit of a streamed refusal: a stalled side must not hold up the other.

The limit requires the rate of a slow link, after a grace period as long as the time limit for the response head.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Pace"]

# Bytes per second.
_RATE: Final = 16 * 2**10
# Maximum bytes of a body: error pages are small, and a hostile upstream could send an endless one.
_MAX_SIZE: Final = 16 * 2**20


class Pace:
    """The time limit of a body: a grace period, extended by a second for every 16 KiB.

    The remaining time never exceeds the grace period, so a burst into intermediate buffers does not earn a long stall.

    Args:
        grace: seconds.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until = time.monotonic() + grace
        self._passed = 0

    def passed(self, size: int) -> None:
        """Count ``size`` more bytes as forwarded."""
        self._passed += size
        self._until = min(self._until + size / _RATE, time.monotonic() + self._grace)

    @property
    def remaining(self) -> float:
        """Remaining seconds; 0 when the time is up, or after 16 MiB."""
        return 0.0 if self._passed > _MAX_SIZE else max(0.0, self._until - time.monotonic())
