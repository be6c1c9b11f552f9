"""One pool of zlib's contexts per event loop: an idle connection holds none."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from ..core.deflate import Contexts

__all__ = ["contexts_of"]

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Contexts] = WeakKeyDictionary()


def contexts_of(loop: asyncio.AbstractEventLoop) -> Contexts:
    """The one :class:`~watershed_mw.core.deflate.Contexts` of ``loop``, used on that loop's thread alone."""
    pool = _pools.get(loop)
    if pool is None:
        pool = _pools[loop] = Contexts()
    return pool
