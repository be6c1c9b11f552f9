"""Delivers events to the application on the asyncio flavour: to its handlers in order, or to the receiving task.

Handlers may be coroutine functions: events wait in the receive queue while one is running, or while the peer does not
read its replies. The protocol decides what follows from an end; this module handles no bytes.
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
    """Delivers the events of one connection. The connection is an argument, so the two do not keep each other alive.

    Args:
        loop: the event loop of the application.

    Attributes:
        wakeup: wakes the receiving task.
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
        """Whether a handler that is a coroutine function is running."""
        return self._handler is not None

    def advance(self, connection: WatershedConnection, writer: Writer) -> None:
        """Deliver the events that can be delivered, and the end when it is due."""
        if self._advancing:
            return  # called by a handler, for example through end(): the loop below continues when it returns
        core: Any = connection._core  # the asyncio flavour's subclass
        queue = connection._queue
        self._advancing = True
        try:
            if connection._push:
                # Replies to a peer that does not read would pile up, so its messages wait.
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
        """Whether received events are still queued, or a handler is still running."""
        return connection._push and (connection._queue.count > 0 or self._handler is not None)

    def has_finished(self, connection: WatershedConnection) -> bool:
        """Whether everything, including the end, has been delivered."""
        return connection._end_emitted and not self._is_behind(connection)

    def emit_events(self, connection: WatershedConnection, events: tuple[Event, ...]) -> None:
        """Call the handlers of ``events`` ahead of what is queued."""
        for event in events:
            self.await_results(connection, connection._handlers.emit_event(connection, event))

    def await_results(self, connection: WatershedConnection, results: tuple[Any, ...]) -> None:
        """Make the next event wait for the handlers' results, to keep the order."""
        if not results:
            return
        # A handler that returns the result of send() yields to other connections anyway when it returns.
        waiting = [result for result in results if inspect.isawaitable(result) and not isinstance(result, NextTurn)]
        if self._handler is not None:
            self._handler.extend(waiting)
        elif waiting:
            self._handler = HandlerTask(self, connection, waiting)
            if self._abandoned:
                self._handler.limit(connection._limits.close_timeout)

    def handler_ended(self) -> None:
        """The task has ended; queued events may be delivered."""
        self._handler = None

    def abandon(self, grace: float) -> None:
        """Give running and later handlers ``grace`` seconds to end, as the application has returned."""
        self._abandoned = True
        if self._handler is not None:
            self._handler.limit(grace)

    def cancel_handlers(self) -> None:
        """Cancel the running handler, and those that would follow."""
        if self._handler is not None:
            self._handler.cancel()


class Owner(Interface):
    """Called back by a handler task."""

    def _handler_failed(self, error: BaseException) -> None:
        """A handler raised ``error``, which is not a ConnectionClosed."""

    def _advance_and_apply_state(self) -> None:
        """The task has ended."""


class HandlerTask:
    """Awaits the results of handlers, in order; it exists while results are pending.

    Args:
        dispatcher: notified first when the task ends.
        connection: the connection of the handlers; an :class:`Owner`.
        waiting: the handlers' results.
    """

    __slots__ = ("_connection", "_dispatcher", "_task", "_waiting")

    def __init__(self, dispatcher: Dispatcher, connection: WatershedConnection, waiting: list[Awaitable[Any]]) -> None:
        self._dispatcher = dispatcher
        self._connection = connection
        self._waiting = deque(waiting)
        # Without the task factory: an eager one may run the task to completion before the dispatcher knows of it.
        self._task: asyncio.Task[None] = asyncio.Task(self._run(), loop=dispatcher.wakeup.get_loop())

    def extend(self, waiting: list[Awaitable[Any]]) -> None:
        """Await these as well, after the earlier ones."""
        self._waiting.extend(waiting)

    async def _run(self) -> None:
        owner = cast(Owner, self._connection)
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()
                except ConnectionClosed:
                    pass  # the handler replied too late, as the end event reports
                except BaseException as error:
                    if is_cancellation(error, self._task):
                        raise
                    owner._handler_failed(error)  # whatever its class, it ends only this connection
        finally:
            self._dispatcher.handler_ended()
            owner._advance_and_apply_state()

    def cancel(self) -> None:
        """Cancel the running handler, and those that would follow."""
        self._task.cancel()

    def limit(self, grace: float) -> None:
        """Cancel the task, with a warning, if it has not ended within ``grace`` seconds."""
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
