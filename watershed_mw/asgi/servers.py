"""Which ASGI server this is, and what it leaves out: scopes do not say, and errors should.

The facts come from running each server (tests/doors/servers). A server that is not listed is taken at its word.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Request
from ..errors import UnsupportedServerError

__all__ = ["TEST_CLIENT", "ASGIServer", "server_of", "with_handshake"]


@dataclass(frozen=True, slots=True)
class ASGIServer:
    """A server that keeps the frames to itself.

    Attributes:
        name: what to call it in an error.
        accept_headers: whether it sends the header fields of ``websocket.accept``.
        empty_messages: whether it sends a message without content.
        all_codes: whether it sends every close code; else 1000 and 3000 to 4999 alone.
    """

    name: str
    accept_headers: bool = True
    empty_messages: bool = True
    all_codes: bool = True

    def sends(self, code: int) -> bool:
        """Whether it sends this close code."""
        return self.all_codes or code == 1000 or 3000 <= code < 5000

    def unsupported(self, what: str) -> UnsupportedServerError:
        """The error for something that needs frames."""
        return UnsupportedServerError(
            f"expected a server that gives its frames away {what}, got {self.name}, which has only ASGI messages: "
            "run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol, or do without (docs/servers.md)"
        )


# By the name of its package. gunicorn may host another's worker: it comes last.
_SERVERS: Final = {
    "uvicorn": ASGIServer("uvicorn with a WebSocket class of its own"),
    "hypercorn": ASGIServer("hypercorn"),
    "granian": ASGIServer("granian", accept_headers=False),
    "daphne": ASGIServer("daphne", accept_headers=False, empty_messages=False, all_codes=False),
    "gunicorn": ASGIServer("gunicorn's asgi worker"),
}


TEST_CLIENT: Final = ASGIServer("a test client")
"""What makes scopes without a request behind them: Starlette's TestClient, Channels' communicators and others."""

# What Starlette's TestClient puts in place of a key. It is none, so that no client sends it.
_TEST_KEY: Final = (b"sec-websocket-key", b"testserver==")
_HANDSHAKE: Final = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": base64.b64encode(b"of a test client").decode(),
}


def server_of(scope: Mapping[str, Any], *channels: Any) -> ASGIServer:
    """The server, by where its ``receive`` and ``send`` come from, or else by the request or by what is loaded."""
    for package in map(_package_of, channels):
        if package in _SERVERS:
            return _SERVERS[package]
    if _is_of_test_client(scope):
        return TEST_CLIENT
    for package, server in _SERVERS.items():
        if package in sys.modules:
            return server
    return ASGIServer("this ASGI server", accept_headers=_version(scope) >= (2, 1))


def _is_of_test_client(scope: Mapping[str, Any]) -> bool:
    # Over HTTP/1.1 no server makes a WebSocket scope of a request without Upgrade. Later versions have no such field.
    if not str(scope.get("http_version", "1.1")).startswith("1"):
        return False
    fields = [(name.lower(), value) for name, value in scope["headers"]]
    return _TEST_KEY in fields or all(name != b"upgrade" for name, _ in fields)


def with_handshake(request: Request) -> Request:
    """A test client's request with all that a server has checked, and a test client leaves out or makes up.

    ASGI itself asks for none of it: the opening handshake is the server's.
    """
    fields = [pair for pair in request.headers if pair[0] not in _HANDSHAKE]
    if "host" not in request.headers:
        fields.append(("host", "testserver"))
    return replace(request, headers=Headers([*fields, *_HANDSHAKE.items()]))


def _package_of(channel: Any) -> str:
    owner = getattr(channel, "__self__", None) or getattr(channel, "func", None) or channel
    module = getattr(owner, "__module__", None) or type(owner).__module__
    return str(module).partition(".")[0]


def _version(scope: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of ASGI's WebSocket part that the server follows; 2.0 where it names none."""
    text = str((scope.get("asgi") or {}).get("spec_version", "2.0"))
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
