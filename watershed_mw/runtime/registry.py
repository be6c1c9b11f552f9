"""What is alive in this process, for as long as somebody holds on to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

__all__ = ["Registry"]

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Objects that are known weakly; a fork's child begins with none, as they are the parent's.

    A WeakSet would do, and takes 4 us for each object. Any thread may add and discard.
    """

    def __init__(self) -> None:
        self._references: set[ref[_T]] = set()
        self._discard = self._references.discard  # one for all: each reference holds on to its callback
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._references.clear)

    def add(self, one: _T) -> None:
        """List an object until it is collected."""
        self._references.add(ref(one, self._discard))

    def discard(self, one: _T) -> None:
        """List it no longer."""
        self._discard(ref(one))

    def __iter__(self) -> Iterator[_T]:
        """Those that are alive, in no order."""
        # The references first, in one step: other threads add objects meanwhile.
        return iter([one for reference in self._references.copy() if (one := reference()) is not None])
