"""WebSockets for WSGI applications, on every server that gives access to its socket."""

from __future__ import annotations

from .middleware import WatershedWSGI, asks_for_upgrade
from .responses import Rejection
from .shutdown import install_signal_handlers
from .upgrade import WSGIUpgrade

__all__ = ["Rejection", "WSGIUpgrade", "WatershedWSGI", "asks_for_upgrade", "install_signal_handlers"]
