"""The exceptions of this package.

::

    WatershedError
    ├── HandshakeError                the opening handshake was refused (HTTP status, headers, body)
    ├── ProtocolError                 RFC 6455 or RFC 7692 was violated (close code)
    │   ├── RemoteProtocolError       ... by the peer
    │   └── LocalProtocolError        ... by this program: a bug (also a ValueError)
    ├── ConnectionClosed              the connection is closed (also a ConnectionError, hence an OSError)
    └── UnsupportedServerError        the server does not support what was asked for (also a RuntimeError)

A local failure is never reported as the peer's, nor vice versa.
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
        message: what was expected, what was received, and what to do; also the response body.
        status: HTTP status of the response, sent or received, such as 400.
        headers: header fields of the response, such as ``Sec-WebSocket-Version``.
        body: response body; the message by default.
        response: the response object of the HTTP client.

    Attributes:
        status: int.
        headers: tuple of (name, value) string pairs.
        body: on a server, the UTF-8 encoded message, to be sent as ``text/plain``; on a client, the first 64 KiB of the
            response body.
        response: the ``httpx.Response`` on a client that uses httpx; else None.
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
    """The protocol was violated; ``close_code`` is the code to close with (section 7.4).

    Args:
        message: what was expected and what was received.
        close_code: close code for the violation; 1002 (protocol error) by default.
    """

    def __init__(self, message: str, *, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class RemoteProtocolError(ProtocolError):
    """The peer violated the protocol or exceeded a limit; the connection is being failed."""


class LocalProtocolError(ProtocolError, ValueError):
    """This program attempted something that the protocol forbids; nothing was sent."""


class ConnectionClosed(WatershedError, ConnectionError):
    """The connection is closed or closing: messages can no longer be sent or received.

    It is also a :class:`ConnectionError`, so that ``except OSError`` catches it, as ASGI requires.

    Args:
        code: close code of section 7.4; 1005 if the peer sent none, 1006 if it disconnected without a Close.
        reason: close reason, at most 123 bytes in UTF-8; often empty.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the WebSocket connection has ended with code {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[ConnectionClosed], tuple[int, str]]:
        return type(self), (self.code, self.reason)


class UnsupportedServerError(WatershedError, RuntimeError):
    """The server does not support what was asked for; the message names alternatives."""
