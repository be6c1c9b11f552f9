"""Raw relay: two connected streams, and every byte of one written to the other."""

from __future__ import annotations

from .engine import Relay, RelayEnd, RelayResult, Stream, live_relays, relay

__all__ = ["Relay", "RelayEnd", "RelayResult", "Stream", "live_relays", "relay"]
