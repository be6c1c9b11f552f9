"""The fuzz targets by name. Each target lists the documented exceptions; any other exception is a finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from tests.fuzz.source import Source
from tests.fuzz.targets import asgi, frames, http, routing

__all__ = ["TARGETS", "Target"]

Target: TypeAlias = Callable[[Source], None]

TARGETS: Final[dict[str, Target]] = {
    target.__name__: target for module in (http, frames, routing, asgi) for target in module.TARGETS
}
