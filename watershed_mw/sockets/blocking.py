"""The blocking socket of connections in threads, plain or TLS, with a deadline for every wait.

:class:`BlockingSocket` hides the differences between plain and TLS sockets behind a few calls that never raise the
socket's own errors. It keeps received bytes until they are taken and unsent bytes until they are written, so an
interrupted call loses neither. This file is compiled as well as interpreted.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import itertools
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from .tls_views import HeldTLSSocket, shut_down, without_tls

__all__ = ["BlockingSocket"]

# Smallest and largest read in bytes; reads grow while they return full.
_MIN_READ = 4 * 2**10
_MAX_READ = 256 * 2**10
# Waits shorter than this many seconds use poll(), as setting SO_RCVTIMEO would not pay off.
_SHORT = 0.05
# CPython runs signal handlers in the main thread, between two instructions. A signal that arrives just before a system
# call, or in another thread, does not interrupt that call. So waits in the main thread last at most this many seconds.
_MAX_WAIT = 1.0
_MAIN = threading.main_thread().ident
# Platforms whose SO_RCVTIMEO takes two longs, and that have non-blocking calls on blocking sockets.
_CAN_WAIT = sys.platform in ("linux", "darwin") and hasattr(socket, "MSG_DONTWAIT")
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BlockingSocket:
    """A connected stream socket. Deadlines are times of ``time.monotonic()``, None for no limit.

    On a plain socket ``recv`` itself blocks, with a timeout in the kernel (SO_RCVTIMEO). That takes half the system
    calls of a ``poll`` before each ``recv``, and releases the GIL half as often. TLS sockets and those of gevent and
    eventlet use ``poll``.

    An exception raised by a signal handler neither loses nor duplicates bytes. The interpreter may run a handler after
    any call, before the result is stored. So both calls that move bytes are made by an iterator: no handler runs
    between such a call and the store of its ``for``. OpenSSL itself runs handlers after moving bytes; then :attr:`torn`
    marks the stream as unusable.

    One thread at a time may receive, and one at a time may send.

    Args:
        sock: plain or TLS socket, owned by this object from now on.
        head: bytes already read from it.

    Attributes:
        data: received bytes, empty at the end of the stream; the reader sets it to None when it takes them.
        write_buffer: bytes to write.
        sent: number of bytes of ``write_buffer`` that the kernel has accepted.
        torn: whether an exception left OpenSSL, which may have moved bytes before raising it.
        broken: whether the peer accepts no more bytes.
    """

    def __init__(self, sock: socket.socket, head: bytes = b"") -> None:
        self._socket = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        # The sockets of gevent and eventlet are not subclasses of the C module's.
        self._waits = self._tls is None and _CAN_WAIT and isinstance(sock, _socket.socket)
        self._receive_timeout = inf  # in seconds, as set in the kernel
        self._exact = False
        self._size = _MIN_READ
        if self._waits:
            try:
                self._set_receive_timeout(inf)
            except OSError:
                # The kernel has another struct timeval; or the socket is closed, which the first wait reports.
                self._waits = False
        self._at_once = socket.MSG_DONTWAIT if self._waits else 0
        sock.setblocking(self._waits)
        self._ending = False
        # OpenSSL allows only one thread at a time in a connection; no call under this lock blocks.
        self._guard: Any = threading.Lock() if self._tls is not None else contextlib.nullcontext()
        self.data: bytes | None = head or None
        self.write_buffer: bytes | memoryview = b""
        self.sent = 0
        self.torn = False
        self.broken = False
        self._calls = _of_c(sock)  # its methods move bytes and never switch greenlets
        self._write = self._calls.send if self._tls is None else _tls_call(self._tls, "write")
        self._flags = (self._at_once,)
        self._reads: Iterator[bytes]
        self._reads_at_once: Iterator[bytes]
        self._make_reads()

    # --- receiving ---------------------------------------------------------------------------------------

    def receive(self, deadline: float | None) -> None:
        """Wait for bytes and store them in :attr:`data`; it may stay None, even before the deadline."""
        if self.data is not None:
            return
        left = inf if deadline is None else deadline - time.monotonic()
        if self._receive_timeout > _MAX_WAIT and left > _MAX_WAIT and threading.get_ident() == _MAIN:
            left = _MAX_WAIT
        if not self._waits or left < _SHORT:
            self._receive_when_ready(deadline)
            return
        try:
            if self._receive_timeout > left:
                # The remaining time shrinks with each message. Half of it suits many messages before the next system
                # call; a caller that gets no bytes within it calls again.
                self._set_receive_timeout(left if self._exact else left / 2)
            reads = self._reads
            for self.data in reads:
                break
        except (OSError, ValueError) as error:
            if not _of_socket(error):
                raise
            if isinstance(error, BlockingIOError):
                self._exact = True
                return
            self.data = b""
            return
        self._exact = False
        came = len(self.data or b"")
        if self._size > _MIN_READ or came == _MIN_READ:
            self._adapt_size(came)

    def _adapt_size(self, came: int) -> None:
        """Grow the next read after a full one, and shrink it after a small one, as a read allocates its full size."""
        size = self._size
        if came == size:
            self._size = min(4 * size, _MAX_READ)
        elif came < size // 4:
            self._size = max(size // 2, _MIN_READ)
        if self._size != size:
            self._make_reads()

    def _make_reads(self) -> None:
        size = itertools.repeat(self._size)
        if self._tls is None:
            self._reads = map(self._calls.recv, size)
            self._reads_at_once = map(self._calls.recv, size, itertools.repeat(self._at_once))
        elif not self._ending:
            self._reads = self._reads_at_once = map(_tls_call(self._tls, "read"), size)
        else:
            # After our close_notify OpenSSL rejects data, but TCP needs it read up to the end of the stream.
            plain = functools.partial(without_tls(self._socket).recv, self._socket)
            self._reads = self._reads_at_once = map(plain, size)

    def _receive_when_ready(self, deadline: float | None) -> None:
        read, write = True, False
        while self.data is None:
            try:
                if not self.pending and not any(self._wait(deadline, read, write)):
                    return
                self._receive_at_once()
            except ssl.SSLWantWriteError:
                read, write = False, True  # a TLS 1.3 key update must be written before reading can continue
            except _WOULD_BLOCK as error:
                if not _of_socket(error):
                    raise
                read, write = True, False
            except (OSError, ValueError) as error:
                if not _of_socket(error):
                    raise
                self.data = b""

    def _receive_at_once(self) -> None:
        reads = self._reads_at_once
        if self._tls is None:
            for self.data in reads:
                break
            self._adapt_size(len(self.data or b""))
            return
        with self._guard:
            try:
                for self.data in reads:
                    break
            except BaseException as error:
                self._check_torn(error)
                raise
        self._adapt_size(len(self.data or b""))

    def _set_receive_timeout(self, timeout: float) -> None:
        seconds, part = divmod(0.0 if timeout == inf else max(timeout, 0.001), 1.0)
        limit = struct.pack("@ll", int(seconds), int(part * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._receive_timeout = timeout

    @property
    def pending(self) -> bool:
        """Whether OpenSSL buffers bytes, which poll does not report."""
        return self._tls is not None and not self._ending and self._tls.pending() > 0

    # --- sending -----------------------------------------------------------------------------------------

    def send(self) -> None:
        """Write as much of :attr:`write_buffer` as the kernel accepts without blocking, and remove it from there."""
        while self.write_buffer:
            if self.sent:
                self._drop_sent()
                continue
            try:
                if self._tls is None:
                    (self.sent,) = map(self._write, (self.write_buffer,), self._flags)
                else:
                    self._send_tls()
            except (OSError, ValueError) as error:
                if not _of_socket(error):
                    raise
                if not isinstance(error, _WOULD_BLOCK):
                    self.write_buffer = b""
                    self.broken = True
                return
            if self.sent == len(self.write_buffer):
                self.write_buffer = b""
                self.sent = 0

    def _drop_sent(self) -> None:
        rest = memoryview(self.write_buffer)[self.sent :]
        # No signal handler runs between these two assignments.
        self.write_buffer = rest
        self.sent = 0

    def _send_tls(self) -> None:
        with self._guard:
            try:
                (self.sent,) = map(self._write, (self.write_buffer,))
            except BaseException as error:
                self._check_torn(error)
                raise

    def _check_torn(self, error: BaseException) -> None:
        if not isinstance(error, (OSError, ValueError)) or not _of_socket(error):
            self.torn = True

    @property
    def unsent(self) -> int:
        """Number of bytes of :attr:`write_buffer` that the kernel has not accepted."""
        return len(self.write_buffer) - self.sent

    # --- waiting -----------------------------------------------------------------------------------------

    def wait(self, deadline: float | None, *, read: bool, write: bool) -> tuple[bool, bool]:
        """Wait until the socket is readable, if ``read``, or writable, if ``write``; return whether it is either.

        A broken stream counts as both: the next call reports the error.
        """
        if read and self.pending:
            return True, False
        try:
            return self._wait(deadline, read, write)
        except (OSError, ValueError) as error:
            if not _of_socket(error):
                raise
            return read, write

    def _wait(self, deadline: float | None, read: bool, write: bool) -> tuple[bool, bool]:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if (timeout is None or timeout > _MAX_WAIT) and threading.get_ident() == _MAIN:
            timeout = _MAX_WAIT
        # select() is limited to 1,024 descriptors, so it is used only where there is no poll() (Windows).
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
            found = poll.poll(None if timeout is None else timeout * 1000)
            events = found[0][1] if found else 0
            broken = events & ~(select.POLLIN | select.POLLOUT)
            # Only the writing thread may write, so a reader must not be told that the socket is writable.
            return bool(events & select.POLLIN or (broken and read)), bool(
                events & select.POLLOUT or (broken and write)
            )
        readable, writable, _ = select.select([self._socket] * read, [self._socket] * write, [], timeout)
        return bool(readable), bool(writable)

    # --- the end -----------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 once the socket is closed or released."""
        try:
            return self._socket.fileno()
        except (OSError, ValueError):
            return -1

    def half_close(self) -> None:
        """End this direction of the stream; the other one stays readable."""
        if self._tls is not None:
            with contextlib.suppress(OSError, ValueError), self._guard:
                self._ending = True
                self._make_reads()
                self._tls.unwrap()  # sends close_notify, and does not wait for the peer's
        with contextlib.suppress(OSError, ValueError):
            shut_down(self._socket, socket.SHUT_WR)

    def shutdown(self) -> None:
        """Shut the stream down, which wakes every thread that is waiting on it; the descriptor stays open."""
        with contextlib.suppress(OSError, ValueError):
            shut_down(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor, on which no thread may be waiting."""
        self.write_buffer = b""
        self.sent = 0
        if self._tls is not None:
            ssl.SSLSocket.close(self._tls)  # a HeldTLSSocket as well
        else:
            self._socket.close()

    def release(self) -> socket.socket:
        """Return the socket for a new owner; the previous owner can no longer close it."""
        if self._tls is not None:
            self._tls.__class__ = HeldTLSSocket
            return self._tls
        return socket.socket(self._socket.family, self._socket.type, self._socket.proto, fileno=self._socket.detach())


# An error that a socket itself has raised has traceback frames only in these modules, and in gevent's or eventlet's.
_OF_SOCKETS = frozenset({__name__, "socket", "ssl", "select"})
_GREEN = frozenset({"gevent", "eventlet"})


def _of_socket(error: BaseException) -> bool:
    """Whether the socket itself raised this error, not a signal handler during the call.

    Handlers often raise TimeoutError, which is an OSError too.
    """
    if isinstance(error, TimeoutError) and error.errno is None:
        return False  # no socket here has a Python-level timeout
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        if module not in _OF_SOCKETS and module.partition(".")[0] not in _GREEN:
            return False
        traceback = traceback.tb_next
    return True


def _of_c(sock: socket.socket) -> Any:
    """The C module's socket inside a gevent or eventlet socket, in whose Python methods a signal handler could run
    after bytes have moved."""
    for name in ("_sock", "fd"):
        inner = getattr(sock, name, None)
        if isinstance(inner, _socket.socket):
            return inner
    return sock


def _tls_call(tls: ssl.SSLSocket, name: str) -> Callable[..., Any]:
    """OpenSSL's own ``read`` or ``write``: in the ssl module's Python methods, a signal handler could lose a result."""
    method: Callable[..., Any] = getattr(tls, name)
    found: Any = vars(tls).get("_sslobj")
    if method.__module__ == "ssl" and found is not None:
        method = getattr(found, name)
    return method
