"""Checks the streams for a relay, and makes its sides from them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, TypeAlias

from ..connection.adopt import AsyncioTransport, drain_stream
from ..errors import ConnectionClosed
from ..sockets.carrier import carrier_of
from ..sockets.tls_transport import TLSSocketTransport
from ..sockets.tls_views import HeldTLSSocket
from .side import Side
from .socket_side import SocketSide
from .transport_side import TransportSide

__all__ = ["Stream", "can_relay", "check_stream", "side_of"]

Stream: TypeAlias = "socket.socket | asyncio.BaseTransport | tuple[asyncio.StreamReader, asyncio.StreamWriter]"
"""A connected socket, plain or TLS; an asyncio transport; or a pair as ``asyncio.open_connection`` returns it."""


def can_relay(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this event loop has the ``add_reader()`` that relays need; Windows' ProactorEventLoop lacks it."""
    proactor: Any = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is None or not isinstance(loop, proactor)


def check_stream(stream: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """Check that a relay can take ``stream``.

    Args:
        stream: the stream.
        loop: the running event loop, or None.

    Raises:
        TypeError: the type of ``stream`` is not supported.
        ValueError: it is not connected, or needs a running event loop.
        ConnectionClosed: it is closed.
    """
    carrier = carrier_of(stream)
    if carrier.writer is not None and carrier.reader is None:
        raise TypeError(
            "expected a (StreamReader, StreamWriter) pair, got a StreamWriter alone: pass its reader, which may hold "
            "bytes, as well"
        )
    if (sock := carrier.socket) is not None:
        if sock.fileno() == -1:
            raise ConnectionClosed(1006, f"expected a connected socket, got a closed {type(sock).__name__}")
        if sock.type != socket.SOCK_STREAM or _listens(sock):
            raise ValueError(f"expected a connected stream socket, got {sock!r}")
        if isinstance(sock, ssl.SSLSocket) and sock.version() is None:
            raise ValueError("expected a TLS socket after its handshake, got one before it: call do_handshake() first")
        return
    if loop is None:
        raise ValueError(f"expected sockets where no event loop is running, got {type(stream).__name__}")
    assert carrier.transport is not None
    if carrier.transport.is_closing():
        raise ConnectionClosed(1006, f"expected an open transport, got a closing {type(carrier.transport).__name__}")


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError):
        return False  # not every platform has the option


def side_of(stream: Any, loop: asyncio.AbstractEventLoop, close_timeout: float) -> Side:
    """Make a relay's side from a checked stream, which its previous owner can no longer close."""
    carrier = carrier_of(stream)
    if (sock := carrier.socket) is not None:
        head = bytes(getattr(sock, "head", b""))
        if not isinstance(sock, ssl.SSLSocket):
            return SocketSide(loop, sock, head)
        sock.__class__ = HeldTLSSocket
        return TransportSide(loop, TLSSocketTransport(loop, sock), head, False, None, close_timeout)
    transport, reader, writer = carrier.transport, carrier.reader, carrier.writer
    assert transport is not None
    plain = transport.get_extra_info("ssl_object") is None and transport.get_extra_info("socket") is not None
    if plain and not transport.is_closing() and not transport.get_write_buffer_size():
        # The socket itself costs less than its transport.
        detached: Any = AsyncioTransport(transport, None if writer is None else (reader, writer)).detach(b"")
        return SocketSide(loop, detached, detached.head)
    head = drain_stream(reader)
    eof = reader is not None and reader.at_eof()
    return TransportSide(loop, transport, head, eof, writer, close_timeout)
