"""The streams that httpx leaves behind a 101: the bare socket of a blocking one, a transport around an awaited one.

What httpx calls a network stream has ``read``, ``write`` and ``close`` or ``aclose``, whatever is underneath: TLS in
Python, a proxy's tunnel, a test's stream. Only the streams of a blocking client show their socket; an awaited one
is read and written through its own methods.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from ..errors import UnsupportedServerError
from .tls_views import HeldTLSSocket

__all__ = ["NetworkStreamTransport", "is_network_stream", "stream_of", "take_socket"]

_READ_SIZE = 64 * 2**10
_HIGH_WATER = 64 * 2**10
_LOW_WATER = 16 * 2**10


def stream_of(response: Any) -> Any:
    """The network stream of an httpx response.

    Raises:
        TypeError: it has none.
    """
    stream = (getattr(response, "extensions", None) or {}).get("network_stream")
    if stream is None:
        raise TypeError(
            "expected a socket, or a response of httpx that has a network stream (client.stream(...), or "
            f"client.send(request, stream=True)); got {type(response).__name__} without one"
        )
    return stream


def is_network_stream(sock: Any) -> bool:
    """Whether this is a stream as httpx has them, blocking or awaited."""
    return all(hasattr(sock, name) for name in ("read", "write", "start_tls", "get_extra_info")) and (
        hasattr(sock, "close") or hasattr(sock, "aclose")
    )


def take_socket(stream: Any) -> tuple[socket.socket, bytes]:
    """The socket under a blocking stream, and bytes that were read past the response head.

    Whoever closes the stream afterwards does not close the socket.

    Raises:
        UnsupportedServerError: there is no socket that speaks plain text, as with TLS inside of a proxy's TLS.
    """
    sock = stream.get_extra_info("socket")
    tls = stream.get_extra_info("ssl_object")
    if not isinstance(sock, socket.socket) or isinstance(tls, ssl.SSLObject):
        raise UnsupportedServerError(
            f"expected a stream on a socket, got one on {type(sock).__name__}: TLS within a proxy's TLS has no socket "
            "for a blocking client; use a proxy without TLS, or httpx.AsyncClient"
        )
    try:
        head: bytes = stream.read(_READ_SIZE, timeout=0)
    except Exception:  # noqa: BLE001  # each HTTP client has errors of its own for "nothing there"
        head = b""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(None)
        sock.__class__ = HeldTLSSocket
        return sock, head
    taken = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    taken.setblocking(True)  # as a detached one is to be; a time-out of the last owner's is in the descriptor
    return taken, head


class NetworkStreamTransport(asyncio.Transport):
    """An asyncio transport around an awaited network stream.

    Args:
        stream: the stream.
        close: awaited at the end; the stream's own ``aclose`` unless given.
    """

    def __init__(self, stream: Any, close: Callable[[], Awaitable[object]] | None = None) -> None:
        super().__init__()
        self._stream = stream
        self._close_stream = close or stream.aclose
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self._unsent = bytearray()
        self._work = asyncio.Event()
        self._may_read = asyncio.Event()
        self._paused_protocol = False
        self._closing = False
        self._lost = False
        self._tasks = [self._loop.create_task(self._read()), self._loop.create_task(self._write())]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Addresses, as asyncio's transports call them; neither the socket nor TLS, which are the stream's own."""
        theirs = {"peername": "server_addr", "sockname": "client_addr"}.get(name)
        if theirs is None:
            return default
        try:
            found = self._stream.get_extra_info(theirs)
        except OSError:
            return default  # the peer has gone already; reading will tell
        return default if found is None else found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give everything to ``protocol`` from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that gets everything."""
        return self._protocol

    # --- reading -----------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether bytes are given to the protocol."""
        return self._may_read.is_set() and not self._closing

    def pause_reading(self) -> None:
        """Leave bytes with the stream, but for what is being read now."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Read on."""
        self._may_read.set()

    async def _read(self) -> None:
        while True:
            await self._may_read.wait()
            try:
                data: bytes = await self._stream.read(_READ_SIZE, timeout=None)
            except Exception as error:  # noqa: BLE001  # each HTTP client has errors of its own
                self._lose(ConnectionResetError(str(error)))
                return
            await self._may_read.wait()  # it may have been paused meanwhile
            if self._closing:
                return
            protocol = cast(asyncio.Protocol, self._protocol)
            if not data:
                if not protocol.eof_received():
                    self.close()
                return
            protocol.data_received(data)

    # --- writing -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write it as soon as the stream takes it."""
        if self._closing or self._lost:
            return
        self._unsent += data
        self._work.set()
        if not self._paused_protocol and len(self._unsent) > _HIGH_WATER:
            self._paused_protocol = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """A network stream ends both directions at once."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes that the stream has not taken yet."""
        return len(self._unsent)

    async def _write(self) -> None:
        while not (self._closing and not self._unsent):
            await self._work.wait()
            self._work.clear()
            while self._unsent:
                data = bytes(self._unsent[:_HIGH_WATER])
                try:
                    await self._stream.write(data, timeout=None)
                except Exception as error:  # noqa: BLE001
                    self._lose(ConnectionResetError(str(error)))
                    return
                del self._unsent[: len(data)]
                if self._paused_protocol and len(self._unsent) <= _LOW_WATER:
                    self._paused_protocol = False
                    self._protocol.resume_writing()
        self._lose(None)

    # --- the end -----------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the transport is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Write what is left, then close."""
        self._closing = True
        self._work.set()

    def abort(self) -> None:
        """Close at once; what is unsent is lost."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._unsent.clear()
        self._tasks.append(self._loop.create_task(self._finish(error)))

    async def _finish(self, error: Exception | None) -> None:
        for task in self._tasks[:2]:
            task.cancel()
        await asyncio.wait(self._tasks[:2])
        try:
            await self._close_stream()
        except Exception:  # noqa: BLE001  # it was to be closed, and is of no more use either way
            pass
        finally:
            self._protocol.connection_lost(error)
            self._tasks.clear()
