"""glibc's malloc keeps the memory of large messages, instead of returning it to the kernel after each of them.

glibc learns from what it gets back (mallopt(3), M_MMAP_THRESHOLD): a block larger than any that was freed before is
mapped on its own and unmapped again, and free memory at the heap's end goes back to the kernel. It never learns of the
256 KiB that asyncio and ssl receive into, as they shrink these to what arrived. So each large message pays for all of
its pages again.

Figure: a small message over TLS takes less than half of the CPU time, and 1 MiB of text a third (docs/performance.md).

Risk: the setting is the whole process's and cannot be taken back. Blocks of up to 4 MiB, the application's included,
come from the heap, where up to 8 MiB of free memory stay at the end, and more between blocks in use.

Switch: ``WATERSHED_MW_MALLOC=0`` in the environment. glibc's own variables (``MALLOC_MMAP_THRESHOLD_`` and the like)
turn its learning off and prevail; other allocators are not affected.
"""

from __future__ import annotations

import os
from functools import cache

__all__ = ["settle"]

_LARGE = 4 * 2**20


@cache
def settle() -> None:
    """Have malloc keep blocks of up to 4 MiB, unless the environment says otherwise; once in a process."""
    if os.environ.get("WATERSHED_MW_MALLOC") != "0":
        bytes(_LARGE)  # allocated and freed; no byte of it is written to, so the kernel gives no page for it
