"""The memory that Python code allocates, and the memory that connections account for."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

from watershed_mw.connection.memory import memory_budget
from watershed_mw.core.memory_budget import Account


def held_by_connections() -> int:
    """The bytes that the memory budget counts for connections of this process."""
    budget = memory_budget()
    # The budget drops a collected connection when another one reports next.
    Account(budget, 1, lambda: None).close()
    return budget.total


@dataclass
class Memory:
    """Python's allocations in a ``with measured() as memory:`` block, in bytes."""

    held: int = 0
    peak: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Memory]:
    """Measure the memory that the block still holds at its end, and its peak."""
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
