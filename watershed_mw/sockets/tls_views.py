"""Kinds of sockets: what applications get in proxy mode, and TLS sockets that had another owner.

:class:`DetachedSocket` is what an application gets in proxy mode: its own socket, with the bytes that were read too
early in front. A TLS socket cannot move to another object, so it changes its class instead.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DetachedSocket",
    "DetachedTLSSocket",
    "HeldTLSSocket",
    "ServersTLSSocket",
    "TakenTLSSocket",
    "address",
    "break_stream",
    "close_socket",
    "detach",
    "shut_down",
    "without_tls",
]


def address(name: Any) -> str:
    """A socket's name as ``host:port``, ``[v6]:port`` or path; empty when it has none."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    if isinstance(name, tuple) and len(name) >= 2:
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return name if isinstance(name, str) else ""


def without_tls(sock: Any) -> Any:
    """The class whose methods treat a TLS socket as the plain one that it is as well: C's, or gevent's own."""
    return _socket.socket if isinstance(sock, _socket.socket) else socket.socket


def shut_down(sock: socket.socket, how: int) -> None:
    """``sock.shutdown(how)``, of a TLS socket as well."""
    if isinstance(sock, ssl.SSLSocket):
        # Not SSLSocket.shutdown, which forgets the TLS state under a thread that may be using it.
        without_tls(sock).shutdown(sock, how)
    else:
        sock.shutdown(how)


def close_socket(sock: socket.socket) -> None:
    """Close a socket for good, a :class:`HeldTLSSocket` as well; the peer learns of it though a fork holds it."""
    with contextlib.suppress(OSError, ValueError):
        shut_down(sock, socket.SHUT_RDWR)
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
            shut_down(sock, socket.SHUT_RDWR)
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
        capacity = sum(map(len, views))
        taken = self._take_head(min(limit, capacity) if limit else capacity, flags)
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
