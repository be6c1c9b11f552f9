"""Responses of a WSGI application: rejections, its own body, and errors in the form that its framework handles."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from ..core.handshake.headers import check_outgoing
from ..errors import ConnectionClosed, HandshakeError
from ..http.write import check_status, status_line

__all__ = [
    "Environ",
    "Fields",
    "Rejection",
    "StartResponse",
    "WSGIApp",
    "as_answer",
    "close_body",
    "closed_class",
    "started_body",
]


Environ: TypeAlias = dict[str, Any]


StartResponse: TypeAlias = Callable[..., Any]


WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]


Fields: TypeAlias = Iterable[tuple[str, str]]


# werkzeug, and so Flask, puts its request into the environ; Django is detected by its imported module.
_DJANGO = "django.core.handlers.wsgi"


def close_body(body: Iterable[bytes]) -> None:
    """Call the body's ``close()``, if it has one (PEP 3333)."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


class StartedBody:
    """A response body whose first item has already been produced."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._items = itertools.chain(first, rest)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        """Close the application's body."""
        close_body(self._body)


def started_body(body: Iterable[bytes]) -> Iterable[bytes]:
    """``body`` with its first item already produced: a generator application runs no code before that."""
    try:
        rest = iter(body)
        first = list(itertools.islice(rest, 1))
    except BaseException:
        close_body(body)  # PEP 3333: however the iteration ends
        raise
    return StartedBody(first, rest, body)


class Rejection:
    """A WSGI application that sends one fixed response; a Flask view may return it.

    Args:
        status: HTTP status.
        body: body of the response.
        headers: header fields; Content-Length is added.

    Raises:
        ValueError: the status or a header field is invalid.
    """

    def __init__(self, status: int, body: bytes = b"", headers: Fields = ()) -> None:
        check_status(status)
        self.status = status
        self.body = body
        self.headers = list(headers)
        check_outgoing(self.headers)

    @classmethod
    def of(cls, error: HandshakeError) -> Rejection:
        """The response for ``error``."""
        # An application must not send hop-by-hop fields (PEP 3333).
        fields = [pair for pair in error.headers if pair[0].lower() not in ("connection", "upgrade")]
        # An error from a client connection that the application opened may carry an invalid 101.
        status = error.status if error.status >= 200 else 502
        return cls(status, error.body, [*fields, ("Content-Type", "text/plain; charset=utf-8")])

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Send the response."""
        fields = [pair for pair in self.headers if pair[0].lower() != "content-length"]
        if self.status in (204, 304):  # no body, and no Content-Length (RFC 9110 section 8.6)
            start_response(status_line(self.status), fields)
            return []
        start_response(status_line(self.status), [*fields, ("Content-Length", str(len(self.body)))])
        return [self.body]


def as_answer(error: HandshakeError, environ: Environ) -> HandshakeError:
    """``error`` as an exception that the application's framework turns into a response instead of logging a crash."""
    if "werkzeug.request" in environ:
        from ..werkzeug import HandshakeRefused

        return HandshakeRefused(error, Rejection.of(error).headers)
    if _DJANGO in sys.modules:
        from ..django import refused

        return refused(error)
    return error


def closed_class(environ: Environ) -> type[ConnectionClosed]:
    """The exception for ``send`` and ``receive`` after the close: frameworks must not log a disconnect as a crash."""
    if "werkzeug.request" in environ:
        from ..werkzeug import ClientLeft

        return ClientLeft
    if _DJANGO in sys.modules:
        from .. import django

        return django.ClientLeft
    return ConnectionClosed
