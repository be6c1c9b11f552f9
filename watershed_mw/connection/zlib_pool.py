"""One pool of zlib's contexts per event loop: an idle connection holds none."""

from __future__ import annotations

from ..core.deflate import Contexts
from ..runtime.loop_local import LoopLocal

__all__ = ["contexts_of"]

contexts_of = LoopLocal(Contexts).of
"""The one :class:`~watershed_mw.core.deflate.Contexts` of a loop, used on that loop's thread alone."""
