"""Classifies the byte streams that this package accepts."""

from __future__ import annotations

import _socket
import asyncio
import socket
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["Carrier", "carrier_of"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A byte stream: a socket, plain or TLS, or an asyncio transport.

    Attributes:
        socket: the socket; None for a transport.
        transport: the transport; None for a socket.
        reader, writer: asyncio's streams on the transport; None if they were not given.
    """

    socket: socket.socket | None = None
    transport: asyncio.Transport | None = None
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None


def carrier_of(stream: Any) -> Carrier:
    """Classify a stream.

    Raises:
        TypeError: its type is not supported.
    """
    if isinstance(stream, tuple) and len(stream) == 2 and isinstance(stream[1], asyncio.StreamWriter):
        reader, writer = stream
        return Carrier(transport=cast(asyncio.Transport, writer.transport), reader=reader, writer=writer)
    if isinstance(stream, asyncio.StreamWriter):
        return Carrier(transport=cast(asyncio.Transport, stream.transport), writer=stream)
    # eventlet replaces socket.socket, and its TLS sockets do not inherit from the replacement.
    if isinstance(stream, (socket.socket, _socket.socket)):
        return Carrier(socket=cast(socket.socket, stream))
    if hasattr(stream, "set_protocol") and hasattr(stream, "get_extra_info"):
        return Carrier(transport=stream)  # uvloop's transports do not inherit from asyncio's
    raise TypeError(
        "expected a socket, a TLS socket, an asyncio transport, a StreamWriter or a (StreamReader, StreamWriter) pair; "
        f"got {type(stream).__name__}"
    )
