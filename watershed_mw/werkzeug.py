"""A refused opening handshake as werkzeug's kind of exception, which Flask turns into a response.

Without it Flask would log every refusal as a crash of the application, at any stranger's pleasure.
"""

from __future__ import annotations

from collections.abc import Iterable

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from .errors import HandshakeError

__all__ = ["HandshakeRefused"]


class HandshakeRefused(HandshakeError, HTTPException):
    """A :class:`~watershed_mw.HandshakeError` that Flask's error handling answers.

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
