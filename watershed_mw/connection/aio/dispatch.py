"""Delivery to the application on the asyncio flavour: to its handlers in order, or to the task that receives.

Handlers may be coroutine functions: events wait in the receive queue while one is at work, or while the peer does not
read what this end sends. What follows from an end is decided by the protocol; no byte passes through here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable
from operator import call
from time import monotonic
from typing import Any, cast
from typing import Protocol as Interface

from ...core.events import Event
from ...core.states import State
from ...errors import ConnectionClosed
from ...runtime.interrupts import is_cancellation
from ...runtime.timers import timers_of
from ..awaitables import NextTurn, Wakeup
from ..base import WatershedConnection, logger
from .writer import Writer

__all__ = ["Dispatcher"]

# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN


class Dispatcher:
    """Delivers what one connection has received. The connection is an argument: the two do not keep each other alive.

    Args:
        loop: the event loop of the application.

    Attributes:
        wakeup: what the task that receives waits for.
        running: whether the application waits in ``run()``.
    """

    __slots__ = ("_abandoned", "_advancing", "_handler", "running", "wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wakeup = Wakeup(loop)
        self.running = False
        self._advancing = False
        self._abandoned = False
        self._handler: HandlerTask | None = None

    @property
    def at_work(self) -> bool:
        """Whether a handler that is a coroutine function has begun and not returned."""
        return self._handler is not None

    def advance(self, connection: WatershedConnection, writer: Writer) -> None:
        """Deliver what can be delivered, and the end when it is due."""
        if self._advancing:
            return  # a handler has called end(), say: the loop below goes on when it returns
        core: Any = connection._core  # which kind it is, the asyncio flavour knows
        queue = connection._queue
        self._advancing = True
        try:
            if connection._push:
                # While the peer does not read, replies would pile up: it has to wait for its own.
                while queue.count > 0 and self._handler is None and not writer.is_stalled():
                    self.await_results(connection, connection._handlers.emit_event(connection, queue.take()))
                if core.state is not _OPEN and queue.count == 0 and self._handler is None:
                    core.messages_handed_over(monotonic())
            elif self.wakeup.has_waiter():
                if core.state is not _OPEN and queue.count == 0:
                    core.messages_handed_over(monotonic())
                if queue.count > 0 or (core.state is not _OPEN and core.ended):
                    self.wakeup.notify_soon()
            if (
                core.state is not _OPEN
                and core.ended
                and not connection._end_emitted
                and not self._is_behind(connection)
            ):
                self.await_results(connection, connection._emit_end())
        finally:
            self._advancing = False

    def _is_behind(self, connection: WatershedConnection) -> bool:
        """Whether handlers have not been called for, or have not returned from, what was received."""
        return connection._push and (connection._queue.count > 0 or self._handler is not None)

    def has_finished(self, connection: WatershedConnection) -> bool:
        """Whether the application has been given everything, the end included."""
        return connection._end_emitted and not self._is_behind(connection)

    def emit_events(self, connection: WatershedConnection, events: tuple[Event, ...]) -> None:
        """Call the handlers of ``events`` ahead of what is queued."""
        for event in events:
            self.await_results(connection, connection._handlers.emit_event(connection, event))

    def await_results(self, connection: WatershedConnection, results: tuple[Any, ...]) -> None:
        """Have the next event wait for what handlers returned, so that order stays."""
        if not results:
            return
        # A handler that returns what send() gave yields to other connections anyway when it returns.
        waiting = [result for result in results if inspect.isawaitable(result) and not isinstance(result, NextTurn)]
        if self._handler is not None:
            self._handler.extend(waiting)
        elif waiting:
            self._handler = HandlerTask(self, connection, waiting)
            if self._abandoned:
                self._handler.limit(connection._limits.close_timeout)

    def handler_ended(self) -> None:
        """The task has ended; what is queued may be delivered."""
        self._handler = None

    def abandon(self, grace: float) -> None:
        """Give a handler that is at work, or begins, ``grace`` seconds to end: the application has returned."""
        self._abandoned = True
        if self._handler is not None:
            self._handler.limit(grace)

    def cancel_handlers(self) -> None:
        """Cancel the handler that is at work, and those that would follow."""
        if self._handler is not None:
            self._handler.cancel()


class Owner(Interface):
    """What hears of a handler task."""

    def _handler_failed(self, error: BaseException) -> None:
        """A handler raised ``error``, which is not a ConnectionClosed."""

    def _advance_and_apply_state(self) -> None:
        """The task has ended."""


class HandlerTask:
    """Awaits what handlers returned, in order; it exists while there is something to await.

    Args:
        dispatcher: hears of its end first.
        connection: whose handlers they are; an :class:`Owner`.
        waiting: what they returned.
    """

    __slots__ = ("_connection", "_dispatcher", "_task", "_waiting")

    def __init__(self, dispatcher: Dispatcher, connection: WatershedConnection, waiting: list[Awaitable[Any]]) -> None:
        self._dispatcher = dispatcher
        self._connection = connection
        self._waiting = deque(waiting)
        # Not by way of a task factory: an eager one may run the task to its end before the dispatcher knows of it.
        self._task: asyncio.Task[None] = asyncio.Task(self._run(), loop=dispatcher.wakeup.get_loop())

    def extend(self, waiting: list[Awaitable[Any]]) -> None:
        """Await these as well, after those before them."""
        self._waiting.extend(waiting)

    async def _run(self) -> None:
        owner = cast(Owner, self._connection)
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()
                except ConnectionClosed:
                    pass  # a reply came too late, as the end event reports
                except BaseException as error:
                    if is_cancellation(error, self._task):
                        raise
                    owner._handler_failed(error)  # whatever it is, it ends this connection alone
        finally:
            self._dispatcher.handler_ended()
            owner._advance_and_apply_state()

    def cancel(self) -> None:
        """Cancel the handler that is at work, and those that would follow."""
        self._task.cancel()

    def limit(self, grace: float) -> None:
        """Cancel it with a warning if it has not ended in ``grace`` seconds."""
        connection, task = self._connection, self._task

        def give_up() -> None:
            logger.warning(
                "a handler of %r has not returned %g seconds (close_timeout) after its application: cancelled",
                connection,
                grace,
            )
            task.cancel()

        timers = timers_of(task.get_loop())
        when = timers.set(monotonic() + grace, call, give_up)
        task.add_done_callback(lambda _: timers.cancel(when, give_up))
