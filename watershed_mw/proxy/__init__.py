"""Proxy mode: forwards WebSocket connections to another server, as raw bytes where the server allows that."""

from __future__ import annotations

from ..relay import Relay, RelayEnd, RelayResult, live_relays, relay
from .application import WebSocketProxy
from .target import ProxyRequest, Upstream

__all__ = [
    "ProxyRequest",
    "Relay",
    "RelayEnd",
    "RelayResult",
    "Upstream",
    "WebSocketProxy",
    "live_relays",
    "relay",
]
