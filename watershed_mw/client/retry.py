"""When to connect again, and after how long: exponential backoff with full jitter, and what is worth it.

A front proxy's reload ends thousands of connections at once; without jitter they would all come back at once.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from ..errors import ConnectionClosed, HandshakeError, WatershedError

__all__ = ["Backoff", "Retry", "worth_retrying"]

_logger = logging.getLogger("watershed_mw.client")

Retry: TypeAlias = Callable[[Exception], bool]
"""Told why there is no connection (OSError, TimeoutError, HandshakeError) or how one has ended (ConnectionClosed)."""

# Who these tell "no" will be told so again, whatever anybody's hook says.
_NEVER = frozenset({401, 403, 404})
# The server asks for patience, or one in front of it does (RFC 9110 section 15; 425 is RFC 8470's, 429 RFC 6585's).
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
# A server that ends all connections as it stops or restarts, which is no fault.
_ORDERLY = frozenset({1000, 1001, 1012})
# Seconds that a connection must have lasted for the next failure to count as the first again.
_STEADY = 5.0


def worth_retrying(error: Exception) -> bool:
    """Whether another attempt may succeed: after an end, a network's failure or time-out, and statuses that pass.

    A certificate that is not trusted will not be the next time.
    """
    if isinstance(error, HandshakeError):
        return error.status in _LATER
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLCertVerificationError)


def may_retry(error: Exception, retry: Retry) -> bool:
    """What ``retry`` says, but for statuses that are never tried again: 401, 403 and 404."""
    if isinstance(error, HandshakeError) and error.status in _NEVER:
        return False
    return retry(error)


class Backoff:
    """How long to wait before the next attempt: a random part of a bound that grows with each failure.

    Args:
        initial: bound of the first wait, in seconds; default 1.
        factor: what it is multiplied with each time; default 2.
        maximum: the largest bound, in seconds; default 60.

    Raises:
        ValueError: a bound of nothing, or one that shrinks.
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
        """The bound after so many failures in a row, 1 for the first, in seconds."""
        # A power of a float overflows, and somebody's server is down for that long.
        bound = self.initial
        for _ in range(failures - 1):
            bound *= self.factor
            if bound >= self.maximum:
                return self.maximum
        return bound

    def delay(self, failures: int) -> float:
        """Seconds to wait, at random up to the bound."""
        return random.uniform(0, self.bound(failures))


class Attempts:
    """Counts failures of one client that goes on connecting, says how long to wait, and logs each attempt.

    Args:
        backoff: how long to wait.
        retry: whether to go on.
        url: what is connected to, as it may stand in a log.
    """

    def __init__(self, backoff: Backoff, retry: Retry, url: str = "the server") -> None:
        self._backoff = backoff
        self._retry = retry
        self._url = url
        self._failures = 0
        self._tried = 0  # since the last connection

    def opened(self) -> None:
        """Note that an attempt has succeeded."""
        if self._tried:
            _logger.info("connected to %s again, at attempt %d", self._url, self._tried)
        self._tried = 0

    def after_failure(self, error: Exception) -> float | None:
        """Seconds to wait after an attempt that failed; None when there is to be no other."""
        return self._wait(error, logging.WARNING)

    def after_end(self, code: int, reason: str, lasted: float) -> float | None:
        """The same after a connection that has ended, having lasted so many seconds."""
        if lasted >= _STEADY:
            self._failures = 0
        return self._wait(ConnectionClosed(code, reason), logging.INFO if code in _ORDERLY else logging.WARNING)

    def _wait(self, error: Exception, level: int) -> float | None:
        if not may_retry(error, self._retry):
            return None
        self._failures += 1
        self._tried += 1
        asked = _retry_after(error) if isinstance(error, HandshakeError) else 0.0
        # On top of what the server asks for, as it asks all of its clients for the same.
        delay = min(asked, self._backoff.maximum) + self._backoff.delay(self._failures)
        _logger.log(level, "%s: %s; attempt %d in %.2f s", self._url, _cause(error), self._tried, delay)
        return delay


def _cause(error: Exception) -> str:
    """What went wrong, in one line of a log: a server's reason may hold anything."""
    said = str(error) if str(error) and isinstance(error, WatershedError) else f"{type(error).__name__}: {error}"
    return "".join(character if character.isprintable() else " " for character in said)


def _retry_after(error: HandshakeError) -> float:
    """Seconds that the server asks to wait (RFC 9110 section 10.2.3), 0 if it does not."""
    value: Any = next((value for name, value in error.headers if name.lower() == "retry-after"), "")
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
        now = next((value for name, value in error.headers if name.lower() == "date"), "")
        return max(0.0, (date - parsedate_to_datetime(now)).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):  # a stranger's text in the standard library's parser
        return 0.0
