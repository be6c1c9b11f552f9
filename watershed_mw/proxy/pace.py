"""How long an upstream's refusal may take on its way: a side that stands still must not hold the other one.

The rate is that of a slow link, and the time before it counts is the one that the upstream had for its head.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Pace"]

# Bytes a second. nginx and Apache's mod_reqtimeout ask for as little as 500, of requests that a person may type.
_RATE: Final = 16 * 2**10
# Bytes of a body: it is a page that says why, and none that has no end.
_MOST: Final = 16 * 2**20


class Pace:
    """The time that a body has: a grace, to which each 16 KiB that pass add a second, and never more than the grace.

    What buffers on the way take at once so earns no time in which nothing passes.

    Args:
        grace: seconds.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until = time.monotonic() + grace
        self._passed = 0

    def passed(self, size: int) -> None:
        """So many bytes more have been passed on."""
        self._passed += size
        self._until = min(self._until + size / _RATE, time.monotonic() + self._grace)

    @property
    def left(self) -> float:
        """Seconds that are left; none past the bound of 16 MiB."""
        return 0.0 if self._passed > _MOST else max(0.0, self._until - time.monotonic())
