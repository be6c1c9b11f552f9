"""The WSGI servers: how each is recognized, how its client socket is taken, and what does not work on it.

WSGI specifies none of this, so every row relies on something that its server puts into the environ, or on an object
reachable from there. The tests run every server.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..connection.adopt import drain_file
from ..errors import UnsupportedServerError
from .hijack import Hijack, take_descriptor, take_socket

__all__ = ["WSGIServer", "hijack", "release_environ", "server_of"]

Environ: TypeAlias = Mapping[str, Any]

_INSTEAD: Final = "run the application with gunicorn, waitress, cheroot, gevent or werkzeug, or serve it by ASGI"


@dataclass(frozen=True, slots=True)
class WSGIServer:
    """One row of the table.

    Attributes:
        name: the server's name in errors.
        knows: whether an environ and its ``start_response`` come from this server.
        take: takes the socket; None if the server does not give access to it.
        reason: why not, and what to use instead.
        stopping: returns a callable that reports whether the server is stopping; None if that cannot be determined.
        client: returns the client's socket or descriptor, which still belongs to the server.
        target: returns the request target as the client sent it; None if the server does not keep it.
        handles_signals: whether it has signal handlers in C, which Python does not see and must not replace.
    """

    name: str
    knows: Callable[[Environ, Any], bool]
    take: Callable[[Environ, Any], Hijack] | None = None
    reason: str = ""
    stopping: Callable[[], Callable[[], bool] | None] = lambda: None
    client: Callable[[Environ, Any], Any] = lambda environ, start_response: -1
    target: Callable[[Environ, Any], str | None] = lambda environ, start_response: _target_in_environ(environ)
    handles_signals: bool = False

    def no_background(self, environ: Environ) -> str:
        """Why a connection cannot outlive its request on this server; empty if it can."""
        if self.take is _werkzeug and environ.get("wsgi.multiprocess"):
            return (
                "werkzeug with processes= ends each process with its request, so nothing can run in the background: "
                "use threaded=True, or stay in the handler with run() or a loop"
            )
        return ""


def server_of(environ: Environ, start_response: Any) -> WSGIServer:
    """The server that ``environ`` comes from."""
    for server in _SERVERS:
        if server.knows(environ, start_response):
            return server
    name = str(environ.get("SERVER_SOFTWARE") or "an unknown WSGI server")
    return WSGIServer(name, lambda environ, start_response: True, None, f"it is not a known server: {_INSTEAD}")


def hijack(server: WSGIServer, environ: Environ, start_response: Any) -> Hijack:
    """Take the client's socket from the server.

    Args:
        server: the server that ``environ`` comes from.
        environ: the request's environ.
        start_response: the server's own.

    Raises:
        UnsupportedServerError: the server does not give access to it; nothing has changed.
    """
    if server.take is None:
        raise UnsupportedServerError(f"the client socket of {server.name} cannot be taken over: {server.reason}")
    return server.take(environ, start_response)


# Environ entries that refer to the server's socket, parser or connection.
_SERVERS_OWN: Final = ("gunicorn.", "werkzeug.socket", "waitress.", "eventlet.input", "wsgi.input", "wsgi.early_hints")


def release_environ(environ: dict[str, Any]) -> None:
    """Remove the server's own objects from ``environ`` once the request is over.

    They would double the memory of an idle connection, and the server may have reused them.
    """
    # A refilled dict has the smallest size, and the interned keys are shared by all connections.
    kept = [(sys.intern(key), value) for key, value in environ.items() if not key.startswith(_SERVERS_OWN)]
    environ.clear()
    environ.update(kept)
    environ["wsgi.input"] = io.BytesIO()  # not shared: an application may close it


# --- where each server keeps the client's socket --------------------------------------------------


def _entry(key: str) -> Callable[[Environ, Any], Any]:
    return lambda environ, start_response: environ[key]


def _is_reader(stream: Any) -> bool:
    raw = getattr(stream, "raw", None)
    return isinstance(raw, socket.SocketIO) and hasattr(raw, "_sock")


# Attributes in which a stream that limits the body keeps the underlying stream: gevent, werkzeug and Paste keep the
# stream itself, Django's LimitedStream keeps its methods.
_BELOW: Final = ("rfile", "_stream", "file", "_read")


def _reader(environ: Environ) -> Any:
    """The connection's buffered reader, which may be wrapped to limit the body; None if there is none.

    It is recognized by its type, whatever the server.
    """
    stream: Any = environ.get("wsgi.input")
    for _ in _BELOW:  # a longer chain is a cycle
        if _is_reader(stream):
            return stream
        below = next((part for name in _BELOW if (part := getattr(stream, name, None)) is not None), None)
        stream = getattr(below, "__self__", below)
    return None


def _under_file(environ: Environ, start_response: Any) -> Any:
    return _reader(environ).raw._sock


def _of_channel(environ: Environ, start_response: Any) -> Any:
    return environ["waitress.client_disconnected"].__self__.socket


def _of_connection(environ: Environ, start_response: Any) -> Any:
    return start_response.__self__.req.conn.socket


def _of_eventlet(environ: Environ, start_response: Any) -> Any:
    return environ["eventlet.input"].get_socket()


def _of_uwsgi(environ: Environ, start_response: Any) -> Any:
    return importlib.import_module("uwsgi").connection_fd()


def _werkzeug(environ: Environ, start_response: Any) -> Hijack:
    sock = environ["werkzeug.socket"]
    return take_socket(sock, drain_file(environ["wsgi.input"], sock))


def _gunicorn(environ: Environ, start_response: Any) -> Hijack:
    sock = environ["gunicorn.socket"]
    unreader = environ["wsgi.input"].reader.unreader
    if hasattr(unreader, "take_buffered"):
        head = unreader.take_buffered()
    else:  # before gunicorn 24
        head = unreader.buf.getvalue()
        unreader.buf = type(unreader.buf)()
    if hasattr(sock, "fd"):
        return take_socket(sock.fd, head)  # eventlet's, around the real one
    return take_socket(sock, head)


def _file(environ: Environ, start_response: Any) -> Hijack:
    reader = _reader(environ)
    return take_socket(reader.raw._sock, drain_file(reader, reader.raw._sock))


def _waitress(environ: Environ, start_response: Any) -> Hijack:
    channel = environ["waitress.client_disconnected"].__self__
    # waitress has begun to parse the bytes after the head as the next request.
    following = channel.request
    head = b"" if following is None else bytes(following.header_plus)
    return take_descriptor(channel.socket.fileno(), head)


def _cheroot(environ: Environ, start_response: Any) -> Hijack:
    connection = start_response.__self__.req.conn
    return take_socket(connection.socket, drain_file(connection.rfile, connection.socket))


def _eventlet(environ: Environ, start_response: Any) -> Hijack:
    green = _of_eventlet(environ, start_response)
    # eventlet's TLS sockets subclass ssl.SSLSocket; its plain sockets wrap the real one.
    return take_socket(getattr(green, "fd", green), drain_file(environ["eventlet.input"].rfile, green))


def _uwsgi(environ: Environ, start_response: Any) -> Hijack:
    return take_descriptor(_of_uwsgi(environ, start_response), writes_late=True)


def _target_in_environ(environ: Environ) -> str | None:
    """The target under the keys that most servers use; PEP 3333 defines none."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return str(raw) if raw else None


def _target_of_eventlet(environ: Environ, start_response: Any) -> str | None:
    return environ.get("RAW_PATH_INFO")


def _target_of_handler(environ: Environ, start_response: Any) -> str | None:
    """The target from the request handler, for servers based on wsgiref and for gevent's pywsgi."""
    raw = _target_in_environ(environ)
    if raw is not None:
        return raw
    owner = getattr(start_response, "__self__", None)
    path = getattr(getattr(owner, "request_handler", owner), "path", None)
    return path if isinstance(path, str) else None


def _gunicorn_stopping() -> Callable[[], bool] | None:
    """Reports whether this process's worker is stopping; only the worker object itself records that."""
    base: Any = sys.modules.get("gunicorn.workers.base")
    if base is None:
        return None
    for found in gc.get_objects():
        # By its type: a proxy's __class__ may raise.
        if issubclass(type(found), base.Worker) and found.pid == os.getpid():
            worker = found
            return lambda: not worker.alive
    return None


# --- the table ---------------------------------------------------------------------------------------------


def _has(key: str) -> Callable[[Environ, Any], bool]:
    return lambda environ, start_response: key in environ


def _calls_itself(name: str) -> Callable[[Environ, Any], bool]:
    return lambda environ, start_response: str(environ.get("SERVER_SOFTWARE")).lower().startswith(name)


def _came_from(*packages: str) -> Callable[[Environ, Any], bool]:
    def knows(environ: Environ, start_response: Any) -> bool:
        modules = (type(environ.get("wsgi.input")).__module__, getattr(start_response, "__module__", None) or "")
        return any(module.partition(".")[0] in packages for module in modules)

    return knows


def _reads_a_socket(environ: Environ, start_response: Any) -> bool:
    return _reader(environ) is not None


def _is_cheroots(environ: Environ, start_response: Any) -> bool:
    owner = getattr(start_response, "__self__", None)
    return hasattr(getattr(owner, "req", None), "conn")


_SERVERS: Final = (
    WSGIServer("werkzeug", _has("werkzeug.socket"), _werkzeug, client=_entry("werkzeug.socket")),
    WSGIServer(
        "gunicorn",
        _has("gunicorn.socket"),
        _gunicorn,
        stopping=_gunicorn_stopping,
        client=_entry("gunicorn.socket"),
    ),
    WSGIServer("waitress", _has("waitress.client_disconnected"), _waitress, client=_of_channel),
    WSGIServer("cheroot", _is_cheroots, _cheroot, client=_of_connection),
    WSGIServer(
        "cheroot",
        _calls_itself("cheroot/"),
        None,
        "another middleware hides its start_response: make WatershedWSGI the outermost middleware",
    ),
    WSGIServer("eventlet", _has("eventlet.input"), _eventlet, client=_of_eventlet, target=_target_of_eventlet),
    WSGIServer("uWSGI", _has("uwsgi.version"), _uwsgi, client=_of_uwsgi, handles_signals=True),
    WSGIServer("mod_wsgi", _has("mod_wsgi.version"), None, f"Apache does not pass the connection on: {_INSTEAD}"),
    WSGIServer("bjoern", _calls_itself("bjoern"), None, f"it has no Python object for a connection: {_INSTEAD}"),
    WSGIServer(
        "hypercorn's WSGI bridge",
        _came_from("hypercorn"),
        None,
        "a WSGI application behind ASGI has no socket: serve WebSockets from an ASGI application beside it, or "
        + _INSTEAD,
    ),
    WSGIServer(
        "a WSGI bridge of an ASGI server",
        _came_from("a2wsgi", "uvicorn", "asgiref", "starlette"),
        None,
        "a WSGI application behind ASGI has no socket: serve WebSockets from an ASGI application beside it, or "
        + _INSTEAD,
    ),
    WSGIServer(
        "tornado's WSGIContainer",
        _came_from("tornado"),
        None,
        "it buffers the whole request and does not pass the connection on: " + _INSTEAD,
    ),
    # wsgiref, Django's runserver, gevent's pywsgi, and every other server that hands the connection's buffered reader
    # to the application.
    WSGIServer(
        "this WSGI server",
        _reads_a_socket,
        _file,
        stopping=_gunicorn_stopping,
        client=_under_file,
        target=_target_of_handler,
    ),
)
