"""What tasks wait for: what ``send``, ``ping`` and ``end`` return, and the next message.

Awaiting a ``send`` is optional. A coroutine that is never awaited warns when it is collected, and making one costs more
than sending a small message. These objects are accepted wherever a coroutine is, as by ``asyncio.create_task``. This
file is compiled as well as interpreted.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextvars import Context
from typing import Any, NoReturn, Self, cast

__all__ = ["READY", "NextTurn", "Pending", "Ready", "Waiters", "Wakeup", "mark_coroutine_function", "on_loop"]


_EXHAUSTED = cast("Generator[Any, None, None]", iter(()))


class Ready:
    """An awaitable that is done."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return _EXHAUSTED

    def __iter__(self) -> Iterator[Any]:
        return _EXHAUSTED

    def send(self, _value: object) -> None:
        """As a coroutine that has finished."""
        raise StopIteration

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> NoReturn:
        """Raise the exception."""
        raise kind if value is None else value

    def close(self) -> None:
        """There is nothing to close."""


READY = Ready()


class Pending:
    """An awaitable that does nothing until it is awaited; it can be awaited once.

    Args:
        wait: coroutine function, called then.
    """

    __slots__ = ("_coroutine", "_wait")

    def __init__(self, wait: Any) -> None:
        self._wait = wait
        self._coroutine: Any = None

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()  # type: ignore[no-any-return]

    def send(self, value: object) -> Any:
        """Start or resume the coroutine."""
        if self._coroutine is None:
            self._coroutine = self._wait()
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> Any:
        """Raise the exception where the coroutine waits."""
        if self._coroutine is None:
            raise kind if value is None else value
        return self._coroutine.throw(kind if value is None else value)

    def close(self) -> None:
        """Close the coroutine."""
        if self._coroutine is not None:
            self._coroutine.close()


class NextTurn(Pending):
    """Done in the next iteration of an asyncio event loop."""

    __slots__ = ()

    def __init__(self) -> None:
        Pending.__init__(self, _turn)


async def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Await ``call()`` on the event loop of another thread, from a task of this thread's own loop.

    Raises:
        RuntimeError: the other loop is closed.
    """
    work = call()
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise
    return await asyncio.wrap_future(future)


async def _turn() -> None:
    await asyncio.sleep(0)


Coroutine.register(Ready)
Coroutine.register(Pending)


def mark_coroutine_function(function: Any) -> None:
    """Have a plain function that returns an awaitable recognised as a coroutine function, which frameworks look for.

    :mod:`inspect` has a marker from Python 3.12 on; before, asgiref checks :mod:`asyncio`'s.
    """
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]


# --- a change of state --------------------------------------------------------------------------------------------


_MIN_SWEEP = 8


class Waiters:
    """Tasks that wait until something about a connection has changed; each looks for itself whether that was it.

    Args:
        loop: the event loop of the tasks.
    """

    __slots__ = ("_futures", "_loop", "_sweep_at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: list[asyncio.Future[None]] = []
        self._sweep_at = _MIN_SWEEP

    def expect(self) -> asyncio.Future[None]:
        """A future that is done at the next :meth:`wake`."""
        future = self._loop.create_future()
        if len(self._futures) >= self._sweep_at:
            # Those of cancelled tasks. A callback of each future would take five times its memory.
            self._futures = [waiting for waiting in self._futures if not waiting.done()]
            self._sweep_at = max(_MIN_SWEEP, 2 * len(self._futures))
        self._futures.append(future)
        return future

    def wake(self) -> None:
        """Let all of them go on, in the next iteration of the event loop."""
        futures, self._futures = self._futures, []
        for future in futures:
            if not future.done():
                future.set_result(None)


# --- the next message ---------------------------------------------------------------------------------------------

# A future wakes its task in the next iteration of the event loop, after another system call to poll: for a lone message
# that costs as much as everything else about it. Here the task resumes synchronously inside data_received, as handlers
# do.

_IDLE = 0
_AWAITED = 1
_TOLD = 2
_CANCELLED = 3
# The first task in line may resume, and has yet to do so.
_RESERVED = 4


class _NoLoop:
    """The part of a loop that a completed future uses."""

    def get_debug(self) -> bool:
        """As an event loop."""
        return False


# Tasks read the result of asyncio's own futures without a Python call: they are woken with this completed one.
_DONE: asyncio.Future[None] = asyncio.Future(loop=cast(asyncio.AbstractEventLoop, _NoLoop()))
_DONE.set_result(None)


class Wakeup:
    """Wakes one waiting task at a time, any number of times. Other tasks wait in line for their turn.

    To the task it is a future: it implements the part of ``asyncio.Future`` that ``asyncio.Task`` uses.

    Args:
        loop: the event loop of the tasks.

    Attributes:
        state: 0 while a task may wait, or take a message: no other task waits, was notified, or is in line.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_loop", "_message", "line", "state")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.state = _IDLE
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self.line: deque[asyncio.Future[None]] | None = None  # an empty one takes 700 bytes
        self._message: object = None  # of who cancels
        self._asyncio_future_blocking = False

    def has_waiter(self) -> bool:
        """Whether a task waits and has not been notified."""
        return self.state == _AWAITED

    def waiter_was_cancelled(self) -> bool:
        """Whether the only task that waited has been cancelled, and has yet to run."""
        return self.state == _CANCELLED and self.line is None

    # --- further tasks -------------------------------------------------------------------------------------

    async def take_turn(self) -> None:
        """Wait until earlier tasks have had their turn. This task's turn ends with :meth:`pass_on`."""
        turn = self._loop.create_future()
        if self.line is None:
            self.line = deque()
        self.line.append(turn)
        try:
            await turn
        except BaseException:
            self._leave(turn, self.line[0] is turn and self.state == _RESERVED)
            raise
        self._leave(turn, False)
        self.state = _IDLE

    def _leave(self, turn: asyncio.Future[None], unused: bool) -> None:
        assert self.line is not None
        self.line.remove(turn)
        if not self.line:
            self.line = None
        if unused:
            self.state = _IDLE
            self.pass_on()

    def pass_on(self) -> None:
        """Give the next task its turn: the current one has taken a message, or will not."""
        if self.line is None or self.state != _IDLE:
            return
        self.state = _RESERVED
        turn = self.line[0]
        # A cancelled task leaves the line when it runs, and passes its turn on.
        if not (turn.done() or self._loop.is_closed()):
            turn.set_result(None)

    # --- waking the task -----------------------------------------------------------------------------

    def notify(self) -> None:
        """Resume the task now; inside another task, in the next iteration of the event loop."""
        if self.state != _AWAITED:
            return
        self.state = _TOLD
        if self._callback is None or self._context is None:
            return  # awaited by hand, not by a task
        try:
            self._context.run(self._callback, _DONE)
        except RuntimeError:
            # The task has not resumed: what its own code raises stays with the task.
            self._wake_soon()
        except (KeyboardInterrupt, SystemExit) as error:
            # It ends the program, not the connection whose bytes are being processed.
            self._loop.call_soon(_raise, error)

    def notify_soon(self) -> None:
        """Resume the task in the next iteration of the event loop."""
        if self.state == _AWAITED:
            self.state = _TOLD
            self._wake_soon()

    def _wake_soon(self) -> None:
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)

    # --- what the awaiting coroutine calls ------------------------------------------------------

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Self:
        if self.state == _IDLE:
            self.state = _AWAITED
            self._asyncio_future_blocking = True
            return self
        self._forget()
        raise StopIteration

    def send(self, _value: object) -> Self:
        """As ``next``, as generators have it."""
        return self.__next__()

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> NoReturn:
        """The task is cancelled, or its coroutine closed."""
        self._forget()
        self.pass_on()
        raise kind if value is None else value

    def close(self) -> None:
        """The coroutine is closed before it was notified."""
        self._forget()
        self.pass_on()

    def _forget(self) -> None:
        self.state = _IDLE
        self._callback = self._context = self._message = None

    # --- what the task calls, as on a future -----------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Take the callback that resumes the task."""
        self._callback = callback
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        """Resume the task with ``asyncio.CancelledError``."""
        if self.state != _AWAITED:
            return False
        self.state = _CANCELLED
        self._message = msg
        self._wake_soon()
        return True

    def result(self) -> None:
        """Nothing: the task looks for a message itself."""
        if self.state == _CANCELLED:
            raise asyncio.CancelledError(*(() if self._message is None else (self._message,)))


def _raise(error: BaseException) -> NoReturn:
    raise error
