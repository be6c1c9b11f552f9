"""Clients for URLs: ``connect("wss://...")``, for asyncio and for threads."""

from __future__ import annotations

from .connector import Connect, connect
from .retry import Backoff, Retry, worth_retrying

__all__ = ["Backoff", "Connect", "Retry", "connect", "worth_retrying"]
