"""Tasks and threads under asyncio and trio: the current task, its cancellation, and calls from other threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from ..connection.awaitables import on_loop
from ..errors import LocalProtocolError
from ..runtime.interrupts import is_cancellation, is_interrupt

__all__ = ["Changes", "LoopThread", "WaitQueue", "ends_task", "running_task"]


class Changes:
    """One event for all of a connection's tasks: each change wakes all waiters, which then check their conditions."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def notify(self) -> None:
        """Wake all waiters."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


class WaitQueue:
    """Tasks that each wait for one item, and get it in FIFO order.

    Args:
        changes: notified when an item may be ready.
    """

    __slots__ = ("_changes", "_turns")

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._turns: list[object] = []

    @property
    def is_waiting(self) -> bool:
        """Whether any task waits."""
        return bool(self._turns)

    async def wait(self, ready: Callable[[], bool], over: Callable[[], bool]) -> None:
        """Wait until all earlier tasks are served and ``ready()``, or until ``over()``."""
        turn = object()
        self._turns.append(turn)
        try:
            while not over() and not (ready() and self._turns[0] is turn):
                await self._changes.wait()
        finally:
            self._turns.remove(turn)
            self._changes.notify()


class LoopThread:
    """The thread that runs a connection's event loop: the thread that creates this object."""

    __slots__ = ("_call_soon", "_loop", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None
        self._call_soon: Callable[[Callable[[], None]], object]
        try:
            loop = self._loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            self._loop = None
            self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        else:
            self._call_soon = loop.call_soon_threadsafe

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this thread."""
        return threading.get_ident() == self._thread

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call ``call`` in that thread, soon. Raises RuntimeError: its event loop is closed."""
        self._call_soon(call)

    async def run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await ``call()`` in that thread, from the event loop of another thread.

        Raises:
            LocalProtocolError: that thread runs trio.
        """
        if self._loop is None:
            raise LocalProtocolError(
                "expected a connection on trio to be awaited in trio's own thread, got another thread: "
                "use trio.from_thread.run(conn.send, data)"
            )
        return await on_loop(self._loop, call)


def running_task() -> Any:
    """The current task of asyncio or trio; None outside of a task."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        pass
    trio: Any = sys.modules.get("trio")
    try:
        return None if trio is None else trio.lowlevel.current_task()
    except RuntimeError:
        return None


def ends_task(error: BaseException, task: Any) -> bool:
    """As :func:`.is_cancellation`, for trio as well, where only cancellation raises Cancelled."""
    if task is None or isinstance(task, asyncio.Task):
        return is_cancellation(error, task)
    if isinstance(error, GeneratorExit):
        return running_task() is not task
    return isinstance(error, anyio.get_cancelled_exc_class()) or is_interrupt(error)
