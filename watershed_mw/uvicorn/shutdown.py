"""Limits the time that an application has to return when uvicorn shuts down."""

from __future__ import annotations

import asyncio
import time

from ..runtime.timers import timers_of
from .log import RequestLog, logger

__all__ = ["Shutdown"]


class Shutdown:
    """Cancels an application that does not return: uvicorn waits without a limit, and some never use their connection.

    Args:
        loop: the event loop.
    """

    __slots__ = ("_cancel_at", "_log", "_loop", "_seconds", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._log: RequestLog
        self._cancel_at: float | None = None
        self._seconds = 0.0
        self._task: asyncio.Task[None]

    def limit(self, task: asyncio.Task[None], seconds: float, log: RequestLog) -> None:
        """Cancel the application's task after so many seconds; replaces an earlier limit.

        Args:
            task: the application's.
            seconds: time that it has to return.
            log: names the request.
        """
        self.stop()
        self._task, self._seconds, self._log = task, seconds, log
        self._cancel_at = timers_of(self._loop).set(time.monotonic() + seconds, Shutdown._cancel, self)

    def stop(self) -> None:
        """Remove the limit, as the task is done."""
        if self._cancel_at is not None:
            timers_of(self._loop).cancel(self._cancel_at, self)
            self._cancel_at = None

    def _cancel(self) -> None:
        self._cancel_at = None
        if not self._task.done():
            logger.warning(
                "The application on WebSocket %s has not returned %g seconds after the shutdown began: cancelled",
                self._log.path,
                self._seconds,
            )
            self._task.cancel()
