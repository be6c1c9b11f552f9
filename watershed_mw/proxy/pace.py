"""The time limit of a streamed refusal: a stalled side must not hold the other one.

It asks for the rate of a slow link, after a grace period as long as the upstream had for its response head.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Pace"]

# Bytes per second. nginx and Apache's mod_reqtimeout are content with 500, for requests that a person may type.
_RATE: Final = 16 * 2**10
# Bytes of a body: an error page is small, and an endless one is no error page.
_MAX_SIZE: Final = 16 * 2**20


class Pace:
    """The time that a body has: a grace period, extended by a second for every 16 KiB, up to the whole grace period.

    Because of that cap, a burst into the buffers on the way does not earn a long stall.

    Args:
        grace: seconds.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until = time.monotonic() + grace
        self._passed = 0

    def passed(self, size: int) -> None:
        """Count ``size`` more bytes as passed on."""
        self._passed += size
        self._until = min(self._until + size / _RATE, time.monotonic() + self._grace)

    @property
    def remaining(self) -> float:
        """Remaining seconds; 0 when the time is up, or after 16 MiB."""
        return 0.0 if self._passed > _MAX_SIZE else max(0.0, self._until - time.monotonic())
