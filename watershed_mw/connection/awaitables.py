"""What tasks wait for: what ``send``, ``ping`` and ``end`` return, which nobody has to await, and the next message.

A coroutine would warn when it is let go, and costs more than the sending of a small message. These are accepted
wherever a coroutine is, as by ``asyncio.create_task``. This file is compiled as well as interpreted.
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
    """Done already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return _EXHAUSTED

    def __iter__(self) -> Iterator[Any]:
        return _EXHAUSTED

    def send(self, _value: object) -> None:
        """As a coroutine that has come to its end."""
        raise StopIteration

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> NoReturn:
        """Raise what is thrown."""
        raise kind if value is None else value

    def close(self) -> None:
        """There is nothing to end."""


READY = Ready()


class Pending:
    """Does nothing until somebody awaits it, once.

    Args:
        wait: coroutine function that is called then.
    """

    __slots__ = ("_coroutine", "_wait")

    def __init__(self, wait: Any) -> None:
        self._wait = wait
        self._coroutine: Any = None

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()  # type: ignore[no-any-return]

    def send(self, value: object) -> Any:
        """Begin it, or go on with it."""
        if self._coroutine is None:
            self._coroutine = self._wait()
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> Any:
        """Raise what is thrown where it waits."""
        if self._coroutine is None:
            raise kind if value is None else value
        return self._coroutine.throw(kind if value is None else value)

    def close(self) -> None:
        """End it."""
        if self._coroutine is not None:
            self._coroutine.close()


class NextTurn(Pending):
    """Done in the next turn of an asyncio loop."""

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
    """Make a plain function that returns an awaitable known as a coroutine function, as frameworks look for one.

    Before Python 3.12 :mod:`inspect` cannot be told, and asgiref asks :mod:`asyncio`.
    """
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]


# --- a change of state --------------------------------------------------------------------------------------------


class Waiters:
    """Tasks that wait until something about a connection has changed; each looks for itself whether that was it.

    Args:
        loop: the event loop of the tasks.
    """

    __slots__ = ("_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: dict[asyncio.Future[None], None] = {}  # in the order in which they came

    def expect(self) -> asyncio.Future[None]:
        """A future that is done at the next :meth:`wake`."""
        future = self._loop.create_future()
        self._futures[future] = None
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[None]) -> None:
        self._futures.pop(future, None)

    def wake(self) -> None:
        """Let all of them go on, in the next iteration of the event loop."""
        futures, self._futures = self._futures, {}
        for future in futures:
            if not future.done():
                future.set_result(None)


# --- the next message ---------------------------------------------------------------------------------------------

# A future wakes its task in the next turn of the event loop, which asks the kernel once more before: for a lone
# message that is as dear as everything else about it. The task runs here within the call that brought the bytes, as
# handlers do.

_IDLE = 0
_AWAITED = 1
_TOLD = 2
_CANCELLED = 3
# The first task of the line may go on, and has yet to do so.
_RESERVED = 4


class _NoLoop:
    """What a future that is done wants of its loop."""

    def get_debug(self) -> bool:
        """As an event loop."""
        return False


# Tasks ask a future of asyncio's own for its result without a call by name, and there is nothing to tell but that it
# has one. To iterate over 100 connections takes 6.3 us for each message, and took 6.6.
_DONE: asyncio.Future[None] = asyncio.Future(loop=cast(asyncio.AbstractEventLoop, _NoLoop()))
_DONE.set_result(None)


class Wakeup:
    """Awaited by one task at a time, and told any number of times. Other tasks wait in line for their turn.

    To the task it is a future: it has of ``asyncio.Future`` what ``asyncio.Task`` asks of what it waits for.

    Args:
        loop: the event loop of the tasks.

    Attributes:
        state: 0 while a task may wait, or take what there is: no other task does, was told to, or stands in line.
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
        """Whether a task waits and has not been told."""
        return self.state == _AWAITED

    def waiter_was_cancelled(self) -> bool:
        """Whether the only task that waited has been cancelled, and has yet to hear of it."""
        return self.state == _CANCELLED and self.line is None

    # --- further tasks -------------------------------------------------------------------------------------

    async def take_turn(self) -> None:
        """Wait until the tasks that came before have had their turn. It ends with :meth:`pass_on`."""
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
        """It is the next task's turn. The one whose turn it was has taken what it wanted, or will not."""
        if self.line is None or self.state != _IDLE:
            return
        self.state = _RESERVED
        turn = self.line[0]
        # One that is cancelled leaves the line when it hears of that, and passes its turn on.
        if not (turn.done() or self._loop.is_closed()):
            turn.set_result(None)

    # --- waking the task -----------------------------------------------------------------------------

    def notify(self) -> None:
        """Let the task go on now; in the next turn of the loop where it cannot, as this is within another task."""
        if self.state != _AWAITED:
            return
        self.state = _TOLD
        if self._callback is None or self._context is None:
            return  # driven by hand, not by a task
        try:
            self._context.run(self._callback, _DONE)
        except RuntimeError:
            # What a task's own code raises stays with the task: it has not begun.
            self._wake_soon()
        except (KeyboardInterrupt, SystemExit) as error:
            # It ends the program, not the connection whose bytes are being taken.
            self._loop.call_soon(_raise, error)

    def notify_soon(self) -> None:
        """Let the task go on in the next turn of the loop."""
        if self.state == _AWAITED:
            self.state = _TOLD
            self._wake_soon()

    def _wake_soon(self) -> None:
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)

    # --- the task, by way of the coroutine that awaits ------------------------------------------------------

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
        """As ``next``: a generator has it."""
        return self.__next__()

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> NoReturn:
        """The task is cancelled, or its coroutine ended."""
        self._forget()
        self.pass_on()
        raise kind if value is None else value

    def close(self) -> None:
        """The coroutine is ended before it has heard anything."""
        self._forget()
        self.pass_on()

    def _forget(self) -> None:
        self.state = _IDLE
        self._callback = self._context = self._message = None

    # --- the task itself, as it asks a future -----------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Take what lets the task go on."""
        self._callback = callback
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        """The task is to go on with ``asyncio.CancelledError``."""
        if self.state != _AWAITED:
            return False
        self.state = _CANCELLED
        self._message = msg
        self._wake_soon()
        return True

    def result(self) -> None:
        """Nothing: the task looks for itself."""
        if self.state == _CANCELLED:
            raise asyncio.CancelledError(*(() if self._message is None else (self._message,)))


def _raise(error: BaseException) -> NoReturn:
    raise error
