"""Tasks and threads of asyncio and of trio: which one runs, what ends it, and how another thread reaches it."""

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

__all__ = ["Changes", "HomeThread", "Line", "ends_task", "running_task"]


class Changes:
    """One event for everything that a connection's tasks wait for: each change wakes all, and each looks again."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def notify(self) -> None:
        """Wake everything that waits."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


class Line:
    """Tasks that wait for one thing each, and get it in the order in which they asked.

    Args:
        changes: notified when one of them may have become ready.
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
        """Wait until every task that came before has got its own and ``ready()``, or until ``over()``."""
        turn = object()
        self._turns.append(turn)
        try:
            while not over() and not (ready() and self._turns[0] is turn):
                await self._changes.wait()
        finally:
            self._turns.remove(turn)
            self._changes.notify()


class HomeThread:
    """The thread that runs a connection's event loop: the one that makes this."""

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
        """Whether this is it."""
        return threading.get_ident() == self._thread

    def soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` called there. Raises RuntimeError: its event loop is closed."""
        self._call_soon(call)

    async def run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await ``call()`` there, from the event loop of another thread.

        Raises:
            LocalProtocolError: this one runs trio.
        """
        if self._loop is None:
            raise LocalProtocolError(
                "expected a connection on trio to be awaited in trio's own thread, got another one: "
                "use trio.from_thread.run(conn.send, data)"
            )
        return await on_loop(self._loop, call)


def running_task() -> Any:
    """The task that runs this, of asyncio or of trio; None outside of any."""
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
    """As :func:`.is_cancellation`, under trio as well, where nothing else raises Cancelled."""
    if task is None or isinstance(task, asyncio.Task):
        return is_cancellation(error, task)
    if isinstance(error, GeneratorExit):
        return running_task() is not task
    return isinstance(error, anyio.get_cancelled_exc_class()) or is_interrupt(error)
