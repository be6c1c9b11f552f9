"""A WebSocket class for uvicorn: ``uvicorn main:app --ws watershed_mw.uvicorn:WatershedProtocol``."""

from __future__ import annotations

from .native_door import NativeDoor
from .options import options_of
from .protocol import WatershedProtocol

__all__ = ["NativeDoor", "WatershedProtocol", "options_of"]
