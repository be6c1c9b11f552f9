"""WebSockets for every Python web application: mounted in ASGI apps, wrapped around WSGI apps, on raw sockets."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ._implementation import implementation
from .asgi.middleware import WatershedASGI
from .connection.aio.api import AsyncConnection
from .connection.base import Stats, WatershedConnection, live_connections
from .connection.broadcast import broadcast
from .connection.threads.connection import ThreadConnection
from .core.codes import CloseCode
from .core.handshake.extensions import DeflateOptions
from .core.handshake.negotiation import Request
from .core.limits import Limits
from .errors import (
    ConnectionClosed,
    HandshakeError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    UnsupportedServerError,
    WatershedError,
)
from .options import Options
from .watershed import Watershed
from .wsgi.middleware import WatershedWSGI

__all__ = [
    "AsyncConnection",
    "CloseCode",
    "ConnectionClosed",
    "DeflateOptions",
    "HandshakeError",
    "Limits",
    "LocalProtocolError",
    "Options",
    "ProtocolError",
    "RemoteProtocolError",
    "Request",
    "Stats",
    "ThreadConnection",
    "UnsupportedServerError",
    "Watershed",
    "WatershedASGI",
    "WatershedConnection",
    "WatershedError",
    "WatershedWSGI",
    "__version__",
    "broadcast",
    "implementation",
    "live_connections",
]

try:
    __version__ = version("watershed-mw")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
