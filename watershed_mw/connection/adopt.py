"""The kinds of transport that an upgrade can live on, with one interface: write, become a connection, detach.

The kind determines the flavour: a socket gives a connection for threads, an asyncio transport one for its event loop.
Bytes that came before the connection was made are taken from the buffers where they are.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TypeAlias, TypeVar

from ..core.handshake.negotiation import Agreement
from ..core.limits import Limits
from ..core.protocol import Protocol
from ..core.states import Role
from ..errors import ConnectionClosed, UnsupportedServerError
from ..runtime.exhaustion import is_exhausted, unavailable
from ..sockets.carrier import carrier_of
from ..sockets.tls_views import DetachedSocket, addresses, detach
from .aio.connection import AsyncioConnection
from .base import ConnectionInfo, Trace, WatershedConnection
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
_C = TypeVar("_C", bound=WatershedConnection)
_Streams: TypeAlias = "tuple[asyncio.StreamReader, asyncio.StreamWriter]"


class _Way(Generic[_C]):
    """A kind of transport."""

    __slots__ = ()

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
        *,
        remote: str | None = None,
    ) -> _C:
        """The transport as a connection.

        Args:
            head: bytes that were read past the opening handshake.
            remote: the peer's address where a proxy in front has named it; None for the transport's own.
            role, agreement, limits, trace, request, closed, ended, shutdown_code: as of :class:`ConnectionInfo`.
        """
        peer, local = self._addresses()
        if remote is None:
            remote = peer
        info = ConnectionInfo(role, agreement, limits, request, remote, local, trace, closed, ended, shutdown_code)
        return self._open(info, Protocol(role, time.monotonic(), limits, agreement.deflate), head)

    def _addresses(self) -> tuple[str, str]:
        """The peer's and this end's; empty where they are unknown."""
        raise NotImplementedError

    def _open(self, info: ConnectionInfo, protocol: Protocol, head: bytes) -> _C:
        raise NotImplementedError


class BlockingTransport(_Way[ThreadConnection]):
    """A ``socket.socket`` or ``ssl.SSLSocket`` of a thread."""

    __slots__ = ("_socket",)

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

    def _addresses(self) -> tuple[str, str]:
        try:
            return addresses(self._socket.getpeername(), self._socket.getsockname())
        except OSError:
            return "", ""  # the peer has gone already, as reading will find out

    def _open(self, info: ConnectionInfo, protocol: Protocol, head: bytes) -> ThreadConnection:
        return ThreadConnection(info, protocol, self._socket, head)

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


class AsyncioTransport(_Way[AsyncioConnection]):
    """An asyncio transport of the running loop.

    Args:
        transport: the transport, with any protocol.
        streams: reader, if there is one, and writer that the transport belongs to; the reader may hold bytes already.
        eof: whether the stream's end has been read: the transport will not report it again.
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

    def _addresses(self) -> tuple[str, str]:
        transport = self._transport
        return addresses(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))

    def _open(self, info: ConnectionInfo, protocol: Protocol, head: bytes) -> AsyncioConnection:
        connection = AsyncioConnection(info, protocol, self._transport)
        head += drain_stream(self._reader)
        connection.attach(head, self._streams, eof=self._at_eof)
        return connection

    @property
    def _at_eof(self) -> bool:
        """Whether the end of the stream has been read, and everything before it."""
        return self._eof or (self._reader is not None and self._reader.at_eof())

    def abort(self) -> None:
        """Drop the transport."""
        self._transport.abort()

    def check_detachable(self) -> None:
        """Check that :meth:`detach` can work, before anything is answered.

        Raises:
            UnsupportedServerError: the transport has no socket, or bytes unsent.
        """
        transport = self._transport
        if self._tls:
            return  # the transport itself gets the new owner
        if transport.get_extra_info("socket") is None or transport.get_write_buffer_size():
            raise UnsupportedServerError(
                f"expected a transport with a socket and nothing unsent for detached, got {type(transport).__name__}"
            )

    @property
    def _tls(self) -> bool:
        return self._transport.get_extra_info("ssl_object") is not None

    def detach(self, head: bytes, answer: bytes = b"") -> socket.socket | DetachedStreams:
        """The raw stream, once ``answer`` has been written: a plain transport's socket, removed from the event loop, or
        a reader and a writer on a TLS transport, whose previous protocol is replaced.

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
        # A duplicate descriptor: the transport closes the original, and does not shut the stream down.
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
            # Not by the transport: uvloop writes at the end of the iteration, after this connection is removed from it.
            # A handshake of some hundred bytes fits into the empty buffer of a new connection.
            taken.sendall(answer)
        except OSError as error:
            taken.close()
            raise ConnectionClosed(1006, f"the opening handshake could not be written: {error}") from error
        return taken

    def _detach_streams(self, head: bytes, answer: bytes) -> DetachedStreams:
        transport = self._transport
        transport.write(answer)
        # A new reader in any case: one that has been fed the end of the stream takes no more bytes.
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        reader.feed_data(head)
        if self._at_eof:
            reader.feed_eof()
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()  # its previous owner may have paused it for the decision
        return DetachedStreams(reader, asyncio.StreamWriter(transport, protocol, reader, loop), head)


def way_of(sock: Any) -> BlockingTransport | AsyncioTransport:
    """The kind of transport that ``sock`` is.

    Raises:
        TypeError: it is of no known kind.
    """
    if isinstance(sock, AsyncioTransport):
        return sock
    carrier = carrier_of(sock)
    if carrier.socket is not None:
        return BlockingTransport(carrier.socket)
    assert carrier.transport is not None
    return AsyncioTransport(carrier.transport, None if carrier.writer is None else (carrier.reader, carrier.writer))


def drain_stream(reader: asyncio.StreamReader | None) -> bytes:
    """What a StreamReader holds, without waiting.

    ``read`` suspends only when there is nothing: one step of its coroutine shows that, and closing the coroutine
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
        # One buffer at most: a flood before the answer fills the kernel's buffers, not this process's memory.
        return bytes(rfile.read1(len(rfile.peek(1)) or 1) or b"")
    except OSError:
        return b""  # nothing there, or the peer has gone: the next call on the socket will show that
    finally:
        sock.setblocking(True)  # to eventlet not the same as a timeout
        sock.settimeout(timeout)
