"""Sockets as the threads flavour and proxy mode need them: waited for, never blocking, plain or TLS.

:class:`BlockingSocket` hides the differences between plain and TLS sockets behind a handful of
calls that neither raise nor wait longer than they are told. :class:`DetachedSocket` is what an
application gets in proxy mode: its own socket, with the bytes that were read too early in front.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterable
from math import inf
from typing import Any, cast

__all__ = [
    "BlockingSocket",
    "DetachedSocket",
    "DetachedTLSSocket",
    "HeldTLSSocket",
    "ServersTLSSocket",
    "TakenTLSSocket",
    "address",
    "break_stream",
    "close_socket",
    "detach",
    "without_tls",
]

# Bytes asked for at once: where all of them come more, up to the most.
_FEW = 4 * 2**10
_MOST = 256 * 2**10
# Seconds below which a wait inside recv() is not worth telling the kernel its limit.
_SHORT = 0.05
# Where the option takes two longs, and a single call can be told not to wait.
_CAN_WAIT = sys.platform in ("linux", "darwin") and hasattr(socket, "MSG_DONTWAIT")
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def address(name: Any) -> str:
    """A socket's name as ``host:port``, ``[v6]:port`` or path; empty when it has none."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    if isinstance(name, tuple) and len(name) >= 2:
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return name if isinstance(name, str) else ""


class BlockingSocket:
    """A connected stream socket; deadlines are times of ``time.monotonic()``, None for no limit.

    A plain socket's ``recv`` waits for bytes by itself, for as long as the kernel has been told (SO_RCVTIMEO): half
    the system calls of a ``poll`` before each, and half as often another thread gets hold of the interpreter. TLS and
    the sockets of gevent and eventlet are waited for.

    Args:
        sock: plain or TLS socket, which belongs to this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        # Green sockets are no subclass of the C module's.
        self._waits = self._tls is None and _CAN_WAIT and isinstance(sock, _socket.socket)
        self._patience = inf  # what the kernel has been told, in seconds
        self._exact = False
        self._size = _FEW
        if self._waits:
            try:
                self._tell_kernel(inf)
            except OSError:
                self._waits = False  # another size of time than two longs; or it is closed, as waiting will find out
        self._at_once = socket.MSG_DONTWAIT if self._waits else 0
        sock.setblocking(self._waits)
        self._ending = False
        # OpenSSL allows one thread at a time inside a connection; no call below waits inside.
        self._guard: Any = threading.Lock() if self._tls is not None else contextlib.nullcontext()

    def receive(self, deadline: float | None) -> bytes | None:
        """Wait for bytes: empty when the stream has ended or broken, None when nothing came in time, or sooner."""
        left = inf if deadline is None else deadline - time.monotonic()
        if not self._waits or left < _SHORT:
            return self._receive_when_ready(deadline)
        try:
            if self._patience > left:
                # Deadlines draw nearer with each message. Half of what is left will do for many, and whoever has waited
                # that long in vain is told to come back.
                self._tell_kernel(left if self._exact else left / 2)
            data = self._socket.recv(self._size)
        except BlockingIOError:
            self._exact = True
            return None
        except (OSError, ValueError):
            return b""
        self._exact = False
        if self._size > _FEW or len(data) == _FEW:
            self._fit(len(data))
        return data

    def _fit(self, came: int) -> None:
        """Ask for more next time where all that was asked for came: room that stays empty has to be got as well."""
        if came == self._size:
            self._size = min(4 * self._size, _MOST)
        elif came < self._size // 4:
            self._size = max(self._size // 2, _FEW)

    def _receive_when_ready(self, deadline: float | None) -> bytes | None:
        read, write = True, False
        while True:
            try:
                if not self._pending() and not any(self._wait(deadline, read, write)):
                    return None
                with self._guard:
                    data = self._receive()
                self._fit(len(data))
                return data
            except ssl.SSLWantWriteError:
                read, write = False, True  # TLS 1.3's key update: it has to write before it can read
            except _WOULD_BLOCK:
                read, write = True, False
            except (OSError, ValueError):
                return b""

    def _tell_kernel(self, patience: float) -> None:
        seconds, part = divmod(0.0 if patience == inf else max(patience, 0.001), 1.0)
        limit = struct.pack("@ll", int(seconds), int(part * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._patience = patience

    def _pending(self) -> bool:
        """Whether OpenSSL holds bytes, which poll cannot see."""
        return self._tls is not None and not self._ending and self._tls.pending() > 0

    def _receive(self) -> bytes:
        if self._ending:
            # After our close_notify OpenSSL calls data a fault, though TCP wants it read to the end.
            return cast(bytes, without_tls(self._socket).recv(self._socket, self._size))
        return self._socket.recv(self._size, self._at_once)

    def send(self, data: bytes | memoryview) -> int | None:
        """Write what the kernel takes at once: 0 when it takes nothing now, None when the stream is broken."""
        try:
            if self._tls is None:
                return self._socket.send(data, self._at_once)
            with self._guard:
                return self._tls.send(data)
        except _WOULD_BLOCK:
            return 0
        except (OSError, ValueError):
            return None

    def wait_to_write(self, deadline: float | None, *, read: bool) -> bool:
        """Wait until more can be written or, with ``read``, bytes have come; whether they have."""
        try:
            return self._wait(deadline, read, True)[0]
        except (OSError, ValueError):
            return read

    def _wait(self, deadline: float | None, read: bool, write: bool) -> tuple[bool, bool]:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        # poll knows no limit of 1,024 descriptors; select stands in where there is no poll (Windows).
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
            found = poll.poll(None if timeout is None else timeout * 1000)
            events = found[0][1] if found else 0
            broken = events & ~(select.POLLIN | select.POLLOUT)
            return bool(events & select.POLLIN or (broken and read)), bool(events & select.POLLOUT or broken)
        readable, writable, _ = select.select([self._socket] * read, [self._socket] * write, [], timeout)
        return bool(readable), bool(writable)

    def half_close(self) -> None:
        """End this direction of the stream: nothing more will be written, reading goes on."""
        if self._tls is not None:
            with contextlib.suppress(OSError, ValueError), self._guard:
                self._ending = True
                self._tls.unwrap()  # sends close_notify; the peer's is not waited for
        with contextlib.suppress(OSError, ValueError):
            _shut_down(self._socket, socket.SHUT_WR)

    def shutdown(self) -> None:
        """Break the stream, so that every thread that waits on it wakes up; the descriptor stays."""
        with contextlib.suppress(OSError, ValueError):
            _shut_down(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor; nobody may be waiting on it any more."""
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


def without_tls(sock: Any) -> Any:
    """The class whose methods treat a TLS socket as the plain one that it is as well: C's, or gevent's own."""
    return _socket.socket if isinstance(sock, _socket.socket) else socket.socket


def _shut_down(sock: socket.socket, how: int) -> None:
    if isinstance(sock, ssl.SSLSocket):
        # Not SSLSocket.shutdown, which forgets the TLS state under a thread that may be using it.
        without_tls(sock).shutdown(sock, how)
    else:
        sock.shutdown(how)


def close_socket(sock: socket.socket) -> None:
    """Close a socket for good, a :class:`HeldTLSSocket` as well; the peer learns of it though a fork holds it."""
    with contextlib.suppress(OSError, ValueError):
        _shut_down(sock, socket.SHUT_RDWR)
    if isinstance(sock, ssl.SSLSocket):
        ssl.SSLSocket.close(sock)
    else:
        sock.close()


def break_stream(transport: Any) -> None:
    """Have the peer see the end of a transport's stream, though the transport's event loop may never run again."""
    sock = transport.get_extra_info("socket")
    transport.set_protocol(asyncio.Protocol())
    with contextlib.suppress(Exception):  # uvloop's has no such method: closing that loop closes its descriptors
        if isinstance(sock, ssl.SSLSocket):
            _shut_down(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        transport.abort()


class TakenTLSSocket(ssl.SSLSocket):
    """A TLS socket that was taken from a server, with a descriptor that is its own to close.

    OpenSSL's state refers to the object that it was made with, obeys that one's timeout, and cannot move. So
    that object stays, a :class:`ServersTLSSocket` from then on, and this one works through it.
    """

    @classmethod
    def of(cls, owner: ssl.SSLSocket) -> TakenTLSSocket:
        """A second object for the socket of ``owner``."""
        # By the C module's socket and its own parts: what eventlet makes of the ssl module cannot be made so.
        made: Any = _socket.socket.__new__(cls)
        _socket.socket.__init__(made, owner.family, owner.type, owner.proto, owner.fileno())
        _socket.socket.settimeout(made, 0.0)
        made._io_refs, made._closed = 0, False
        vars(made).update(vars(owner))
        vars(made)["owner"] = owner
        taken: TakenTLSSocket = made
        taken.setblocking(False)
        return taken

    def settimeout(self, value: float | None) -> None:
        """As ``socket.settimeout``."""
        own = vars(self)
        if "act_non_blocking" in own:
            # Eventlet's: its methods wait, or do not, for a socket that never does.
            own.update(act_non_blocking=value == 0, _timeout=value)
            return
        super().settimeout(value)
        owner = own.get("owner")
        if owner is not None:
            without_tls(owner).settimeout(owner, value)

    def setblocking(self, flag: bool) -> None:
        """As ``socket.setblocking``."""
        self.settimeout(None if flag else 0.0)


class HeldTLSSocket(TakenTLSSocket):
    """A TLS socket whose first owner, such as ``http.server``, will still shut it down and close it: in vain.

    The object stays as it is and changes its class; the new owner closes it with :func:`close_socket`.
    """

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class ServersTLSSocket(ssl.SSLSocket):
    """What a server holds on to when its TLS socket has been taken: what it does, it does to a stand-in.

    Attributes:
        stand_in: plain, non-blocking socket.
    """

    stand_in: socket.socket

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read nothing."""
        return self.stand_in.recv(buflen, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Read nothing."""
        return self.stand_in.recv_into(buffer, nbytes or 0, flags)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  # SSLSocket's own name for it
        """Read nothing."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len)

    def send(self, data: Any, flags: int = 0) -> int:
        """Write to nobody."""
        return self.stand_in.send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Write to nobody."""
        self.stand_in.sendall(data, flags)

    def write(self, data: Any) -> int:
        """Write to nobody."""
        return self.stand_in.send(data)

    def pending(self) -> int:
        """OpenSSL's bytes are not the server's any more."""
        return 0

    def fileno(self) -> int:
        """The stand-in's."""
        return self.stand_in.fileno()

    def settimeout(self, value: float | None) -> None:
        """Do nothing: the stand-in never makes its caller wait."""

    def setblocking(self, flag: bool) -> None:
        """Do nothing."""

    def unwrap(self) -> socket.socket:
        """End TLS, which the server has no part in any more."""
        return self.stand_in

    def shutdown(self, how: int) -> None:
        """Shut the stand-in down."""
        self.stand_in.shutdown(how)

    def detach(self) -> int:
        """Give the stand-in away."""
        return self.stand_in.detach()

    def _real_close(self) -> None:
        self.stand_in.close()

    def __del__(self) -> None:
        # Instead of the finaliser of socket.socket, which would close a number that has another owner.
        stand_in = vars(self).get("stand_in")
        if stand_in is not None:
            stand_in.close()


class _EarlyBytes:
    """Bytes that were read past the opening handshake, in front of what the socket still receives."""

    head = b""

    def _take_head(self, size: int, flags: int = 0) -> bytes:
        taken = self.head[:size]
        if not flags & socket.MSG_PEEK:
            self.head = self.head[size:]
        return taken

    def _fill_from_head(self, buffers: Iterable[Any], limit: int = 0, flags: int = 0) -> int:
        """Copy into writable ``buffers`` in turn, ``limit`` bytes at most unless it is 0."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        room = sum(map(len, views))
        taken = self._take_head(min(limit, room) if limit else room, flags)
        start = 0
        for view in views:
            piece = taken[start : start + len(view)]
            view[: len(piece)] = piece
            start += len(piece)
        return len(taken)


class DetachedSocket(_EarlyBytes, socket.socket):
    """A plain socket that its owner got in proxy mode.

    Attributes:
        head: bytes that were read past the opening handshake; every ``recv*`` gives them first,
            but ``select`` and event loops cannot see them: look here before waiting.
    """

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As ``socket.recv``."""
        return self._take_head(bufsize, flags) if self.head else super().recv(bufsize, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As ``socket.recv_into``."""
        return self._fill_from_head([buffer], nbytes, flags) if self.head else super().recv_into(buffer, nbytes, flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As ``socket.recvfrom``."""
        return (self._take_head(bufsize, flags), None) if self.head else super().recvfrom(bufsize, flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As ``socket.recvfrom_into``."""
        if self.head:
            return self._fill_from_head([buffer], nbytes, flags), None
        return super().recvfrom_into(buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """As ``socket.recvmsg``."""
        return (
            (self._take_head(bufsize, flags), [], 0, None) if self.head else super().recvmsg(bufsize, ancbufsize, flags)
        )

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """As ``socket.recvmsg_into``."""
        if self.head:
            return self._fill_from_head(buffers, 0, flags), [], 0, None
        return super().recvmsg_into(buffers, ancbufsize, flags)


class DetachedTLSSocket(_EarlyBytes, TakenTLSSocket):
    """A TLS socket that its owner got in proxy mode; ``head`` as in :class:`DetachedSocket`."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As ``SSLSocket.recv``."""
        return self._take_head(buflen) if self.head else super().recv(buflen, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As ``SSLSocket.recv_into``."""
        return self._fill_from_head([buffer], nbytes or 0) if self.head else super().recv_into(buffer, nbytes, flags)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  # SSLSocket's own name for it
        """As ``SSLSocket.read``."""
        if not self.head:
            return super().read(len, buffer)
        return self._take_head(len) if buffer is None else self._fill_from_head([buffer], len)


def detach(sock: socket.socket, head: bytes) -> socket.socket:
    """``sock`` as its new owner's: a :class:`DetachedSocket`, or the TLS socket itself with ``head`` in front.

    A plain socket gives its descriptor up and is closed afterwards; a TLS socket cannot (OpenSSL holds
    on to the object), so it stays the same object and changes its class.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.__class__ = DetachedTLSSocket
        tls: Any = sock
        tls.head = head
        return sock
    timeout = sock.gettimeout()
    taken = DetachedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    taken.settimeout(timeout)
    taken.head = head
    return taken
