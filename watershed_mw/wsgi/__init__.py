"""The door of every WSGI server that gives up its socket."""

from __future__ import annotations

from .middleware import Rejection, WatershedWSGI, WSGIUpgrade, asks_for_upgrade

__all__ = ["Rejection", "WSGIUpgrade", "WatershedWSGI", "asks_for_upgrade"]
