"""Refused opening handshakes and disconnected clients as werkzeug exceptions.

Flask turns these into responses. Without them, any client could make it log a crash of the application with a
traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from .errors import ConnectionClosed, HandshakeError

__all__ = ["ClientLeft", "HandshakeRefused"]


class ClientLeft(ConnectionClosed, HTTPException):  # type: ignore[misc]  # two meanings of `code`
    """A :class:`~watershed_mw.ConnectionClosed` that may leave a Flask view without being logged as a crash.

    Its response is discarded, as the 101 has been sent; ``code`` is the close code.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        ConnectionClosed.__init__(self, code, reason)
        self.response = Response(status=204)

    def __str__(self) -> str:
        return ConnectionClosed.__str__(self)


class HandshakeRefused(HandshakeError, HTTPException):
    """A :class:`~watershed_mw.HandshakeError` that Flask's error handling turns into a response.

    Args:
        error: why the request was refused.
        headers: header fields of the response.
    """

    def __init__(self, error: HandshakeError, headers: Iterable[tuple[str, str]]) -> None:
        HandshakeError.__init__(self, str(error), status=error.status, headers=error.headers)
        self.code = error.status
        self.description = str(error)
        self.response = Response(error.body, error.status, list(headers))

    def __str__(self) -> str:
        return self.description or ""
