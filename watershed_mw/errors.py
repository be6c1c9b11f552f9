"""Every exception that this package raises on purpose.

::

    WatershedError
    ├── HandshakeError                the opening handshake was refused (HTTP status, headers, body)
    ├── ProtocolError                 the rules of RFC 6455 or RFC 7692 were broken (close code)
    │   ├── RemoteProtocolError       ... by the peer
    │   └── LocalProtocolError        ... by this program: a bug to mend (also a ValueError)
    ├── ConnectionClosed              the connection has ended (also a ConnectionError, hence an OSError)
    └── UnsupportedServerError        the server in front cannot do what was asked (also a RuntimeError)

A local failure is never reported as the peer's, nor the other way round. Nothing in this module
knows of sockets or of HTTP text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "ConnectionClosed",
    "HandshakeError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "UnsupportedServerError",
    "WatershedError",
]


class WatershedError(Exception):
    """Base class of every exception of this package."""


class HandshakeError(WatershedError):
    """The opening handshake failed (RFC 6455 section 4).

    Args:
        message: what was expected, what came, and what to do; it is also the body of the answer.
        status: HTTP status with which a server answers, or that a server answered, e.g. 400.
        headers: header fields that belong into that answer, e.g. ``Sec-WebSocket-Version``, or that came with it.
        body: body of the answer; the message unless given.
        response: the answer as the HTTP client has it.

    Attributes:
        status: int.
        headers: tuple of (name, value) string pairs.
        body: on a server the UTF-8 encoded message, ready to be sent as ``text/plain``; on a client what the server
            sent, at most 64 KiB.
        response: on a client that went through httpx the ``httpx.Response``; else None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.body = (message + "\n").encode("utf-8", "replace") if body is None else body
        self.response = response


class ProtocolError(WatershedError):
    """A rule of the protocol was broken; ``close_code`` is the code that tells the peer (section 7.4).

    Args:
        message: what was expected and what came.
        close_code: close code that fits the fault; 1002 (protocol error) unless given.
    """

    def __init__(self, message: str, *, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol, or went past a limit of ours; the connection is being failed."""


class LocalProtocolError(ProtocolError, ValueError):
    """This program asked for something that the protocol forbids; nothing was sent."""


class ConnectionClosed(WatershedError, ConnectionError):
    """The connection has ended, or is ending: no message can be sent or received any more.

    It is also a :class:`ConnectionError`, so that ``except OSError`` catches it, as ASGI asks for.

    Args:
        code: close code of section 7.4; 1005 when the peer gave none, 1006 when it vanished.
        reason: close reason, at most 123 bytes in UTF-8; often empty.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the WebSocket connection has ended with code {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[ConnectionClosed], tuple[int, str]]:
        return type(self), (self.code, self.reason)


class UnsupportedServerError(WatershedError, RuntimeError):
    """The server that carries the request cannot do what was asked; the message names the way out."""
