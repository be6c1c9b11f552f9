"""What ``send``, ``ping`` and ``end`` of the asyncio flavour return: awaitables that nobody has to await.

A coroutine would warn when it is let go, and costs more than the sending of a small message. These are accepted
wherever a coroutine is, as by ``asyncio.create_task``. This file is compiled as well as interpreted.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, Self

__all__ = ["READY", "NextTurn", "Pending", "Ready", "mark_coroutine_function", "on_loop"]


class Ready:
    """Done already."""

    __slots__ = ()

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> None:
        raise StopIteration

    def send(self, _value: object) -> None:
        """As ``next``: a coroutine has it."""
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
