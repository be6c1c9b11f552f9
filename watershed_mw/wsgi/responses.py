"""What a WSGI application answers with: a rejection, its own body, or an error as its framework takes it."""

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


# Flask and whatever else is made of werkzeug leaves its mark in the environ; Django is known by being there.
_DJANGO = "django.core.handlers.wsgi"


def close_body(body: Iterable[bytes]) -> None:
    """Close a body that can be closed (PEP 3333)."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


class StartedBody:
    """The body of an application that has produced its first item already."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._items = itertools.chain(first, rest)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        """As the application's own body."""
        close_body(self._body)


def started_body(body: Iterable[bytes]) -> Iterable[bytes]:
    """``body`` with its first item asked for, as an application that is a generator does nothing before."""
    try:
        rest = iter(body)
        first = list(itertools.islice(rest, 1))
    except BaseException:
        close_body(body)  # PEP 3333: however the iteration ends
        raise
    return StartedBody(first, rest, body)


class Rejection:
    """A WSGI application that answers with one plain response; Flask takes it as a view's result.

    Args:
        status: HTTP status.
        body: body of the response.
        headers: header fields; Content-Length is added.

    Raises:
        ValueError: there is no such status, or a header field cannot be written.
    """

    def __init__(self, status: int, body: bytes = b"", headers: Fields = ()) -> None:
        check_status(status)
        self.status = status
        self.body = body
        self.headers = list(headers)
        check_outgoing(self.headers)

    @classmethod
    def of(cls, error: HandshakeError) -> Rejection:
        """The response that tells of ``error``."""
        # Hop-by-hop fields are the server's alone to send (PEP 3333).
        fields = [pair for pair in error.headers if pair[0].lower() not in ("connection", "upgrade")]
        # An error of another connection, that the application opens, may hold the 101 that was wrong there.
        status = error.status if error.status >= 200 else 502
        return cls(status, error.body, [*fields, ("Content-Type", "text/plain; charset=utf-8")])

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer."""
        fields = [pair for pair in self.headers if pair[0].lower() != "content-length"]
        if self.status in (204, 304):  # no body, and no length of one (RFC 9110 section 8.6)
            start_response(status_line(self.status), fields)
            return []
        start_response(status_line(self.status), [*fields, ("Content-Length", str(len(self.body)))])
        return [self.body]


def as_answer(error: HandshakeError, environ: Environ) -> HandshakeError:
    """``error`` as the application's framework understands it: as an answer, not as a crash to log."""
    if "werkzeug.request" in environ:
        from ..werkzeug import HandshakeRefused

        return HandshakeRefused(error, Rejection.of(error).headers)
    if _DJANGO in sys.modules:
        from ..django import refused

        return refused(error)
    return error


def closed_class(environ: Environ) -> type[ConnectionClosed]:
    """What ``send`` and ``receive`` raise after the end: to a framework, too, a client that leaves is no crash."""
    if "werkzeug.request" in environ:
        from ..werkzeug import ClientLeft

        return ClientLeft
    if _DJANGO in sys.modules:
        from .. import django

        return django.ClientLeft
    return ConnectionClosed
