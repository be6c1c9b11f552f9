"""The door of every ASGI server: the middleware, and the connection over ASGI messages."""

from __future__ import annotations

from .middleware import ASGIUpgrade, WatershedASGI

__all__ = ["ASGIUpgrade", "WatershedASGI"]
