"""glibc's malloc keeps the memory of large messages, instead of returning it to the kernel after each of them.

glibc adapts to the blocks that are freed (mallopt(3), M_MMAP_THRESHOLD): a block larger than any freed before is mapped
on its own and unmapped again, and free memory at the heap's end goes back to the kernel. It never adapts to the 256 KiB
that asyncio and ssl receive into, as they shrink these blocks before they free them. So each large message pays the
page faults for all of its memory again.

Figure: a small message over TLS takes less than half of the CPU time, and 1 MiB of text a third (docs/performance.md).

Risk: the setting affects the process as a whole and cannot be undone. Blocks of up to 4 MiB, the application's
included, come from the heap, which keeps up to 8 MiB of free memory at its end, and more between blocks in use.

Switch: ``WATERSHED_MW_MALLOC=0`` in the environment. glibc's own variables (``MALLOC_MMAP_THRESHOLD_`` and the like)
disable the adaptation and take precedence; other allocators are not affected.
"""

from __future__ import annotations

import os
from functools import cache

__all__ = ["keep_large_blocks"]

_LARGE = 4 * 2**20


@cache
def keep_large_blocks() -> None:
    """Make malloc keep freed blocks of up to 4 MiB, unless the environment forbids it; once per process."""
    if os.environ.get("WATERSHED_MW_MALLOC") != "0":
        bytes(_LARGE)  # allocated and freed; never written to, so the kernel maps no page for it
