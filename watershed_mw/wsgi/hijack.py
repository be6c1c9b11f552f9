"""Hijacking a server's socket without the server noticing.

WSGI does not specify upgrades. The server's socket object is therefore redirected to a dummy: one end of a socket pair
that reads as closed and discards what is written. Everything that the server still does (send its own response, shut
down, close, log) affects only the dummy. How an object is redirected depends on its type;
:mod:`watershed_mw.wsgi.servers` lists which server has which type.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

from ..errors import UnsupportedServerError
from ..sockets.tls_views import ServersTLSSocket, TakenTLSSocket

__all__ = ["Hijack", "take_descriptor", "take_socket"]

_GEVENT_TLS = (
    *("_context", "_sslobj", "_connected", "_session", "server_side", "server_hostname"),
    *("do_handshake_on_connect", "suppress_ragged_eofs"),
)

# select() supports only descriptors up to 1,023: leave the low ones to servers that use it.
_LOW_NUMBERS = 2048

# On Windows, sockets are handles, which dup2() cannot replace.
_SOCKETS_ARE_DESCRIPTORS = sys.platform != "win32"


class Hijack:
    """A hijacked socket.

    Attributes:
        sock: the client's socket, which now belongs to this package.
        head: bytes that the server had read past the request head.
    """

    def __init__(self, sock: socket.socket, head: bytes, dummy: _Dummy, writes_late: bool = False) -> None:
        self.sock = sock
        self.head = head
        self._dummy = dummy
        self._other_end: _socket.socket | None = None
        self._writes_late = writes_late

    def revive_dummy(self) -> None:
        """Let the dummy discard what the server is about to write."""
        if self._other_end is None:
            self._other_end = self._dummy.revive()

    def close_dummy(self) -> None:
        """Close the other end of the dummy: the server has finished with its side, or is about to.

        While an exception propagates to the server, which may write a long error page, the other end keeps reading
        until the server has closed its side: a failed write would be logged instead of the exception.
        """
        if self._other_end is None:
            return
        if sys.exc_info()[0] is not None:
            _swallow(self._other_end)
        elif self._writes_late:
            with _lingering_lock:
                _lingering.append(self._other_end)
                _close_lingering()
        else:
            _discard(self._other_end)
            self._other_end.close()


def _discard(other_end: _socket.socket) -> bool:
    """Read what a server has written to its dummy; returns whether it has closed its side.

    Closing a socket with unread bytes resets the connection: a server that waits for another request would get an
    error instead of the end of the stream.
    """
    other_end.setblocking(False)
    try:
        while other_end.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# Seconds without a byte after which a server that has not closed its side is presumed done.
_SILENCE = 30.0


def _swallow(other_end: _socket.socket) -> None:
    # Under gevent and eventlet this must be a cooperative socket.
    sink = _cooperative(other_end)
    sink.settimeout(_SILENCE)

    def read() -> None:
        with sink, contextlib.suppress(OSError):
            while sink.recv(65536):
                pass

    try:
        threading.Thread(target=read, name="watershed-dummy", daemon=True).start()
    except RuntimeError:
        sink.close()  # the interpreter is shutting down and starts no more threads


# Other ends of dummies that servers may still write to.
_lingering: list[_socket.socket] = []
_lingering_lock = threading.Lock()


def _close_lingering() -> None:
    """Close those whose server has closed its side; check the others again when the next connection ends."""
    for other_end in tuple(_lingering):
        if _discard(other_end):
            _lingering.remove(other_end)
            other_end.close()


def take_socket(sock: Any, head: bytes = b"") -> Hijack:
    """Take the connection behind the server's socket object, plain or TLS; the object stays usable.

    Args:
        sock: a ``socket.socket``, an ``ssl.SSLSocket``, or gevent's socket of either kind.
        head: bytes that the server has already read.

    Raises:
        UnsupportedServerError: this type of TLS socket is not supported; nothing has changed.
    """
    take = _taker_for(sock)
    dummy = _Dummy()
    return Hijack(take(sock, dummy.end), head, dummy)


def take_descriptor(number: int, head: bytes = b"", *, writes_late: bool = False) -> Hijack:
    """Take a socket from a server that uses its descriptor, which then refers to the dummy.

    Args:
        number: descriptor of a plain socket.
        head: bytes that the server has already read.
        writes_late: whether the server writes its response only after closing the body.

    Raises:
        UnsupportedServerError: sockets are not descriptors on this platform (Windows); nothing has changed.
    """
    if not _SOCKETS_ARE_DESCRIPTORS:
        raise UnsupportedServerError(
            "this server's socket cannot be taken over on Windows, where sockets are not file descriptors: use "
            "werkzeug, cheroot, Django's development server, or ASGI"
        )
    dummy = _Dummy(number)
    try:
        taken = socket.socket(fileno=_duplicate_high(number))
        os.dup2(dummy.end.fileno(), number, inheritable=False)
    finally:
        dummy.end.close()
    return Hijack(taken, head, dummy, writes_late)


class _Dummy:
    """Replaces the server's socket: one end of a socket pair, which reads as closed.

    Where sockets are descriptors, the other end is closed while the connection is served, which saves a descriptor; a
    new pair replaces the old one before the server writes its response.

    Args:
        number: the descriptor that the dummy will have; its own by default.

    Attributes:
        end: the server's end.

    Raises:
        OSError: the process has no descriptors left.
    """

    def __init__(self, number: int | None = None) -> None:
        self.end, self._other_end = _pair()
        self._number = self.end.fileno() if number is None else number
        if _SOCKETS_ARE_DESCRIPTORS:
            self._other_end.close()
            self._identity = _identity(self.end.fileno())

    def revive(self) -> _socket.socket | None:
        """Accept and discard bytes from now on; returns the other end, or None if the server's end is closed."""
        if not _SOCKETS_ARE_DESCRIPTORS:
            return self._other_end
        try:
            if _identity(self._number) != self._identity:
                return None  # the server has closed it, and the descriptor may have been reused
            end, other_end = _pair()
        except OSError:
            return None  # writing fails, as for a client that has disconnected
        os.dup2(end.fileno(), self._number, inheritable=False)
        end.close()
        return other_end


def _identity(number: int) -> tuple[int, int]:
    found = os.fstat(number)
    return found.st_dev, found.st_ino


def _pair() -> tuple[_socket.socket, _socket.socket]:
    # From the C module, which monkey patching leaves alone.
    end, other_end = _socket.socketpair() if hasattr(_socket, "socketpair") else _pair_by_tcp()
    other_end.shutdown(_socket.SHUT_WR)
    return end, other_end


def _pair_by_tcp() -> tuple[_socket.socket, _socket.socket]:
    """A socket pair for Windows, whose C module has none; made as the socket module makes it there."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    dummy = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        dummy.connect(listener.getsockname())
        number, address = cast(Any, listener)._accept()
        other_end = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fileno=number)
        if address != dummy.getsockname():
            other_end.close()
            raise ConnectionError("expected this process's own connection, got one from another program")
    except BaseException:
        dummy.close()
        raise
    finally:
        listener.close()
    return dummy, other_end


def _cooperative(sock: _socket.socket) -> socket.socket:
    """The same socket as a ``socket.socket``, which is cooperative under gevent and eventlet."""
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())


def _duplicate_high(number: int) -> int:
    try:
        import fcntl

        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LOW_NUMBERS)
    except (ImportError, OSError):
        return os.dup(number)  # no fcntl, or a lower limit on descriptors


def _taker_for(sock: Any) -> Callable[[Any, _socket.socket], socket.socket]:
    # Monkey patching makes gevent's TLS sockets instances of the standard library's class: check for them first.
    gevent_ssl = sys.modules.get("gevent.ssl")
    if gevent_ssl is not None and isinstance(sock, gevent_ssl.SSLSocket):
        if not issubclass(gevent_ssl.SSLSocket, ssl.SSLSocket):
            raise UnsupportedServerError(
                "TLS on gevent's server requires monkey patching: call gevent.monkey.patch_all() first, or terminate "
                "TLS in front of the server"
            )
        return _take_gevent_tls
    if isinstance(sock, ssl.SSLSocket):
        return _take_tls
    if hasattr(sock, "detach") and hasattr(sock, "proto"):
        return _take_plain
    raise UnsupportedServerError(
        f"expected a plain socket or an ssl.SSLSocket, got {type(sock).__module__}.{type(sock).__name__}: use the "
        "server's built-in TLS, or terminate TLS in front of it"
    )


def _take_plain(sock: Any, dummy: _socket.socket) -> socket.socket:
    timeout = sock.gettimeout()
    taken = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    # Reuse the object, so that all of the server's references to it, its files included, lead to the dummy.
    family, kind, proto = dummy.family, dummy.type, dummy.proto
    type(sock).__init__(sock, family, kind, proto, dummy.detach())
    sock.settimeout(timeout)
    return taken


def _take_tls(sock: ssl.SSLSocket, dummy: _socket.socket) -> socket.socket:
    # OpenSSL's state refers to this object and cannot move: the object keeps it, and its class changes so that the
    # server sees only the dummy.
    sock.settimeout(0.0)
    taken = TakenTLSSocket.of(sock)
    sock.__class__ = ServersTLSSocket
    stand_in = _cooperative(dummy)
    stand_in.setblocking(False)
    vars(sock)["stand_in"] = stand_in
    return taken


def _take_gevent_tls(sock: Any, dummy: _socket.socket) -> socket.socket:
    # Here OpenSSL's state refers to the inner C socket, which can move to another gevent socket.
    gevent_socket: Any = sys.modules["gevent.socket"].socket
    inner, timeout = sock._sock, sock.gettimeout()
    number = inner.fileno()
    taken: Any = object.__new__(type(sock))
    gevent_socket.__init__(taken, sock.family, sock.type, sock.proto, number)
    taken._sock.detach()
    taken._sock = inner
    for name in _GEVENT_TLS:
        if hasattr(sock, name):
            setattr(taken, name, getattr(sock, name))
    sock._drop_events_and_close(closefd=False)
    family, kind, proto = dummy.family, dummy.type, dummy.proto
    gevent_socket.__init__(sock, family, kind, proto, dummy.detach())
    sock._sslobj = None  # the server's object is now plain, and connected to the dummy
    sock.settimeout(timeout)
    return cast(socket.socket, taken)
