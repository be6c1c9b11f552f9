"""How many connections a door may have open at once: places that are taken and given back."""

from __future__ import annotations

import threading

from .errors import HandshakeError

__all__ = ["Room"]


class Room:
    """The places behind one door, per process; threads may share it.

    Args:
        most: how many there are (``max_connections``); None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Take a place, which :meth:`leave` gives back.

        Raises:
            HandshakeError: there is none; status 503 with Retry-After.
        """
        with self._lock:
            if self._most is None or self._taken < self._most:
                self._taken += 1
                return
        raise HandshakeError(
            f"expected at most {self._most} connections at once (max_connections), got one more: try again later",
            status=503,
            headers=[("Retry-After", "1")],
        )

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._taken -= 1
