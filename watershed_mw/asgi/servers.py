"""The ASGI servers and their limitations, which scopes do not state and errors should name.

The tests run each server that is listed (tests/doors/servers). Other servers are assumed to follow the specification.
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
    """A server that does not expose frames.

    Attributes:
        name: the server's name in errors.
        accept_headers: whether it sends the header fields of ``websocket.accept``.
        empty_messages: whether it sends empty messages.
        all_codes: whether it sends every close code, or only 1000 and 3000 to 4999.
    """

    name: str
    accept_headers: bool = True
    empty_messages: bool = True
    all_codes: bool = True

    def sends(self, code: int) -> bool:
        """Whether it sends this close code."""
        return self.all_codes or code == 1000 or 3000 <= code < 5000

    def unsupported(self, what: str) -> UnsupportedServerError:
        """The error for an operation that needs frames, such as "to send a PING"."""
        return UnsupportedServerError(
            f"expected a server that exposes its frames (needed {what}), got {self.name}, which offers only ASGI "
            "messages: run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol, or do without (docs/servers.md)"
        )


# By package name. gunicorn is last, as it may host another server's worker.
_SERVERS: Final = {
    "uvicorn": ASGIServer("uvicorn with another WebSocket class"),
    "hypercorn": ASGIServer("hypercorn"),
    "granian": ASGIServer("granian", accept_headers=False),
    "daphne": ASGIServer("daphne", accept_headers=False, empty_messages=False, all_codes=False),
    "gunicorn": ASGIServer("gunicorn's asgi worker"),
}


TEST_CLIENT: Final = ASGIServer("a test client")
"""Makes scopes without an HTTP request: Starlette's TestClient, Channels' communicators and others."""

# The Sec-WebSocket-Key of Starlette's TestClient. It is not a valid key, so real clients do not send it.
_TEST_KEY: Final = (b"sec-websocket-key", b"testserver==")
_HANDSHAKE: Final = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": base64.b64encode(b"of a test client").decode(),
}


def server_of(scope: Mapping[str, Any], *channels: Any) -> ASGIServer:
    """Identify the server by the package of its ``receive`` and ``send``, by the request, or by imported modules."""
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
    # In HTTP/1.1 no server makes a WebSocket scope from a request without Upgrade. Later versions have no such field.
    if not str(scope.get("http_version", "1.1")).startswith("1"):
        return False
    fields = [(name.lower(), value) for name, value in scope["headers"]]
    return _TEST_KEY in fields or all(name != b"upgrade" for name, _ in fields)


def with_handshake(request: Request) -> Request:
    """A test client's request with a valid handshake, whose fields a test client omits or makes up.

    ASGI does not require these fields, as servers check the opening handshake.
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
    """The version of ASGI's WebSocket specification that the server implements; by default 2.0."""
    text = str((scope.get("asgi") or {}).get("spec_version", "2.0"))
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
