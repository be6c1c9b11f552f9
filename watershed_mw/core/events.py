"""What a :class:`~watershed_mw.core.protocol.Protocol` reports, the same for servers and clients.

A TEXT message is a ``str`` and a BINARY message is ``bytes``: the type is the event, and the path
of a message costs no wrapper. Everything else is one of the frozen classes below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ProtocolError

__all__ = ["CloseReceived", "Event", "Failed", "Ping", "Pong"]


@dataclass(frozen=True, slots=True)
class Ping:
    """A PING came (RFC 6455 section 5.5.2); its PONG has been queued already."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A PONG came, asked for or not (section 5.5.3)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class CloseReceived:
    """The peer's Close came (section 5.5.1): it will send no more messages."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is being failed (section 7.1.7), because of the peer or of a timeout."""

    error: ProtocolError


Event: TypeAlias = str | bytes | Ping | Pong | CloseReceived | Failed
