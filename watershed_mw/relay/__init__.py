"""Raw relay: forwards bytes between two connected streams."""

from __future__ import annotations

from .api import Relay, live_relays, relay
from .outcome import RelayEnd, RelayResult
from .streams import Stream

__all__ = ["Relay", "RelayEnd", "RelayResult", "Stream", "live_relays", "relay"]
