"""How much memory Python code takes, and what connections count as theirs."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

from watershed_mw.connection.memory import memory_budget
from watershed_mw.core.memory_budget import Account


def held_by_connections() -> int:
    """Bytes that connections of this process hold."""
    budget = memory_budget()
    # The budget forgets a connection that has been collected with the next report of another one.
    Account(budget, 1, lambda: None).close()
    return budget.total


@dataclass
class Memory:
    """What Python allocated within a ``with measured() as memory:`` block, in bytes."""

    held: int = 0
    peak: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Memory]:
    """Measure what the block still holds at its end, and the most that it held at a time."""
    memory = Memory()
    gc.freeze()  # what is there already need not be looked through for cycles
    tracemalloc.start()
    try:
        yield memory
        gc.collect()
        memory.held, memory.peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
