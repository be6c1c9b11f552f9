"""The kinds of transport that an upgrade can live on, behind one face: write, become a connection, detach.

From the kind follows the flavour: a socket gives a connection for threads, an asyncio transport one
for its event loop. Bytes that came before the connection was made are found where they wait.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self, TypeAlias

from ..core.handshake.negotiation import Agreement
from ..core.limits import Limits
from ..core.protocol import Protocol
from ..core.states import Role
from ..errors import ConnectionClosed, UnsupportedServerError
from ..runtime.exhaustion import is_exhausted, unavailable
from ..sockets.carrier import carrier_of
from ..sockets.tls_views import DetachedSocket, address, detach
from .aio.connection import AsyncioConnection
from .base import ConnectionInfo, Trace
from .threads.connection import ThreadConnection

__all__ = [
    "AsyncTransportLike",
    "AsyncioTransport",
    "BlockingTransport",
    "DetachedStreams",
    "drain_file",
    "drain_request",
    "drain_stream",
    "way_of",
]

AsyncTransportLike: TypeAlias = "asyncio.BaseTransport | asyncio.StreamWriter | _Streams | AsyncioTransport"
_Streams: TypeAlias = "tuple[asyncio.StreamReader, asyncio.StreamWriter]"


class BlockingTransport:
    """A ``socket.socket`` or ``ssl.SSLSocket`` of a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def write(self, data: bytes) -> None:
        """Write everything, as the socket's own timeout allows.

        Raises:
            ConnectionClosed: the peer has gone.
        """
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionClosed(1006, f"the opening handshake could not be written: {error}") from error

    def connection(
        self,
        role: Role,
        agreement: Agreement,
        limits: Limits,
        trace: Trace | None,
        request: Any,
        head: bytes,
        closed: type[ConnectionClosed] = ConnectionClosed,
        ended: Callable[[], None] | None = None,
        shutdown_code: int | None = None,
    ) -> ThreadConnection:
        """The socket as a connection."""
        remote, local = _names(self._socket)
        info = ConnectionInfo(role, agreement, limits, request, remote, local, trace, closed, ended, shutdown_code)
        return ThreadConnection(info, _protocol(info), self._socket, head)

    def check_detachable(self) -> None:
        """Every socket is."""

    def detach(self, head: bytes, answer: bytes = b"") -> socket.socket:
        """The socket as its new owner's, once ``answer`` has been written."""
        self.write(answer)
        return detach(self._socket, head)


class DetachedStreams(tuple[asyncio.StreamReader, asyncio.StreamWriter]):  # noqa: SLOT001  # a tuple has no room for slots
    """What ``detached=True`` gives for TLS under asyncio, where no socket speaks plain text: a pair to unpack.

    Attributes:
        head: bytes that had been read past the opening handshake; the reader gives them first.
    """

    head: bytes

    def __new__(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> Self:
        """The pair, and what was read already."""
        pair = super().__new__(cls, (reader, writer))
        pair.head = head
        return pair


class AsyncioTransport:
    """An asyncio transport of the running loop.

    Args:
        transport: the transport, whoever its protocol is.
        streams: reader, if there is one, and writer that the transport belongs to; the reader may hold bytes already.
        eof: whether the stream's end has been read: the transport will not tell of it again.
    """

    __slots__ = ("_eof", "_reader", "_streams", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        streams: tuple[asyncio.StreamReader | None, asyncio.StreamWriter] | None = None,
        eof: bool = False,
    ) -> None:
        self._transport = transport
        self._streams = streams
        self._reader = None if streams is None else streams[0]
        self._eof = eof

    def write(self, data: bytes) -> None:
        """Write everything.

        Raises:
            ConnectionClosed: the transport is closing.
        """
        if self._transport.is_closing():
            raise ConnectionClosed(1006, "the transport was closed before the opening handshake could be written")
        self._transport.write(data)

    def connection(
        self,
        role: Role,
        agreement: Agreement,
        limits: Limits,
        trace: Trace | None,
        request: Any,
        head: bytes,
        remote: str | None = None,
    ) -> AsyncioConnection:
        """The transport as a connection; ``remote`` where a proxy in front has told of another address."""
        if remote is None:
            remote = address(self._transport.get_extra_info("peername"))
        local = _local_address(self._transport.get_extra_info("sockname"))
        info = ConnectionInfo(role, agreement, limits, request, remote, local, trace)
        connection = AsyncioConnection(info, _protocol(info), self._transport)
        head += drain_stream(self._reader)
        connection.attach(head, self._streams, eof=self._at_eof)
        return connection

    @property
    def _at_eof(self) -> bool:
        """Whether the end has come, and nothing before it is still to be read."""
        return self._eof or (self._reader is not None and self._reader.at_eof())

    def abort(self) -> None:
        """Drop the transport."""
        self._transport.abort()

    def check_detachable(self) -> None:
        """Judge, before anything is answered, whether :meth:`detach` can work.

        Raises:
            UnsupportedServerError: the transport has no socket, or bytes unsent.
        """
        transport = self._transport
        if self._tls:
            return  # the transport itself goes over
        if transport.get_extra_info("socket") is None or transport.get_write_buffer_size():
            raise UnsupportedServerError(
                f"expected a transport with a socket and nothing unsent for detached, got {type(transport).__name__}"
            )

    @property
    def _tls(self) -> bool:
        return self._transport.get_extra_info("ssl_object") is not None

    def detach(self, head: bytes, answer: bytes = b"") -> socket.socket | DetachedStreams:
        """What is raw here, once ``answer`` has been written: a plain transport's socket, which the event loop
        forgets, or a reader and a writer on a TLS transport, which its previous owner forgets.

        Raises:
            ConnectionClosed: the peer has gone.
            HandshakeError: there is no descriptor for it (503); nothing has been written.
        """
        if self._transport.is_closing():
            raise ConnectionClosed(1006, "the transport was closed before the opening handshake could be written")
        head += drain_stream(self._reader)
        return self._detach_streams(head, answer) if self._tls else self._detach_socket(head, answer)

    def _detach_socket(self, head: bytes, answer: bytes) -> socket.socket:
        transport = self._transport
        # A descriptor of our own: the transport closes its own, and shuts nothing down.
        try:
            number = socket.dup(transport.get_extra_info("socket").fileno())
        except OSError as error:
            if not is_exhausted(error):
                raise
            raise unavailable(error) from error
        transport.pause_reading()
        taken = DetachedSocket(fileno=number)
        taken.setblocking(False)
        taken.head = head
        transport.abort()
        try:
            # Not by the transport: uvloop writes at the end of the turn, when it has forgotten this connection.
            # A handshake of some hundred bytes fits into the empty buffer of a new connection.
            taken.sendall(answer)
        except OSError as error:
            taken.close()
            raise ConnectionClosed(1006, f"the opening handshake could not be written: {error}") from error
        return taken

    def _detach_streams(self, head: bytes, answer: bytes) -> DetachedStreams:
        transport = self._transport
        transport.write(answer)
        # A reader of our own in any case: one that has heard of the stream's end takes no bytes back.
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        reader.feed_data(head)
        if self._at_eof:
            reader.feed_eof()
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()  # whoever had it may have waited for the decision
        return DetachedStreams(reader, asyncio.StreamWriter(transport, protocol, reader, loop), head)


def way_of(sock: Any) -> BlockingTransport | AsyncioTransport:
    """The kind of transport that ``sock`` is.

    Raises:
        TypeError: none that is known.
    """
    if isinstance(sock, AsyncioTransport):
        return sock
    carrier = carrier_of(sock)
    if carrier.socket is not None:
        return BlockingTransport(carrier.socket)
    assert carrier.transport is not None
    return AsyncioTransport(carrier.transport, None if carrier.writer is None else (carrier.reader, carrier.writer))


@lru_cache(maxsize=64)
def _local_address(name: Any) -> str:
    """A listening socket's address, which its connections have in common."""
    return address(name)


def _protocol(info: ConnectionInfo) -> Protocol:
    return Protocol(info.role, time.monotonic(), info.limits, info.agreement.deflate)


def _names(sock: socket.socket) -> tuple[str, str]:
    try:
        return address(sock.getpeername()), address(sock.getsockname())
    except OSError:
        return "", ""  # the peer has gone already; reading will tell


def drain_stream(reader: asyncio.StreamReader | None) -> bytes:
    """What a StreamReader holds, without waiting.

    ``read`` suspends only when there is nothing: one step of its coroutine tells, and closing it
    leaves the reader as it was. No private attribute is needed.
    """
    if reader is None or reader.at_eof():
        return b""
    step = reader.read(2**31)
    try:
        step.send(None)
    except StopIteration as stop:
        return bytes(stop.value)
    else:
        return b""
    finally:
        step.close()


def drain_request(request: Any) -> bytes:
    """What the buffered reader of an ``http.server`` handler has read past the request head, without waiting."""
    if hasattr(request, "close_connection"):
        request.close_connection = True  # no further request will come on this connection
    rfile, sock = getattr(request, "rfile", None), getattr(request, "connection", None)
    if rfile is None or not isinstance(sock, socket.socket) or not hasattr(rfile, "read1"):
        return b""
    return drain_file(rfile, sock)


def drain_file(rfile: Any, sock: socket.socket) -> bytes:
    """What a buffered reader on ``sock`` holds, without waiting; what the kernel has can stay there."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        # One buffer at most: whoever floods before the answer fills the kernel's memory share, not ours.
        return bytes(rfile.read1(len(rfile.peek(1)) or 1) or b"")
    except OSError:
        return b""  # Nothing there, or nobody: the next call on the socket will tell.
    finally:
        sock.setblocking(True)  # to eventlet not the same as a timeout
        sock.settimeout(timeout)
