"""Objects of this process that are alive, referenced weakly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

__all__ = ["Registry"]

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Weakly referenced objects; a forked child starts with none, as they belong to the parent.

    Does what a WeakSet does, at less cost for each object. Any thread may add and discard.
    """

    def __init__(self) -> None:
        self._references: set[ref[_T]] = set()
        self._discard = self._references.discard  # one for all: each reference keeps its callback
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._references.clear)

    def add(self, one: _T) -> None:
        """Add an object, until it is collected."""
        self._references.add(ref(one, self._discard))

    def discard(self, one: _T) -> None:
        """Remove an object."""
        self._discard(ref(one))

    def __iter__(self) -> Iterator[_T]:
        """The objects that are alive, in no particular order."""
        # First a copy of the references, in one step: other threads add objects at the same time.
        return iter([one for reference in self._references.copy() if (one := reference()) is not None])
