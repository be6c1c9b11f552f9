"""How many connections an integration may have open at once: places that are taken and released."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import ref

from ..errors import HandshakeError

__all__ = ["ConnectionLimit", "Place"]


class Place:
    """One place, taken until it is released or collected.

    Releasing it twice is harmless, and a signal handler's exception cannot come in between: it is one call of a set's
    own method. So code that may have been interrupted releases the place once more.
    """

    __slots__ = ("__weakref__", "_places")

    def __init__(self, places: set[ref[Place]], collected: Callable[[ref[Place]], None]) -> None:
        self._places = places
        places.add(ref(self, collected))

    def leave(self) -> None:
        """Release the place."""
        self._places.discard(ref(self))


class ConnectionLimit:
    """The places of one integration, per process; threads may share it.

    Args:
        most: how many there are (``max_connections``); None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        # Weak: a connection that is collected does not hold its place for ever.
        self._places: set[ref[Place]] = set()
        self._collected = self._places.discard  # one for all places: it takes more memory than a place
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._places)

    def enter(self) -> Place:
        """Take a place; keep what is returned.

        Raises:
            HandshakeError: there is none; status 503 with Retry-After.
        """
        with self._lock:
            if self._most is None or len(self._places) < self._most:
                return Place(self._places, self._collected)
        raise HandshakeError(
            f"expected at most {self._most} connections at once (max_connections), got one more: try again later",
            status=503,
            headers=[("Retry-After", "1")],
        )
