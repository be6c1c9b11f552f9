"""An asyncio transport around an ``ssl.SSLSocket`` whose TLS handshake is done.

asyncio's own transports refuse such sockets, but WSGI servers and ``http.server`` have nothing else. Everything runs on
the event loop's thread; the socket never blocks.
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
_READS_PER_TURN = 16  # then the event loop serves other connections
_HIGH_WATER = 64 * 2**10
_LOW_WATER = 16 * 2**10


class TLSSocketTransport(asyncio.Transport):
    """Reads and writes one TLS socket.

    Args:
        loop: the running event loop.
        sock: connected TLS socket, after its handshake.
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
        """Pass all further events to ``protocol``."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The current protocol."""
        return self._protocol

    # --- reading -----------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether received bytes go to the protocol."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Pause reading; bytes stay in the kernel."""
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Resume reading, without waiting for an event: bytes in OpenSSL's buffer raise none."""
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
                self._await_writable()  # a key update: reading resumes after the write
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
                self._lose(None)  # the loop only logs the error, and the bytes are lost
                raise
        self._loop.call_soon(self._read)

    # --- writing -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write what the kernel accepts, and buffer the rest."""
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
        """False: TLS ends both directions together."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes in the write buffer."""
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
        """Flush the write buffer, send close_notify, wait for the peer's, then close."""
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
            pass  # our close_notify is sent, and the peer's has not arrived
        with contextlib.suppress(OSError):
            without_tls(self._socket).shutdown(self._socket, socket.SHUT_WR)
        self._loop.add_reader(self._fd, self._discard)

    def _discard(self) -> None:
        # OpenSSL rejects data after our close_notify, but closing with unread data would reset the stream.
        try:
            data = without_tls(self._socket).recv(self._socket, _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose(None)

    def abort(self) -> None:
        """Close immediately; unsent bytes are lost."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        if isinstance(error, ssl.SSLEOFError):
            error = ConnectionResetError(*error.args)  # OpenSSL's error for a write after the peer has disconnected
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
