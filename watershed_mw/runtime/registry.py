"""Weak references to the live objects of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

__all__ = ["Registry"]

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """A set of weakly referenced objects; a forked child starts with an empty one, as they belong to the parent.

    It works like a WeakSet, at a lower cost per object. Any thread may add and discard.
    """

    def __init__(self) -> None:
        self._references: set[ref[_T]] = set()
        self._discard = self._references.discard  # one bound method for all references, which keep their callback
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._references.clear)

    def add(self, one: _T) -> None:
        """Add an object, until it is collected."""
        self._references.add(ref(one, self._discard))

    def discard(self, one: _T) -> None:
        """Remove an object."""
        self._discard(ref(one))

    def __iter__(self) -> Iterator[_T]:
        """The live objects, in no particular order."""
        # Over a copy, which is made atomically, as other threads may add objects at the same time.
        return iter([one for reference in self._references.copy() if (one := reference()) is not None])
