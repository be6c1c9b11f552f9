"""What every event loop has one of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["LoopLocal"]

_T = TypeVar("_T")


class LoopLocal(Generic[_T]):
    """One object for each event loop, made when it is first asked for, and collected with its loop.

    What is made must not refer to the loop, which would then never be collected.

    Args:
        make: makes it; called on the thread that asks.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._known: WeakKeyDictionary[asyncio.AbstractEventLoop, _T] = WeakKeyDictionary()

    def get(self, loop: asyncio.AbstractEventLoop) -> _T | None:
        """The one of ``loop``, None where there is none yet."""
        return self._known.get(loop)

    def of(self, loop: asyncio.AbstractEventLoop) -> _T:
        """The one of ``loop``."""
        found = self._known.get(loop)
        if found is None:
            found = self._known[loop] = self._make()
        return found
