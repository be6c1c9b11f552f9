"""Shared by the proxy's tests: the servers that it runs under, and the head that its upstream gets.

Upstreams are the scripted servers of the client's tests: real sockets that send what a test says, byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.support.peers import Peer, close, head
from tests.support.portable_servers import Hypercorn
from tests.support.scripted import Server, Visit
from tests.support.threaded_servers import Uvicorn, Werkzeug


class Front:
    """A server with a proxy in it, which may be exchanged between requests.

    Attributes:
        port: where it listens.
        raw: whether its proxy relays bytes.
        asgi: whether it speaks ASGI.
        codes: whether it tells of a client's close code.
    """

    port: int
    raw: bool
    asgi = True
    codes = True

    def serve(self, app: Any) -> None:
        """Serve this application from now on."""
        raise NotImplementedError

    def mounted(self, app: Any, at: str) -> Any:
        """``app`` as the framework mounts it."""
        return Starlette(routes=[Mount(at, app=app)])


class ASGIFront(Front):
    """One of the ASGI servers."""

    def __init__(self, server: Any, *, raw: bool, codes: bool = True) -> None:
        self._server = server
        self.port = server.port
        self.raw = raw
        self.codes = codes

    def serve(self, app: Any) -> None:
        self._server.run(app)


class WSGIFront(Front):
    """Werkzeug's threaded server."""

    asgi = False
    raw = True

    def __init__(self) -> None:
        self._app: Any = None
        self.werkzeug = Werkzeug(self._dispatch)
        self.port = self.werkzeug.port

    def _dispatch(self, environ: Any, start_response: Any) -> Any:
        return self._app(environ, start_response)

    def serve(self, app: Any) -> None:
        self._app = app

    def mounted(self, app: Any, at: str) -> Any:
        return DispatcherMiddleware(NotFound(), {at: app})


Entered = Callable[[AbstractContextManager[Any]], Any]


def _wsgi(enter: Entered) -> Front:
    front = WSGIFront()
    enter(front.werkzeug)
    return front


FRONTS: dict[str, Callable[[Entered], Front]] = {
    "raw-h11": lambda enter: ASGIFront(enter(Uvicorn(loop="asyncio", http="h11")), raw=True),
    "raw-httptools": lambda enter: ASGIFront(enter(Uvicorn(loop="uvloop", http="httptools")), raw=True),
    "wsgi": _wsgi,
    "uvicorn-own": lambda enter: ASGIFront(enter(Uvicorn(ws="websockets-sansio")), raw=False),
    "hypercorn": lambda enter: ASGIFront(enter(Hypercorn("asyncio")), raw=False, codes=False),
}


def saying(data: bytes) -> Callable[[Visit], None]:
    """An upstream that reads the request, sends these bytes, and waits for the proxy to leave."""

    def script(visit: Visit) -> None:
        visit.request().write(data)
        visit.wait_until_gone()

    return script


def refusing(status: str, *fields: tuple[str, str], body: bytes = b"") -> Callable[[Visit], None]:
    """An upstream that sends this response, and waits for the proxy to leave."""

    def script(visit: Visit) -> None:
        visit.answer(status, *fields, body=body)
        visit.wait_until_gone()

    return script


def _head(server: Server) -> list[str]:
    return server.heads[-1].decode("latin-1").split("\r\n")


def target_of(server: Server) -> str:
    """The target of the last request."""
    method, target, version = _head(server)[0].split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    return target


def fields_of(server: Server) -> list[tuple[str, str]]:
    """The header fields of the last request, with lower-case names."""
    pairs = (line.partition(":") for line in _head(server)[1:-2])
    return [(name.lower(), value.strip()) for name, _, value in pairs]


Serve = Callable[..., Server]


def ask(front: Front, *, data: bytes = b"", path: str = "/", **changes: Any) -> Any:
    """The response to an upgrade request, after which the stream must end."""
    with Peer(front.port) as peer:
        peer.send(data or head(path, **changes))
        return peer.refusal()


def shared(front: Front) -> dict[str, str | list[str]]:
    return {
        "Host": f"shop.example:{front.port}",
        "Origin": f"http://shop.example:{front.port}",
        "Cookie": "session=1",
        "Authorization": "Bearer x",
        "Proxy-Authorization": "Basic eDp5",
        "Proxy-Connection": "keep-alive",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "X-Hop": "1",
        "Connection": "Upgrade, X-Hop, Sec-WebSocket-Key",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=203.0.113.9",
    }


def conversed(front: Front, upstream: Server, path: str = "/", **changes: Any) -> dict[str, str]:
    """The request that the upstream got, after a complete conversation."""
    with Peer(front.port) as peer:
        peer.open(path, **changes)
        peer.send(close())
        assert peer.close() == (1000, "")
    fields = fields_of(upstream)
    assert len(dict(fields)) == len(fields), fields
    return dict(fields)
