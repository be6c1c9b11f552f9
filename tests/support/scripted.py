"""Servers and proxies that do exactly what a test says, byte by byte.

All of them are real sockets on loopback. A server runs its script in a thread for each connection; an exception in a
script fails the test, unless the other end has left.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import LIMIT
from tests.support.wire_peer import CLOSE, WirePeer, header, response_head
from watershed_mw.core.states import Role

Script = Callable[["Visit"], None]


class Visit(WirePeer):
    """A client's connection to a server; leaving the script closes it.

    Attributes:
        number: how many connections came before this one.
        head: the request's head, once it has been read.
    """

    def __init__(self, sock: socket.socket, server: Server, number: int) -> None:
        super().__init__(sock, Role.SERVER)
        self.server = server
        self.number = number
        self.head = b""

    def request(self) -> Self:
        """Read the request's head."""
        self.head = self.read_head()
        self.server.heads.append(self.head)
        return self

    @property
    def target(self) -> str:
        """The target of the request."""
        return self.head.decode("latin-1").split()[1]

    def field(self, name: str) -> str | None:
        """A header field of the request."""
        return header(self.head, name)

    def switch(self, *fields: tuple[str, str], then: bytes = b"") -> Self:
        """Accept the upgrade, and send further bytes in the same segment."""
        self.request()
        self.write(response_head(self.field("sec-websocket-key") or "", *fields), then)
        return self

    def answer(self, status: str, *fields: tuple[str, str], body: bytes = b"") -> None:
        """Read the request, and respond with a status such as "403 Forbidden"."""
        if not self.head:
            self.request()
        length = ("Content-Length", str(len(body)))
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in (length, *fields))]
        self.write(("\r\n".join(lines) + "\r\n\r\n").encode(), body)

    def wait_until_gone(self) -> None:
        """Read until the other end has left."""
        with contextlib.suppress(OSError):
            while self.sock.recv(2**16):
                pass

    def echo(self) -> None:
        """Echo messages until a Close frame arrives, and answer that."""
        while (frame := self.read()).opcode != CLOSE:
            self.send(frame.opcode, frame.payload)
        self.write(self.frame(CLOSE, frame.payload))


def echoing(visit: Visit) -> None:
    visit.switch().echo()


class Server:
    """Runs ``script(visit)`` for each connection.

    Args:
        script: speaks with the client.
        tls: context, for TLS.
        host: address to listen on.
        unix: path to listen on instead.

    Attributes:
        heads: the requests' heads, in order.
    """

    def __init__(
        self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", unix: Path | None = None
    ) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self._tls = tls
        self._host = host
        self._failed: list[BaseException] = []
        if unix is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(unix))
            self._listener.listen()
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self.port = 0 if unix is not None else self._listener.getsockname()[1]
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, path: str = "/", *, scheme: str = "ws", user: str = "", host: str | None = None) -> str:
        """The server's URL; ``ws`` or ``http``, with an s if it uses TLS."""
        host = host or (f"[{self._host}]" if ":" in self._host else self._host)
        return f"{scheme}{'s' if self._tls else ''}://{user}{host}:{self.port}{path}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock, len(self._threads) - 1), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock.settimeout(LIMIT)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            self.script(Visit(sock, self, number))
        except (OSError, EOFError):
            pass  # the client has gone, as it may
        except BaseException as error:  # noqa: BLE001  # told at the end
            self._failed.append(error)
        finally:
            sock.close()

    @property
    def visits(self) -> int:
        """The number of connections so far."""
        return len(self._threads) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._threads[0].join(LIMIT)
        for sock in self._socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(LIMIT)
            assert not thread.is_alive()
        if self._failed and error is None:
            raise self._failed[0]


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[int, Any]]:
    """A family and an address that neither accepts nor refuses connections, because its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield socket.AF_INET, listener.getsockname()


# --- proxies ------------------------------------------------------------------------------------------------


def pump(one: socket.socket, other: socket.socket) -> None:
    """Relay bytes in both directions until either end closes."""
    while True:
        ready = [sock for sock in (one, other) if isinstance(sock, ssl.SSLSocket) and sock.pending()]
        for sock in ready or select.select([one, other], [], [], LIMIT)[0]:
            data = sock.recv(2**16)
            if not data:
                return
            (other if sock is one else one).sendall(data)


def http_proxy(user: str = "") -> Script:
    """An HTTP proxy with CONNECT, open only to ``user`` ("name:password") if given."""
    expected = "Basic " + base64.b64encode(user.encode()).decode()

    def script(visit: Visit) -> None:
        visit.request()
        if not visit.head.startswith(b"CONNECT "):
            visit.answer("501 Not Implemented")
        elif user and visit.field("proxy-authorization") != expected:
            visit.answer("407 Proxy Authentication Required", ("Proxy-Authenticate", 'Basic realm="here"'))
        else:
            host, _, port = visit.target.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), LIMIT) as upstream:
                visit.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                pump(visit.sock, upstream)

    return script


def socks_proxy(user: str = "") -> Script:
    """A SOCKS5 proxy (RFC 1928), open only to ``user`` if given (RFC 1929)."""

    def script(visit: Visit) -> None:
        sock = visit.sock
        _, count = sock.recv(2)
        method = 2 if user else 0
        if method not in sock.recv(count):
            sock.sendall(b"\x05\xff")
            return
        sock.sendall(bytes([5, method]))
        if user:
            _, size = sock.recv(2)
            name = sock.recv(size)
            password = sock.recv(sock.recv(1)[0])
            right = name + b":" + password == user.encode()
            sock.sendall(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return
        _, _, _, kind = sock.recv(4)
        host = socket.inet_ntoa(sock.recv(4)) if kind == 1 else sock.recv(sock.recv(1)[0]).decode()
        port = int.from_bytes(sock.recv(2))
        visit.server.heads.append(f"{host}:{port}".encode())
        with socket.create_connection((host, port), LIMIT) as upstream:
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            pump(sock, upstream)

    return script


# --- clients ------------------------------------------------------------------------------------------------
