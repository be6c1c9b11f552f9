"""Taking a server's socket over for good, without the server noticing.

WSGI has no word for an upgrade. So the server keeps its own socket object, alive on a dummy: one
end of a socket pair that reads as ended and swallows what is written. Whatever the server still
does (write a 101 of its own, shut down, close, log) it does to the dummy. How a server's object can be
turned to the dummy depends on what it is; which server has what, :mod:`watershed_mw.wsgi.servers` knows.
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

# Where a server waits with select(), which knows no number above 1,023, a socket must not hold a low one for long.
_LOW_NUMBERS = 2048

# Windows knows sockets by handles, which are no numbers that dup2() could replace.
_SOCKETS_ARE_DESCRIPTORS = sys.platform != "win32"


class Hijack:
    """The socket that was taken.

    Attributes:
        sock: the client's socket, ours from now on.
        head: bytes that the server had read past the request head.
    """

    def __init__(self, sock: socket.socket, head: bytes, dummy: _Dummy, writes_late: bool = False) -> None:
        self.sock = sock
        self.head = head
        self._dummy = dummy
        self._other_end: _socket.socket | None = None
        self._writes_late = writes_late

    def revive_dummy(self) -> None:
        """The server is about to go on: from now on its dummy swallows what is written."""
        if self._other_end is None:
            self._other_end = self._dummy.revive()

    def close_dummy(self) -> None:
        """The server is done with its side, or about to be: close the other end of the dummy.

        While an exception is on its way to the server, which may have a long page to write about it, the other end
        reads instead, until the server has closed: one that cannot write would log that instead of the exception.
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
    """Read what a server has written to its dummy; whether it has closed its side.

    A socket that is closed with unread bytes resets the connection: a server that looks for a next request would find
    an error there in place of the end.
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


# Seconds of silence after which a server has nothing more to say, though it has not closed its side.
_SILENCE = 30.0


def _swallow(other_end: _socket.socket) -> None:
    # As the threads of this process wait: under gevent and eventlet this is a greenlet's socket.
    sink = _as_threads_wait(other_end)
    sink.settimeout(_SILENCE)

    def read() -> None:
        with sink, contextlib.suppress(OSError):
            while sink.recv(65536):
                pass

    try:
        threading.Thread(target=read, name="watershed-dummy", daemon=True).start()
    except RuntimeError:
        sink.close()  # the interpreter is on its way out, and starts no thread any more


# Other ends of dummies that their servers may still write to.
_lingering: list[_socket.socket] = []
_lingering_lock = threading.Lock()


def _close_lingering() -> None:
    """Close those whose server has closed its side; the last one waits for the next connection's end."""
    for other_end in tuple(_lingering):
        if _discard(other_end):
            _lingering.remove(other_end)
            other_end.close()


def take_socket(sock: Any, head: bytes = b"") -> Hijack:
    """Take what the server's socket object stands for, plain or TLS; the object itself lives on.

    Args:
        sock: a ``socket.socket``, an ``ssl.SSLSocket``, or gevent's socket of either kind.
        head: bytes that the server has read already.

    Raises:
        UnsupportedServerError: it is a TLS socket of another kind; nothing has changed.
    """
    take = _how(sock)
    dummy = _Dummy()
    return Hijack(take(sock, dummy.end), head, dummy)


def take_descriptor(number: int, head: bytes = b"", *, writes_late: bool = False) -> Hijack:
    """Take a socket from a server that knows it by its number, which lives on as the dummy's.

    Args:
        number: descriptor of a plain socket.
        head: bytes that the server has read already.
        writes_late: whether the server writes its answer only when it has closed the body.

    Raises:
        UnsupportedServerError: sockets have no such number here (Windows); nothing has changed.
    """
    if not _SOCKETS_ARE_DESCRIPTORS:
        raise UnsupportedServerError(
            "expected a platform whose sockets are file descriptors, where this server's could be replaced behind its "
            "back, got Windows: use werkzeug, cheroot or Django's development server there, or serve by ASGI"
        )
    dummy = _Dummy(number)
    try:
        taken = socket.socket(fileno=_moved_up(number))
        os.dup2(dummy.end.fileno(), number, inheritable=False)
    finally:
        dummy.end.close()
    return Hijack(taken, head, dummy, writes_late)


class _Dummy:
    """What a server has instead of its socket: one end of a pair, which reads as ended.

    The other end is closed while the connection is served, so that it takes no descriptor. When the server is to write
    its answer, a new pair takes the place of the old one, where sockets are descriptors that can be replaced.

    Args:
        number: the descriptor that it is going to have; its own unless given.

    Attributes:
        end: the server's end.

    Raises:
        OSError: the process has no descriptors for a pair.
    """

    def __init__(self, number: int | None = None) -> None:
        self.end, self._other_end = _pair()
        self._number = self.end.fileno() if number is None else number
        if _SOCKETS_ARE_DESCRIPTORS:
            self._other_end.close()
            self._identity = _identity(self.end.fileno())

    def revive(self) -> _socket.socket | None:
        """Have it swallow what is written; returns the other end, or None where the server's has gone."""
        if not _SOCKETS_ARE_DESCRIPTORS:
            return self._other_end
        try:
            if _identity(self._number) != self._identity:
                return None  # the server has closed it, and the number may be another's
            end, other_end = _pair()
        except OSError:
            return None  # writing fails, as to any client that has gone
        os.dup2(end.fileno(), self._number, inheritable=False)
        end.close()
        return other_end


def _identity(number: int) -> tuple[int, int]:
    found = os.fstat(number)
    return found.st_dev, found.st_ino


def _pair() -> tuple[_socket.socket, _socket.socket]:
    # Made by the C module: no monkey patching turns these into something else.
    end, other_end = _socket.socketpair() if hasattr(_socket, "socketpair") else _pair_by_tcp()
    other_end.shutdown(_socket.SHUT_WR)
    return end, other_end


def _pair_by_tcp() -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets where the C module makes none (Windows), as the socket module makes them there."""
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
            raise ConnectionError("expected a connection from this process to itself, got another program's")
    except BaseException:
        dummy.close()
        raise
    finally:
        listener.close()
    return dummy, other_end


def _as_threads_wait(sock: _socket.socket) -> socket.socket:
    """The same socket as the socket module's, which under gevent and eventlet is a greenlet's."""
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())


def _moved_up(number: int) -> int:
    try:
        import fcntl

        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LOW_NUMBERS)
    except (ImportError, OSError):
        return os.dup(number)  # no such call here, or the limit on descriptors is lower


def _how(sock: Any) -> Callable[[Any, _socket.socket], socket.socket]:
    # gevent's monkey patching makes its TLS sockets pass for the standard library's: ask for them first.
    gevent_ssl = sys.modules.get("gevent.ssl")
    if gevent_ssl is not None and isinstance(sock, gevent_ssl.SSLSocket):
        if not issubclass(gevent_ssl.SSLSocket, ssl.SSLSocket):
            raise UnsupportedServerError(
                "expected gevent's monkey patching where its own server speaks TLS, got a TLS socket that only gevent "
                "can wait for: call gevent.monkey.patch_all() first, or end TLS in front of the server"
            )
        return _take_gevent_tls
    if isinstance(sock, ssl.SSLSocket):
        return _take_tls
    if hasattr(sock, "detach") and hasattr(sock, "proto"):
        return _take_plain
    raise UnsupportedServerError(
        f"expected a plain socket or one of the ssl module, got {type(sock).__module__}.{type(sock).__name__}, which "
        "cannot be taken over: use the server's built-in TLS, or end TLS in front of it"
    )


def _take_plain(sock: Any, dummy: _socket.socket) -> socket.socket:
    timeout = sock.gettimeout()
    taken = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    # The same object, so that every reference that the server holds (files made of it too) meets the dummy.
    family, kind, proto = dummy.family, dummy.type, dummy.proto
    type(sock).__init__(sock, family, kind, proto, dummy.detach())
    sock.settimeout(timeout)
    return taken


def _take_tls(sock: ssl.SSLSocket, dummy: _socket.socket) -> socket.socket:
    # OpenSSL's state refers to this very object and cannot move: the object keeps it, for us, and turns a face to the
    # server that knows the dummy only.
    sock.settimeout(0.0)
    taken = TakenTLSSocket.of(sock)
    sock.__class__ = ServersTLSSocket
    stand_in = _as_threads_wait(dummy)
    stand_in.setblocking(False)
    vars(sock)["stand_in"] = stand_in
    return taken


def _take_gevent_tls(sock: Any, dummy: _socket.socket) -> socket.socket:
    # Here OpenSSL's state refers to the C socket inside, which can move to another object of gevent's.
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
    sock._sslobj = None  # what follows is plain, and goes to the dummy
    sock.settimeout(timeout)
    return cast(socket.socket, taken)
