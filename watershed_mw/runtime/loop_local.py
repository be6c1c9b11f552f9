"""Event-loop-local objects, like ``threading.local`` for threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["LoopLocal"]

_T = TypeVar("_T")


class LoopLocal(Generic[_T]):
    """One object per event loop, made at first use, and collected with its loop.

    The object must not refer to the loop, which would then never be collected.

    Args:
        make: makes an object; called in the calling thread.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._known: WeakKeyDictionary[asyncio.AbstractEventLoop, _T] = WeakKeyDictionary()

    def get(self, loop: asyncio.AbstractEventLoop) -> _T | None:
        """The object of ``loop``; None if it has none yet."""
        return self._known.get(loop)

    def of(self, loop: asyncio.AbstractEventLoop) -> _T:
        """The object of ``loop``, made if it has none yet."""
        found = self._known.get(loop)
        if found is None:
            found = self._known[loop] = self._make()
        return found
