"""Taking a WSGI server's socket over for good, without the server noticing.

WSGI has no word for an upgrade. So the server keeps its own socket object, alive on a dummy: one
end of a socket pair that reads as ended and swallows what is written. Whatever the server still
does (write a 101 of its own, shut down, close, log) it does to the dummy.
"""

from __future__ import annotations

import _socket
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from .errors import UnsupportedServerError
from .transports import drain_file

__all__ = ["Takeover", "server_name", "take_over"]


class Takeover:
    """The socket that was taken.

    Attributes:
        sock: the client's socket, ours from now on.
        head: bytes that the server had read past the request head.
    """

    def __init__(self, sock: socket.socket, head: bytes, other_end: _socket.socket) -> None:
        self.sock = sock
        self.head = head
        self._other_end = other_end

    def close_dummy(self) -> None:
        """The server is done with its side: close the other end of the dummy."""
        self._other_end.close()


def server_name(environ: Mapping[str, Any]) -> str:
    """The WSGI server's name as it gives it, for error messages."""
    return str(environ.get("SERVER_SOFTWARE") or "an unknown WSGI server")


def take_over(environ: Mapping[str, Any]) -> Takeover:
    """Take the client's socket from the server that made ``environ``.

    Raises:
        UnsupportedServerError: the server does not give it, or not over TLS; nothing has changed.
    """
    sock = environ.get("werkzeug.socket")
    if sock is None:
        raise UnsupportedServerError(
            f"expected werkzeug's server, which lets its socket go; got {server_name(environ)}, from which this "
            "version cannot take it: run the application with werkzeug (app.run, flask run), or serve it by ASGI"
        )
    if isinstance(sock, ssl.SSLSocket):
        raise UnsupportedServerError(
            "expected a plain connection, got TLS, which this version cannot take over from werkzeug: end TLS in front "
            "of the server"
        )
    head = drain_file(environ["wsgi.input"], sock)
    return _swap(sock, head)


def _swap(sock: socket.socket, head: bytes) -> Takeover:
    timeout = sock.gettimeout()
    # Made by the C module: no monkey patching turns these into something else.
    dummy, other_end = _socket.socketpair()
    other_end.shutdown(_socket.SHUT_WR)
    taken = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    # The same object, so that every reference that the server holds (files made of it too) meets the dummy.
    type(sock).__init__(sock, socket.AF_UNIX, socket.SOCK_STREAM, 0, dummy.detach())
    sock.settimeout(timeout)
    return Takeover(taken, head, other_end)
