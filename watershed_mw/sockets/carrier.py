"""What a stream of bytes may be given as, and which kind it is."""

from __future__ import annotations

import _socket
import asyncio
import socket
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["Carrier", "carrier_of"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A stream of bytes, by its kind: a socket, plain or TLS, or else an asyncio transport.

    Attributes:
        socket: the socket, None where it is a transport.
        transport: the transport, None where it is a socket.
        reader, writer: what the transport's owner reads and writes with, None where there is none.
    """

    socket: socket.socket | None = None
    transport: asyncio.Transport | None = None
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None


def carrier_of(stream: Any) -> Carrier:
    """Tell which kind a stream is.

    Raises:
        TypeError: none of them.
    """
    if isinstance(stream, tuple) and len(stream) == 2 and isinstance(stream[1], asyncio.StreamWriter):
        reader, writer = stream
        return Carrier(transport=cast(asyncio.Transport, writer.transport), reader=reader, writer=writer)
    if isinstance(stream, asyncio.StreamWriter):
        return Carrier(transport=cast(asyncio.Transport, stream.transport), writer=stream)
    # Eventlet replaces the class in the module; its TLS sockets are none of that class.
    if isinstance(stream, (socket.socket, _socket.socket)):
        return Carrier(socket=cast(socket.socket, stream))
    if hasattr(stream, "set_protocol") and hasattr(stream, "get_extra_info"):
        return Carrier(transport=stream)  # uvloop's transports do not inherit from asyncio's
    raise TypeError(
        "expected a socket, a TLS socket, an asyncio transport, a StreamWriter or a (StreamReader, StreamWriter) pair; "
        f"got {type(stream).__name__}"
    )
