"""The rate limit for messages (``max_message_rate``)."""

from __future__ import annotations

from ..errors import RemoteProtocolError

__all__ = ["MessageRate"]


class MessageRate:
    """A token bucket for messages and control frames.

    Args:
        rate: messages per second; the bucket holds one second's worth, and at least one message.
        now: current time in seconds, of the clock used for :meth:`spend`.
    """

    __slots__ = ("_allowance", "_at", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._allowance = max(1.0, rate)
        self._at = now

    def spend(self, now: float) -> None:
        """Count a message received at ``now``.

        Raises:
            RemoteProtocolError: the rate is exceeded; close code 1008.
        """
        self._allowance = min(max(1.0, self._rate), self._allowance + (now - self._at) * self._rate)
        self._at = now
        if self._allowance < 1.0:
            raise RemoteProtocolError(
                f"too many messages: at most {self._rate:g} per second (max_message_rate)", close_code=1008
            )
        self._allowance -= 1.0
