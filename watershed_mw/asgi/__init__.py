"""The door of every ASGI server: the middleware, and the connection over ASGI messages."""

from __future__ import annotations

from .middleware import WatershedASGI
from .upgrade import ASGIUpgrade

__all__ = ["ASGIUpgrade", "WatershedASGI"]
