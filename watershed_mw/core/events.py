"""Events of a :class:`~watershed_mw.core.protocol.Protocol`, the same for servers and clients.

A TEXT message is a ``str`` and a BINARY message is ``bytes``, without a wrapper object. Everything else is one of the
frozen classes below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ProtocolError

__all__ = ["CloseReceived", "Event", "Failed", "Ping", "Pong"]


@dataclass(frozen=True, slots=True)
class Ping:
    """A PING was received (RFC 6455 section 5.5.2); its PONG is already queued."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A PONG was received, solicited or not (section 5.5.3)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class CloseReceived:
    """The peer's Close was received (section 5.5.1): no more messages follow."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is being failed (section 7.1.7), because of a violation or a timeout."""

    error: ProtocolError


Event: TypeAlias = str | bytes | Ping | Pong | CloseReceived | Failed
