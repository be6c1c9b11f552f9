"""Sockets that change owners: those that applications detach, and TLS sockets taken from servers and clients.

A plain socket moves to a :class:`DetachedSocket`, which first returns the bytes that were read too early. A TLS socket
cannot move to another object, so its class changes instead.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DetachedSocket",
    "DetachedTLSSocket",
    "HeldTLSSocket",
    "ServersTLSSocket",
    "TakenTLSSocket",
    "address",
    "addresses",
    "break_stream",
    "close_socket",
    "detach",
    "shut_down",
    "without_tls",
]


def address(name: Any) -> str:
    """A socket's address as ``host:port``, ``[v6]:port`` or path; empty if it has none."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    if isinstance(name, tuple) and len(name) >= 2:
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return name if isinstance(name, str) else ""


def addresses(peer: Any, own: Any) -> tuple[str, str]:
    """The peer's address and this end's, interned as all connections of a server share it."""
    return address(peer), sys.intern(address(own))


def without_tls(sock: Any) -> Any:
    """The class whose methods treat a TLS socket as a plain one: the C module's, or gevent's."""
    return _socket.socket if isinstance(sock, _socket.socket) else socket.socket


def shut_down(sock: socket.socket, how: int) -> None:
    """``sock.shutdown(how)``, also for TLS sockets."""
    if isinstance(sock, ssl.SSLSocket):
        # Not SSLSocket.shutdown, which drops the TLS state while another thread may be using it.
        without_tls(sock).shutdown(sock, how)
    else:
        sock.shutdown(how)


def close_socket(sock: socket.socket) -> None:
    """Close a socket, even a :class:`HeldTLSSocket`; the peer sees the end even if a forked child has a copy."""
    with contextlib.suppress(OSError, ValueError):
        shut_down(sock, socket.SHUT_RDWR)
    if isinstance(sock, ssl.SSLSocket):
        ssl.SSLSocket.close(sock)
    else:
        sock.close()


def break_stream(transport: Any) -> None:
    """End a transport's stream without its event loop, which may never run again."""
    sock = transport.get_extra_info("socket")
    transport.set_protocol(asyncio.Protocol())
    with contextlib.suppress(
        Exception
    ):  # uvloop's socket has no such method, but closing that loop closes its descriptors
        if isinstance(sock, ssl.SSLSocket):
            shut_down(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        transport.abort()


class TakenTLSSocket(ssl.SSLSocket):
    """A TLS socket that was taken from a server, with a descriptor of its own.

    OpenSSL's state is bound to the object that it was made with, and uses that object's timeout. So the first object
    stays, as a :class:`ServersTLSSocket`, and this one works through it.
    """

    @classmethod
    def of(cls, owner: ssl.SSLSocket) -> TakenTLSSocket:
        """A second object for the socket of ``owner``."""
        # From the C module's socket and its parts: eventlet's ssl module has no constructor for this.
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
            # eventlet's methods emulate blocking on a socket that is always non-blocking.
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
    """A TLS socket whose first owner, such as ``http.server``, still calls ``shutdown`` and ``close``, without effect.

    It is the same object with another class. The new owner closes it with :func:`close_socket`.
    """

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class ServersTLSSocket(ssl.SSLSocket):
    """The server's object for a TLS socket that was taken from it: every call goes to a stand-in socket.

    Attributes:
        stand_in: plain, non-blocking socket.
    """

    stand_in: socket.socket

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read from the stand-in, which is empty."""
        return self.stand_in.recv(buflen, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Read from the stand-in, which is empty."""
        return self.stand_in.recv_into(buffer, nbytes or 0, flags)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  # SSLSocket's own name for it
        """Read from the stand-in, which is empty."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len)

    def send(self, data: Any, flags: int = 0) -> int:
        """Write to the stand-in, which discards it."""
        return self.stand_in.send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Write to the stand-in, which discards it."""
        self.stand_in.sendall(data, flags)

    def write(self, data: Any) -> int:
        """Write to the stand-in, which discards it."""
        return self.stand_in.send(data)

    def pending(self) -> int:
        """0: bytes in OpenSSL belong to the new owner."""
        return 0

    def fileno(self) -> int:
        """The stand-in's descriptor."""
        return self.stand_in.fileno()

    def settimeout(self, value: float | None) -> None:
        """Do nothing: the stand-in never blocks."""

    def setblocking(self, flag: bool) -> None:
        """Do nothing."""

    def unwrap(self) -> socket.socket:
        """Return the stand-in; TLS belongs to the new owner."""
        return self.stand_in

    def shutdown(self, how: int) -> None:
        """Shut the stand-in down."""
        self.stand_in.shutdown(how)

    def detach(self) -> int:
        """Detach the stand-in."""
        return self.stand_in.detach()

    def _real_close(self) -> None:
        self.stand_in.close()

    def __del__(self) -> None:
        # Replaces the finalizer of socket.socket, which would close the new owner's descriptor.
        stand_in = vars(self).get("stand_in")
        if stand_in is not None:
            stand_in.close()


class _EarlyBytes:
    """Returns bytes that were read past the opening handshake before those that the socket receives."""

    head = b""

    def _take_head(self, size: int, flags: int = 0) -> bytes:
        taken = self.head[:size]
        if not flags & socket.MSG_PEEK:
            self.head = self.head[size:]
        return taken

    def _fill_from_head(self, buffers: Iterable[Any], limit: int = 0, flags: int = 0) -> int:
        """Fill writable ``buffers`` in order, with at most ``limit`` bytes; 0 for no limit."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        capacity = sum(map(len, views))
        taken = self._take_head(min(limit, capacity) if limit else capacity, flags)
        start = 0
        for view in views:
            piece = taken[start : start + len(view)]
            view[: len(piece)] = piece
            start += len(piece)
        return len(taken)


class DetachedSocket(_EarlyBytes, socket.socket):
    """A plain socket, detached from its server.

    Attributes:
        head: bytes that were read past the opening handshake. Every ``recv*`` returns them first, but ``select`` and
            event loops do not see them: check ``head`` before you wait.
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
    """A TLS socket, detached from its server; ``head`` as in :class:`DetachedSocket`."""

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
    """Detach ``sock`` for a new owner: a :class:`DetachedSocket`, or the same TLS socket; both return ``head`` first.

    A plain socket gives up its descriptor and is closed. A TLS socket cannot, as OpenSSL is bound to the object: the
    object stays, and its class changes.
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
