"""How each WSGI server of the matrix is started, and what it supports, as data.

Every server is a program of its own, with the application of ``wsgi_servers_app.py``. A test fails if a server does not
behave as the table says, in either direction.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from websockets.protocol import Protocol, Side

from tests.support import LIMIT
from tests.support.peers import Answer, Peer
from tests.support.programs import Program, free_port
from tests.support.waiting import eventually

__all__ = ["SERVERS", "Kind", "Running", "start", "start_gunicorn"]

_APP: Final = "tests.support.wsgi_servers_app"
_BIN: Final = Path(sys.executable).parent


@dataclass(frozen=True)
class Kind:
    """One row of the matrix.

    Attributes:
        name: its name in the tests.
        options: gunicorn's command line, if it is one of gunicorn's workers.
        single: whether it serves one request at a time, so that a blocking handler occupies it completely.
        background: whether a connection can outlive its request.
        early: whether the application gets bytes from the segment of the head.
        keeps_alive: whether a connection serves more than one request.
        logs: whether it logs requests.
        tls: whether it supports TLS.
        unix: whether it listens on a path instead of a port.
        tells_versions: whether its environ distinguishes HTTP/1.0 from HTTP/1.1.
        absolute: whether it accepts absolute-form targets.
    """

    name: str
    options: tuple[str, ...] | None = None
    single: bool = False
    background: bool = True
    early: bool = True
    keeps_alive: bool = True
    logs: bool = True
    tls: bool = True
    unix: bool = False
    tells_versions: bool = True
    absolute: bool = True

    def command(
        self, address: str, certificate: Path | None, options: dict[str, Any], factory: str = "create"
    ) -> list[str]:
        """The command line of a server on ``address``: a port, or a path."""
        if self.options is not None:
            return gunicorn(self.options, address, certificate, options, factory)
        if self.name.startswith("uwsgi"):
            way = "--http" if self.name == "uwsgi-router" else "--http-socket"
            more = ["--http-websockets"] if self.name == "uwsgi-router" else []
            return [
                *(str(_BIN / "pyuwsgi"), way, f"127.0.0.1:{address}", *more, "--module", f"{_APP}:create()"),
                *("--enable-threads", "--threads", "4", "--die-on-term", "--virtualenv", sys.prefix),
            ]
        tls = [] if certificate is None else ["--certificate", str(certificate)]
        return [sys.executable, "-m", _APP, self.name, address, "--options", json.dumps(options), *tls]


def gunicorn(
    words: tuple[str, ...], address: str, certificate: Path | None, options: dict[str, Any], factory: str
) -> list[str]:
    """A gunicorn command line that ends with ``words``."""
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    tls = [] if certificate is None else ["--certfile", str(certificate), "--keyfile", str(certificate)]
    where = f"unix:{address}" if "/" in address else f"127.0.0.1:{address}"
    return [
        *(str(_BIN / "gunicorn"), f"{_APP}:{factory}({given})", "--bind", where, "--access-logfile", "-"),
        # All gunicorns of one user would share the path of the control socket.
        *("--no-control-socket", "--graceful-timeout", "30", *tls, *words),
    ]


_GTHREAD: Final = ("-k", "gthread", "--threads", "4")

SERVERS: Final = {
    kind.name: kind
    for kind in (
        Kind("werkzeug", keeps_alive=False),
        Kind("werkzeug-single", single=True, keeps_alive=False),
        Kind("werkzeug-processes", background=False, keeps_alive=False),
        Kind("werkzeug-debugger", keeps_alive=False, tls=False),
        Kind("wsgiref", single=True, keeps_alive=False),
        Kind("django", tls=False),
        Kind("django-nothreading", single=True, keeps_alive=False, tls=False),
        Kind("gunicorn-sync", ("-k", "sync"), single=True, keeps_alive=False),
        Kind("gunicorn-gthread", _GTHREAD),
        Kind("gunicorn-preload", (*_GTHREAD, "--preload", "-w", "2"), tls=False),
        Kind("gunicorn-unix", _GTHREAD, tls=False, unix=True),
        Kind("gunicorn-gevent", ("-k", "gevent")),
        Kind("gunicorn-gevent_pywsgi", ("-k", "gevent_pywsgi")),
        Kind("pywsgi", single=True, tls=False),
        Kind("pywsgi-patched"),
        Kind("waitress", logs=False, tls=False),
        Kind("cheroot", logs=False, absolute=False),
        Kind("eventlet", tells_versions=False),
        Kind("uwsgi", early=False, keeps_alive=False, tls=False),
        # The router passes on data after a 101 only with this option.
        Kind("uwsgi-router", early=False, keeps_alive=False, tls=False),
    )
}


class UnixPeer(Peer):
    """A :class:`Peer` for a server that listens on a path."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(path)
        self._frames = Protocol(Side.CLIENT, max_size=None)
        self._pending = []
        self._rest = b""


@dataclass
class Running:
    """A running server.

    Attributes:
        kind: its row in the matrix.
        program: its process, or its master process.
        address: port, or path.
        client: the client's side of its TLS.
    """

    kind: Kind
    program: Program
    address: str
    client: ssl.SSLContext | None = None
    words: int = field(default=0)

    def peer(self, **options: Any) -> Peer:
        """Connect a client."""
        if "/" in self.address:
            return UnixPeer(self.address)
        return Peer(int(self.address), self.client, **options)

    def get(self, path: str = "/page") -> Answer:
        """Send one request, on a connection of its own."""
        with self.peer() as peer:
            peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return peer.answer()

    def word(self) -> str:
        """A word that identifies one connection in the application's output and in the access log."""
        self.words += 1
        return f"word{self.words:04}"

    def wait_until_it_serves(self) -> None:
        """Wait for the first answer."""
        eventually(self._listens, f"a server at {self.address}")
        assert self.get().status == 200, self.program.output

    def _listens(self) -> bool:
        """Whether one request is answered; without a :class:`Peer`, which leaves a socket behind on failure."""
        unix = "/" in self.address
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as bare, ExitStack() as stack:
            if bare.connect_ex(self.address if unix else ("127.0.0.1", int(self.address))) != 0:
                return False
            bare.settimeout(LIMIT)
            sock = bare
            if self.client is not None:
                sock = stack.enter_context(self.client.wrap_socket(bare, server_hostname="127.0.0.1"))
            sock.sendall(b"GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            while sock.recv(1024):
                pass
            return True


@contextmanager
def start(
    kind: Kind, tls: tuple[Path, ssl.SSLContext] | None = None, *, factory: str = "create", **options: Any
) -> Iterator[Running]:
    """Start a server of this kind; it may not be ready yet.

    Args:
        kind: its row in the matrix.
        tls: the server's certificate, and a client context that trusts it.
        factory: the function that creates the application; only gunicorn takes another one.
        options: options of the middleware.
    """
    certificate, client = tls or (None, None)
    with ExitStack() as stack:
        if kind.unix:
            # Not pytest's own folder: the path of a socket is limited to about 100 characters.
            address = f"{stack.enter_context(tempfile.TemporaryDirectory())}/s"
        else:
            address = str(free_port())
        program = stack.enter_context(Program(*kind.command(address, certificate, options, factory)))
        yield Running(kind, program, address, client)


@contextmanager
def start_gunicorn(
    *words: str, factory: str = "create", tls: tuple[Path, ssl.SSLContext] | None = None, **options: Any
) -> Iterator[Running]:
    """Start gunicorn with a custom command line, and wait until it serves.

    Args:
        words: the end of the command line.
        factory: the function that creates the application.
        tls: as for :func:`start`.
        options: options of the middleware.
    """
    with start(Kind("gunicorn", words), tls, factory=factory, **options) as running:
        running.wait_until_it_serves()
        yield running
