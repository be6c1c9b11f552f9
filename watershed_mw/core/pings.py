"""PINGs that wait for their PONG, for the latency of a connection (RFC 6455 sections 5.5.2 and 5.5.3)."""

from __future__ import annotations

__all__ = ["Pings"]

# Older ones merely give no latency.
_MOST = 16


class Pings:
    """When which unanswered PING was sent."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[bytes, float] = {}

    def sent(self, payload: bytes, now: float) -> None:
        """Note that a PING with this payload goes out."""
        self.waiting[payload] = now
        if len(self.waiting) > _MOST:
            del self.waiting[next(iter(self.waiting))]

    def answered(self, payload: bytes) -> float | None:
        """When the PING was sent that a PONG with this payload answers; None for one that answers none."""
        sent = self.waiting.get(payload)
        if sent is None:
            return None
        # A PONG may answer several PINGs at once: those before it get none.
        for earlier in list(self.waiting):
            del self.waiting[earlier]
            if earlier == payload:
                break
        return sent
