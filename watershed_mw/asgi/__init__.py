"""WebSockets for ASGI applications: the middleware, and connections over ASGI messages."""

from __future__ import annotations

from .middleware import WatershedASGI
from .upgrade import ASGIUpgrade

__all__ = ["ASGIUpgrade", "WatershedASGI"]
