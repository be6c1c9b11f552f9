"""The outcome of a relay: why it ended, and how threads, greenlets and tasks wait for that."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any

from ..connection.base import logger
from ..runtime.greenlets import threads_are_greenlets
from ..runtime.interrupts import is_interrupt

__all__ = ["Outcome", "RelayEnd", "RelayResult"]

# Seconds between two polls of a greenlet, which another thread cannot wake.
_POLL_INTERVAL = 0.02


class RelayEnd(Enum):
    """Why a relay ended."""

    ENDED = "both ends"
    """Both sides ended their streams, or one did and the other was silent for ``close_timeout``."""
    RESET = "reset"
    """A side reset its stream, or vanished."""
    IDLE = "idle"
    """No byte passed in either direction for ``idle_timeout``."""
    TOO_LONG = "too long"
    """It reached ``max_duration``."""
    TOO_MUCH = "too much"
    """It would have exceeded ``max_bytes``."""
    DRAINED = "drained"
    """:meth:`Relay.start_close` was called."""
    BROKEN_OFF = "broken off"
    """:meth:`Relay.abort` was called."""


@dataclass(frozen=True, slots=True)
class RelayResult:
    """The result of a relay.

    Attributes:
        end: why it ended.
        to_server, to_client: bytes forwarded in each direction, including those read before the relay started, but not
            the relay's own Close frames.
        seconds: its duration.
    """

    end: RelayEnd
    to_server: int
    to_client: int
    seconds: float


class Outcome:
    """Holds the result of a relay once it has ended. Any thread, greenlet or event loop may wait for it.

    Attributes:
        result: the result; None until the relay has ended.
    """

    __slots__ = ("_listeners", "result")

    def __init__(self) -> None:
        self.result: RelayResult | None = None
        # No lock: threads append and remove, and each of these operations is atomic.
        self._listeners: list[Callable[[], object]] = []

    def set(self, result: RelayResult) -> None:
        """Set the result and call every listener."""
        self.result = result
        self._call_listeners()

    def add_listener(self, call: Callable[[], object]) -> None:
        """Call ``call`` once the result is set, immediately if it already is; in an arbitrary thread."""
        self._listeners.append(call)
        if self.result is not None:
            self._call_listeners()

    def _remove_listener(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(ValueError):  # already called
            self._listeners.remove(call)

    def _call_listeners(self) -> None:
        while True:
            try:
                call = self._listeners.pop(0)
            except IndexError:
                return
            try:
                call()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                # The other listeners must be called as well.
                logger.exception("a listener for the end of a relay raised: %r", call)

    def wait(self, timeout: float | None) -> RelayResult:
        """Block until the result is set.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            TimeoutError: the result was not set in time.
        """
        if threads_are_greenlets():
            until = inf if timeout is None else time.monotonic() + timeout
            while self.result is None and time.monotonic() < until:
                time.sleep(_POLL_INTERVAL)
        else:
            event = threading.Event()
            call = event.set
            self.add_listener(call)
            try:
                event.wait(timeout)
            finally:
                self._remove_listener(call)
        if self.result is None:
            raise TimeoutError(f"expected the relay to end within {timeout} seconds")
        return self.result

    def __await__(self) -> Generator[Any, None, RelayResult]:
        # The awaiting task may run on a different loop than the relay; cancelling it does not affect the relay.
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def set_outcome() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(set_outcome)

        self.add_listener(wake)
        try:
            yield from waiter
        finally:
            self._remove_listener(wake)
        assert self.result is not None
        return self.result
