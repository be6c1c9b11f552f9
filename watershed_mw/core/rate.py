"""When a peer sends too often."""

from __future__ import annotations

from ..errors import RemoteProtocolError

__all__ = ["MessageRate"]


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
