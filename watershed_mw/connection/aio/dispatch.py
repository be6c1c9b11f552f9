"""Handlers of the asyncio flavour: told in order, one event at a time, though they may be coroutine functions.

Events wait in the receive queue while a handler is at work, or while the peer does not read what we send;
when to begin and what follows from an end is asked of the core. No byte passes through here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable
from operator import call
from time import monotonic
from typing import Any

from ...core.events import Event
from ...core.protocol import Protocol
from ...core.states import State
from ...errors import ConnectionClosed
from ...runtime.interrupts import is_cancellation
from ...runtime.timers import timers_of
from ..awaitables import NextTurn, Wakeup
from ..base import ConnectionInfo, log_handler_failure, logger
from .api import AsyncConnection

__all__ = ["OrderedHandlers"]

# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN


class OrderedHandlers(AsyncConnection):
    """The part of an :class:`~watershed_mw.AsyncConnection` on a transport that tells the application, on its loop."""

    __slots__ = (
        "_abandoned",
        "_advancing",
        "_busy",
        "_loop",
        "_lost",
        "_running",
        "_waiting",
        "_wakeup",
        "_writing_paused",
    )

    _core: Protocol

    def __init__(self, info: ConnectionInfo, protocol: Protocol) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = False
        self._advancing = False
        self._abandoned = False
        self._busy: asyncio.Task[None] | None = None
        self._waiting: deque[Awaitable[Any]] | None = None  # an empty one takes 700 bytes
        self._wakeup = Wakeup(self._loop)
        # The driver's, which stands for the transport: whether the peer has stopped reading, or has gone.
        self._writing_paused = False
        self._lost = False
        super().__init__(info, protocol)

    def _apply_state(self) -> None:
        """Let the driver do what follows from the core's state."""
        raise NotImplementedError

    def _advance(self) -> None:
        """Hand over what can be handed over, and tell of the end when it is due."""
        if self._advancing:
            return  # A handler has called end(), say: the loop below goes on when it returns.
        core = self._core
        self._advancing = True
        try:
            if self._push:
                # While the peer does not read, replies would only pile up: it has to wait for its own.
                while self._queue.count > 0 and self._busy is None and not (self._writing_paused and not self._lost):
                    self._await_results(self._emit_event(self._queue.take()))
                if core.state is not _OPEN and not self._queue and self._busy is None:
                    core.messages_handed_over(monotonic())
            elif self._wakeup.has_waiter():
                if core.state is not _OPEN and self._queue.count == 0:
                    core.messages_handed_over(monotonic())
                if self._queue.count > 0 or (core.state is not _OPEN and core.ended):
                    self._wakeup.notify_soon()
            self._advance_to_end()
        finally:
            self._advancing = False

    def _advance_to_end(self) -> None:
        if self._core.state is _OPEN:
            return
        if self._core.ended and not self._end_emitted and not (self._push and (self._queue or self._busy is not None)):
            self._await_results(self._emit_end())

    def _emit_events(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self._await_results(self._emit_event(event))

    def _await_results(self, results: tuple[Any, ...]) -> None:
        """Handlers may be coroutine functions: the next event waits for them, so that order stays."""
        if not results:
            return
        # A handler that merely sends lets others have their turn when it returns.
        waiting = [result for result in results if inspect.isawaitable(result) and not isinstance(result, NextTurn)]
        if self._waiting is not None:
            self._waiting.extend(waiting)
        elif waiting:
            self._waiting = deque(waiting)
            # Not by way of a task factory: it may let the task begin at once, and end, before it is known here.
            self._busy = asyncio.Task(self._await_waiting(self._waiting), loop=self._loop)
            if self._abandoned:
                self._limit_handler_time(self._busy)

    async def _await_waiting(self, waiting: deque[Awaitable[Any]]) -> None:
        try:
            while waiting:
                try:
                    await waiting.popleft()
                except ConnectionClosed:
                    pass  # A reply came too late, as the end itself tells.
                except BaseException as error:
                    if is_cancellation(error, self._busy):
                        raise
                    self._handler_failed(error)  # whatever it is, it ends this connection alone
        finally:
            self._busy = self._waiting = None
            self._advance_and_apply_state()

    def abandon(self) -> None:
        """Nobody runs the connection's application any more: a handler still at work has ``close_timeout`` to end."""
        self._abandoned = True
        if self._busy is not None:
            self._limit_handler_time(self._busy)

    @property
    def at_work(self) -> bool:
        """Whether a handler that is a coroutine function has begun and not returned."""
        return self._busy is not None

    def cancel_handlers(self) -> None:
        """Cancel the handler that is at work, and those that would follow."""
        if self._busy is not None:
            self._busy.cancel()

    def _limit_handler_time(self, busy: asyncio.Task[None]) -> None:
        grace = self._limits.close_timeout

        def give_up() -> None:
            logger.warning(
                "a handler of %r has not returned %g seconds (close_timeout) after its application: cancelled",
                self,
                grace,
            )
            busy.cancel()

        timers = timers_of(self._loop)
        when = timers.set(monotonic() + grace, call, give_up)
        busy.add_done_callback(lambda task: timers.cancel(when, give_up))

    def _handler_failed(self, error: BaseException) -> None:
        super()._handler_failed(error)
        if not self._running or isinstance(error, asyncio.CancelledError):
            # Nobody waits in run(): the exception must not vanish, as one that ends a task without a word would, too.
            log_handler_failure(self, error)

    def _finished(self) -> bool:
        return self._lost and not (self._push and (self._queue or self._busy is not None)) and self._end_emitted

    def _handlers_changed(self) -> None:
        # Soon, not now: the application registers its other handlers in the same turn.
        if self._queue:
            self._loop.call_soon(self._advance_and_apply_state)

    def _advance_and_apply_state(self) -> None:
        self._advance()
        self._apply_state()
