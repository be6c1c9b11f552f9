"""Which ASGI server this is, and what it leaves out: scopes do not say, and errors should.

What is listed here was found by running each server (tests/doors/test_servers.py). A server that nobody has
listed is taken at its word.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ASGIServer", "server_of"]


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


# By the name of its package. gunicorn may host another's worker: it comes last.
_SERVERS: Final = {
    "uvicorn": ASGIServer("uvicorn with a WebSocket class of its own"),
    "hypercorn": ASGIServer("hypercorn"),
    "granian": ASGIServer("granian", accept_headers=False),
    "daphne": ASGIServer("daphne", accept_headers=False, empty_messages=False, all_codes=False),
    "gunicorn": ASGIServer("gunicorn's asgi worker"),
}


def server_of(scope: Mapping[str, Any], *channels: Any) -> ASGIServer:
    """The server, by where its ``receive`` and ``send`` come from, or else by what is loaded."""
    packages = [*map(_package_of, channels), *(name for name in _SERVERS if name in sys.modules)]
    for package in packages:
        if package in _SERVERS:
            return _SERVERS[package]
    return ASGIServer("this ASGI server", accept_headers=_version(scope) >= (2, 1))


def _package_of(channel: Any) -> str:
    owner = getattr(channel, "__self__", None) or getattr(channel, "func", None) or channel
    module = getattr(owner, "__module__", None) or type(owner).__module__
    return str(module).partition(".")[0]


def _version(scope: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of ASGI's WebSocket part that the server follows; 2.0 where it names none."""
    text = str((scope.get("asgi") or {}).get("spec_version", "2.0"))
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
