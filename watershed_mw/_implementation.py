"""Chooses the build of the hot path: compiled where it was built, else the same files interpreted.

``WATERSHED_MW_PURE=1`` in the environment forces the interpreted one. Nothing else may decide this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

implementation: Literal["compiled", "interpreted"]

if TYPE_CHECKING or os.environ.get("WATERSHED_MW_PURE") == "1":
    from .core.protocol import Protocol
    from .core.queue import ReceiveQueue

    implementation = "interpreted"
else:
    try:
        from ._compiled.protocol import Protocol
        from ._compiled.queue import ReceiveQueue

        implementation = "compiled"
    except ImportError:
        from .core.protocol import Protocol
        from .core.queue import ReceiveQueue

        implementation = "interpreted"

__all__ = ["Protocol", "ReceiveQueue", "implementation"]
