"""The socket of the threads flavour: waited for, never blocking longer than it is told, plain or TLS.

This file is compiled as well as interpreted. :class:`BlockingSocket` hides the differences between plain and TLS
sockets behind a handful of calls that raise nothing of the socket's own. What it has received stays with it until it is
taken, and what it is to write until it is written: no call that is interrupted takes any of it along.
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

# Bytes asked for at once: where all of them come more, up to the most.
_FEW = 4 * 2**10
_MOST = 256 * 2**10
# Seconds below which a wait inside recv() is not worth telling the kernel its limit.
_SHORT = 0.05
# CPython runs the handlers of signals in the main thread, between two instructions. A signal that comes in the last
# moment before a system call, or to another thread, does not end that call: its handler waits so many seconds at most.
_MOST_ASLEEP = 1.0
_MAIN = threading.main_thread().ident
# Where the option takes two longs, and a single call can be told not to wait.
_CAN_WAIT = sys.platform in ("linux", "darwin") and hasattr(socket, "MSG_DONTWAIT")
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BlockingSocket:
    """A connected stream socket; deadlines are times of ``time.monotonic()``, None for no limit.

    A plain socket's ``recv`` waits for bytes by itself, for as long as the kernel has been told (SO_RCVTIMEO): half
    the system calls of a ``poll`` before each, and half as often another thread gets hold of the interpreter. TLS and
    the sockets of gevent and eventlet are waited for.

    An exception of a signal's handler loses no byte and doubles none. The interpreter lets a handler run after any
    call, before the result is stored; so the two calls that move bytes are made by an iterator, in whose ``for`` no
    handler runs between the call and the store. OpenSSL asks for handlers itself, after it has moved the bytes: then
    :attr:`torn` says that the stream cannot go on.

    One thread at a time receives, and one at a time sends.

    Args:
        sock: plain or TLS socket, which belongs to this object from now on.
        head: bytes that were read already.

    Attributes:
        data: what was received and not taken yet: the taker sets it to None. Empty at the end of the stream.
        write_buffer: what is to be written.
        sent: how many bytes of ``write_buffer`` the kernel has taken.
        torn: whether an exception came out of OpenSSL, which may or may not have moved bytes.
        broken: whether the peer takes nothing any more.
    """

    def __init__(self, sock: socket.socket, head: bytes = b"") -> None:
        self._socket = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        # Green sockets are no subclass of the C module's.
        self._waits = self._tls is None and _CAN_WAIT and isinstance(sock, _socket.socket)
        self._receive_timeout = inf  # what the kernel has been told, in seconds
        self._exact = False
        self._size = _FEW
        if self._waits:
            try:
                self._set_receive_timeout(inf)
            except OSError:
                self._waits = False  # another size of time than two longs; or it is closed, as waiting will find out
        self._at_once = socket.MSG_DONTWAIT if self._waits else 0
        sock.setblocking(self._waits)
        self._ending = False
        # OpenSSL allows one thread at a time inside a connection; no call below waits inside.
        self._guard: Any = threading.Lock() if self._tls is not None else contextlib.nullcontext()
        self.data: bytes | None = head or None
        self.write_buffer: bytes | memoryview = b""
        self.sent = 0
        self.torn = False
        self.broken = False
        self._calls = _of_c(sock)  # that move bytes, and never wait
        self._write = self._calls.send if self._tls is None else _tls_call(self._tls, "write")
        self._flags = (self._at_once,)
        self._reads: Iterator[bytes]
        self._reads_at_once: Iterator[bytes]
        self._make_reads()

    # --- receiving ---------------------------------------------------------------------------------------

    def receive(self, deadline: float | None) -> None:
        """Wait for bytes, which are then in :attr:`data`; there is still None when nothing came in time, or sooner."""
        if self.data is not None:
            return
        left = inf if deadline is None else deadline - time.monotonic()
        if self._receive_timeout > _MOST_ASLEEP and left > _MOST_ASLEEP and threading.get_ident() == _MAIN:
            left = _MOST_ASLEEP
        if not self._waits or left < _SHORT:
            self._receive_when_ready(deadline)
            return
        try:
            if self._receive_timeout > left:
                # Deadlines draw nearer with each message. Half of what is left will do for many, and whoever has waited
                # that long in vain is told to come back.
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
        if self._size > _FEW or came == _FEW:
            self._adapt_size(came)

    def _adapt_size(self, came: int) -> None:
        """Ask for more next time where all that was asked for came: room that stays empty has to be got as well."""
        size = self._size
        if came == size:
            self._size = min(4 * size, _MOST)
        elif came < size // 4:
            self._size = max(size // 2, _FEW)
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
            # After our close_notify OpenSSL calls data a fault, though TCP wants it read to the end.
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
                read, write = False, True  # TLS 1.3's key update: it has to write before it can read
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
        """Whether OpenSSL holds bytes, which poll cannot see."""
        return self._tls is not None and not self._ending and self._tls.pending() > 0

    # --- sending -----------------------------------------------------------------------------------------

    def send(self) -> None:
        """Write of :attr:`write_buffer` what the kernel takes at once, which is then no part of it any more."""
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
        # Nothing can come between these two, either.
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
        """Bytes of :attr:`write_buffer` that the kernel has not taken."""
        return len(self.write_buffer) - self.sent

    # --- waiting -----------------------------------------------------------------------------------------

    def wait(self, deadline: float | None, *, read: bool, write: bool) -> tuple[bool, bool]:
        """Wait until bytes can be read, if ``read``, or be written, if ``write``; whether either is so.

        A stream that is broken can be read and written: that tells.
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
        if (timeout is None or timeout > _MOST_ASLEEP) and threading.get_ident() == _MAIN:
            timeout = _MOST_ASLEEP
        # poll knows no limit of 1,024 descriptors; select stands in where there is no poll (Windows).
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
            found = poll.poll(None if timeout is None else timeout * 1000)
            events = found[0][1] if found else 0
            broken = events & ~(select.POLLIN | select.POLLOUT)
            # Only the thread with the writing role may write: a reader must not be told that it can.
            return bool(events & select.POLLIN or (broken and read)), bool(
                events & select.POLLOUT or (broken and write)
            )
        readable, writable, _ = select.select([self._socket] * read, [self._socket] * write, [], timeout)
        return bool(readable), bool(writable)

    # --- the end -----------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed or has been given away."""
        try:
            return self._socket.fileno()
        except (OSError, ValueError):
            return -1

    def half_close(self) -> None:
        """End this direction of the stream: nothing more will be written, reading goes on."""
        if self._tls is not None:
            with contextlib.suppress(OSError, ValueError), self._guard:
                self._ending = True
                self._make_reads()
                self._tls.unwrap()  # sends close_notify; the peer's is not waited for
        with contextlib.suppress(OSError, ValueError):
            shut_down(self._socket, socket.SHUT_WR)

    def shutdown(self) -> None:
        """Break the stream, so that every thread that waits on it wakes up; the descriptor stays."""
        with contextlib.suppress(OSError, ValueError):
            shut_down(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor; nobody may be waiting on it any more."""
        self.write_buffer = b""
        self.sent = 0
        if self._tls is not None:
            ssl.SSLSocket.close(self._tls)  # a HeldTLSSocket as well
        else:
            self._socket.close()

    def release(self) -> socket.socket:
        """Give the socket to a new owner, out of reach of whoever made it and may want to close it."""
        if self._tls is not None:
            self._tls.__class__ = HeldTLSSocket
            return self._tls
        return socket.socket(self._socket.family, self._socket.type, self._socket.proto, fileno=self._socket.detach())


# Modules in which the frames of an error's traceback may lie that a socket has raised itself.
_OF_SOCKETS = frozenset({__name__, "socket", "ssl", "select"})
_GREEN = frozenset({"gevent", "eventlet"})


def _of_socket(error: BaseException) -> bool:
    """Whether it is the socket's own error, and not one that a signal's handler has raised in the midst of a call.

    A handler often raises TimeoutError, which is an OSError and says nothing about the peer.
    """
    if isinstance(error, TimeoutError) and error.errno is None:
        return False  # no socket here has a timeout of Python's
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        if module not in _OF_SOCKETS and module.partition(".")[0] not in _GREEN:
            return False
        traceback = traceback.tb_next
    return True


def _of_c(sock: socket.socket) -> Any:
    """The C module's socket within gevent's and eventlet's, whose methods are Python: a handler may run within them
    when the kernel has taken or given bytes already."""
    for name in ("_sock", "fd"):
        inner = getattr(sock, name, None)
        if isinstance(inner, _socket.socket):
            return inner
    return sock


def _tls_call(tls: ssl.SSLSocket, name: str) -> Callable[..., Any]:
    """OpenSSL's own ``read`` or ``write``: the ssl module's are Python, within which a result may be lost."""
    method: Callable[..., Any] = getattr(tls, name)
    found: Any = vars(tls).get("_sslobj")
    if method.__module__ == "ssl" and found is not None:
        method = getattr(found, name)
    return method
