"""PINGs that await their PONG, for the latency of a connection (RFC 6455 sections 5.5.2 and 5.5.3)."""

from __future__ import annotations

__all__ = ["Pings"]

# A peer that answers none must not use memory; for older PINGs no latency is measured.
_MOST = 16


class Pings:
    """Send times of unanswered PINGs, by payload."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[bytes, float] = {}

    def sent(self, payload: bytes, now: float) -> None:
        """Record that a PING with this payload is sent."""
        self.waiting[payload] = now
        if len(self.waiting) > _MOST:
            del self.waiting[next(iter(self.waiting))]

    def answered(self, payload: bytes) -> float | None:
        """Return when the PING that this PONG answers was sent; None for an unsolicited PONG."""
        sent = self.waiting.get(payload)
        if sent is None:
            return None
        # A PONG also answers all earlier PINGs.
        for earlier in list(self.waiting):
            del self.waiting[earlier]
            if earlier == payload:
                break
        return sent
