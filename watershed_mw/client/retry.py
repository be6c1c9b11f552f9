"""When to reconnect: which failures are worth another attempt, and exponential backoff with full jitter.

A reload of a reverse proxy ends thousands of connections at once; without jitter they would all come back at once.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from ..errors import ConnectionClosed, HandshakeError, WatershedError

__all__ = ["Attempts", "Backoff", "Retry", "worth_retrying"]

_logger = logging.getLogger("watershed_mw.client")

Retry: TypeAlias = Callable[[Exception], bool]
"""Whether to reconnect, given the error of a failed attempt (OSError, TimeoutError, HandshakeError) or the
ConnectionClosed of a connection that ended."""

# A retry would be refused as well, whatever the application's hook returns.
_NEVER = frozenset({401, 403, 404})
# Temporary failures of a server or a proxy in front of it (RFC 9110 section 15; 425 from RFC 8470, 429 from RFC 6585).
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
# Close codes that are no failure: a normal end, and a server that stops or restarts.
_ORDERLY = frozenset({1000, 1001, 1012})
# Seconds that a connection must last to reset the failure count.
_STEADY = 5.0


def worth_retrying(error: Exception) -> bool:
    """Whether another attempt may succeed: after a closed connection, a network error, a timeout, or a temporary HTTP
    status.

    A certificate that is not trusted now will not be trusted the next time.
    """
    if isinstance(error, HandshakeError):
        return error.status in _TEMPORARY
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLCertVerificationError)


class Backoff:
    """How long to wait before the next attempt: a random time up to a bound that grows with each failure.

    Args:
        initial: bound of the first wait, in seconds; default 1.
        factor: multiplies the bound after each failure; default 2.
        maximum: the largest bound, in seconds; default 60.

    Raises:
        ValueError: a bound of zero, or one that shrinks.
    """

    def __init__(self, initial: float = 1.0, factor: float = 2.0, maximum: float = 60.0) -> None:
        if not (0 < initial <= maximum and factor >= 1):
            raise ValueError(
                f"expected 0 < initial <= maximum and factor >= 1, got initial={initial!r}, factor={factor!r}, "
                f"maximum={maximum!r}"
            )
        self.initial = initial
        self.factor = factor
        self.maximum = maximum

    def bound(self, failures: int) -> float:
        """The bound in seconds after this many failures in a row, at least 1."""
        # factor ** failures would overflow when a server is down for long.
        bound = self.initial
        for _ in range(failures - 1):
            bound *= self.factor
            if bound >= self.maximum:
                return self.maximum
        return bound

    def delay(self, failures: int) -> float:
        """Seconds to wait, a random part of the bound."""
        return random.uniform(0, self.bound(failures))


class Attempts:
    """Iterates over the attempts of a reconnecting client: yields the seconds to wait before each, 0 for the first.

    The caller reports the outcome of each attempt with :meth:`failed`, or with :meth:`opened` and later :meth:`ended`.
    The iteration stops when no further attempt is due. Each further attempt is logged.

    Args:
        backoff: how long to wait.
        retry: whether to try again.
        url: the server's URL for the log, without secrets.
    """

    def __init__(self, backoff: Backoff, retry: Retry, url: str = "the server") -> None:
        self._backoff = backoff
        self._retry = retry
        self._url = url
        self._failures = 0  # in a row
        self._tried = 0  # since the last connection
        self._delay: float | None = 0.0

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        if self._delay is None:
            raise StopIteration
        return self._delay

    def opened(self) -> None:
        """Report that the attempt has succeeded."""
        if self._tried:
            _logger.info("reconnected to %s at attempt %d", self._url, self._tried)
        self._tried = 0

    def failed(self, error: Exception) -> bool:
        """Report that the attempt has failed, and return whether to try again."""
        self._plan(error, logging.WARNING)
        return self._delay is not None

    def ended(self, code: int | None, reason: str | None, duration: float) -> None:
        """Report that the connection has ended, with its close code and its duration in seconds."""
        if duration >= _STEADY:
            self._failures = 0
        error = ConnectionClosed(code or 1006, reason or "")
        self._plan(error, logging.INFO if error.code in _ORDERLY else logging.WARNING)

    def _plan(self, error: Exception, level: int) -> None:
        if (isinstance(error, HandshakeError) and error.status in _NEVER) or not self._retry(error):
            self._delay = None
            return
        self._failures += 1
        self._tried += 1
        retry_after = _retry_after(error) if isinstance(error, HandshakeError) else 0.0
        # The random delay comes on top of Retry-After, which the server sends to all of its clients alike.
        self._delay = min(retry_after, self._backoff.maximum) + self._backoff.delay(self._failures)
        _logger.log(level, "%s: %s; attempt %d in %.2f s", self._url, _cause(error), self._tried, self._delay)


def _cause(error: Exception) -> str:
    """An error as one line for the log; a server's reason may contain any characters."""
    text = str(error) if str(error) and isinstance(error, WatershedError) else f"{type(error).__name__}: {error}"
    return "".join(character if character.isprintable() else " " for character in text)


def _retry_after(error: HandshakeError) -> float:
    """Seconds to wait by the server's Retry-After (RFC 9110 section 10.2.3); 0 without one."""
    value: Any = next((value for name, value in error.headers if name.lower() == "retry-after"), "")
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
        now = next((value for name, value in error.headers if name.lower() == "date"), "")
        return max(0.0, (date - parsedate_to_datetime(now)).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):  # what the standard library's parser raises
        return 0.0
