"""httpx's network streams after a 101: takes the socket of a blocking stream, wraps an async one in a transport.

A network stream has ``read``, ``write`` and ``close`` or ``aclose``, whatever it wraps: TLS in Python, a proxy's
tunnel, a test's stream. Only blocking streams expose their socket; an async one is used through its own methods.
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
        TypeError: the response has none.
    """
    stream = (getattr(response, "extensions", None) or {}).get("network_stream")
    if stream is None:
        raise TypeError(
            "expected a socket, or an httpx response with a network stream (client.stream(...), or "
            f"client.send(request, stream=True)); got {type(response).__name__} without one"
        )
    return stream


def is_network_stream(sock: Any) -> bool:
    """Whether this is a network stream of httpx, blocking or async."""
    return all(hasattr(sock, name) for name in ("read", "write", "start_tls", "get_extra_info")) and (
        hasattr(sock, "close") or hasattr(sock, "aclose")
    )


def take_socket(stream: Any) -> tuple[socket.socket, bytes]:
    """Take the socket of a blocking stream, and the bytes that were read past the response head.

    Closing the stream afterwards does not close the socket.

    Raises:
        UnsupportedServerError: the stream has no socket of its own, as with TLS inside a proxy's TLS.
    """
    sock = stream.get_extra_info("socket")
    tls = stream.get_extra_info("ssl_object")
    if not isinstance(sock, socket.socket) or isinstance(tls, ssl.SSLObject):
        raise UnsupportedServerError(
            f"expected a stream on a socket, got one on {type(sock).__name__}: TLS inside a proxy's TLS has no socket "
            "of its own; use a proxy without TLS, or httpx.AsyncClient"
        )
    try:
        head: bytes = stream.read(_READ_SIZE, timeout=0)
    except Exception:  # noqa: BLE001  # HTTP clients raise their own errors for "no bytes"
        head = b""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(None)
        sock.__class__ = HeldTLSSocket
        return sock, head
    taken = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    taken.setblocking(True)  # the descriptor has the previous owner's non-blocking mode
    return taken, head


class NetworkStreamTransport(asyncio.Transport):
    """An asyncio transport around an async network stream.

    Args:
        stream: the stream.
        close: called and awaited at the end; by default the stream's own ``aclose``.
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
        """The addresses, by asyncio's names. The socket and TLS belong to the stream and are not available."""
        theirs = {"peername": "server_addr", "sockname": "client_addr"}.get(name)
        if theirs is None:
            return default
        try:
            found = self._stream.get_extra_info(theirs)
        except OSError:
            return default  # not connected any more, which reading will report
        return default if found is None else found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass all further events to ``protocol``."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The current protocol."""
        return self._protocol

    # --- reading -----------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether received bytes go to the protocol."""
        return self._may_read.is_set() and not self._closing

    def pause_reading(self) -> None:
        """Pause reading; a read that has begun still completes."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Resume reading."""
        self._may_read.set()

    async def _read(self) -> None:
        while True:
            await self._may_read.wait()
            try:
                data: bytes = await self._stream.read(_READ_SIZE, timeout=None)
            except Exception as error:  # noqa: BLE001  # HTTP clients raise their own errors
                self._lose(ConnectionResetError(str(error)))
                return
            await self._may_read.wait()  # reading may have been paused during the read
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
        """Buffer ``data``; a task writes it to the stream."""
        if self._closing or self._lost:
            return
        self._unsent += data
        self._work.set()
        if not self._paused_protocol and len(self._unsent) > _HIGH_WATER:
            self._paused_protocol = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """False: a network stream ends both directions together."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes in the write buffer."""
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
        """Flush the write buffer, then close."""
        self._closing = True
        self._work.set()

    def abort(self) -> None:
        """Close immediately; unsent bytes are lost."""
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
        except Exception:  # noqa: BLE001  # the stream is abandoned anyway
            pass
        finally:
            self._protocol.connection_lost(error)
            self._tasks.clear()
