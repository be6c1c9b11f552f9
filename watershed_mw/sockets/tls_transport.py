"""An asyncio transport around an ``ssl.SSLSocket`` whose TLS handshake is done.

asyncio's own transports refuse such sockets, and a WSGI server or ``http.server`` has no other kind
to give. Everything runs on the loop's thread; the socket never blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import cast

from .tls_views import close_socket, without_tls

__all__ = ["TLSSocketTransport"]

_READ_SIZE = 64 * 2**10
_READS_PER_TURN = 16  # then other connections get their turn
_HIGH_WATER = 64 * 2**10
_LOW_WATER = 16 * 2**10


class TLSSocketTransport(asyncio.Transport):
    """Reads and writes one TLS socket.

    Args:
        loop: the running loop.
        sock: connected TLS socket, its handshake done.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
        super().__init__({"socket": sock, "ssl_object": sock})
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._fd = sock.fileno()
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self._unsent = bytearray()
        self._writing = False
        self._paused = True
        self._protocol_paused = False
        self._closing = False
        self._lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give everything to ``protocol`` from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that gets everything."""
        return self._protocol

    # --- reading -----------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether bytes are given to the protocol."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Leave bytes with the kernel."""
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read on; bytes that OpenSSL holds raise no event, so they are asked for at once."""
        if self._paused and not self._closing:
            self._paused = False
            self._loop.add_reader(self._fd, self._read)
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._paused or self._closing:
                return
            try:
                data = self._socket.recv(_READ_SIZE)
            except (ssl.SSLWantReadError, BlockingIOError, InterruptedError):
                return
            except ssl.SSLWantWriteError:
                self._await_writable()  # a key update: it goes on reading once it could write
                return
            except OSError as error:
                self._lose(error)
                return
            protocol = cast(asyncio.Protocol, self._protocol)
            try:
                if not data:
                    self.pause_reading()
                    if not protocol.eof_received():
                        self.close()
                    return
                protocol.data_received(data)
            except BaseException:
                self._lose(None)  # the loop only logs it, and what has been read is lost
                raise
        self._loop.call_soon(self._read)

    # --- writing -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write what the kernel takes now, and keep the rest."""
        if self._closing or self._lost:
            return
        self._unsent += data
        if self._writing:
            self._check_high_water()
        else:
            self._write()

    def _check_high_water(self) -> None:
        if not self._protocol_paused and len(self._unsent) > _HIGH_WATER:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """TLS ends both directions at once."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._unsent)

    def _write(self) -> None:
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    sent = self._socket.send(view)
                del self._unsent[:sent]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error)
            return
        if self._unsent:
            self._await_writable()
            self._check_high_water()
        elif self._closing:
            self._notify()

    def _await_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._fd)
        self._write()
        if self._protocol_paused and len(self._unsent) <= _LOW_WATER and not self._lost:
            self._protocol_paused = False
            self._protocol.resume_writing()
        if not self._lost:
            self._read()

    # --- the end -----------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the transport is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Write what is left, tell the peer (close_notify), wait for its answer, then close."""
        if self._closing:
            return
        self.pause_reading()
        self._closing = True
        if not self._unsent:
            self._notify()

    def _notify(self) -> None:
        try:
            self._socket.unwrap()
        except (ssl.SSLWantWriteError, BlockingIOError):
            self._await_writable()
            return
        except (OSError, ValueError):
            pass  # it has gone out: what unwrap misses is the peer's own
        with contextlib.suppress(OSError):
            without_tls(self._socket).shutdown(self._socket, socket.SHUT_WR)
        self._loop.add_reader(self._fd, self._discard)

    def _discard(self) -> None:
        # OpenSSL calls data after our close_notify a fault, but what stays unread would make TCP drop what we sent.
        try:
            data = without_tls(self._socket).recv(self._socket, _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose(None)

    def abort(self) -> None:
        """Close at once; what is unsent is lost."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        if isinstance(error, ssl.SSLEOFError):
            error = ConnectionResetError(*error.args)  # so OpenSSL calls it when the peer is gone while we write
        self._lost = self._closing = True
        self._unsent.clear()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            close_socket(self._socket)
