"""The destination of a request: the upstream, which the application may choose per request, and the target there."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote

import httpx

from ..client.handshake import as_http_url
from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Request
from ..errors import HandshakeError
from .paths import split_prefix

__all__ = ["Choice", "Destination", "ProxyRequest", "Upstream", "UpstreamLike", "destination", "parse_upstream"]

Fields: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]]"


@dataclass(frozen=True, slots=True)
class Upstream:
    """The upstream for one request.

    Args:
        url: ``ws://``, ``wss://`` (or ``http://``, ``https://``) URL, or ``unix:/path/of/socket``. A URL without a path
            gets the request's path appended; the path of a URL replaces the proxy's mount prefix, or the whole path if
            the proxy is not mounted.
        headers: further header fields for this upstream, which replace those of the same name.

    Raises:
        ValueError: the URL is invalid.
    """

    url: str
    headers: Fields = ()

    def __post_init__(self) -> None:
        parse_upstream(self.url)


UpstreamLike: TypeAlias = "str | Upstream"

Choice: TypeAlias = "Callable[[ProxyRequest], Awaitable[UpstreamLike | None] | UpstreamLike | None]"
"""Returns the upstream of a request, or refuses: with None (404), or by raising a ``HandshakeError``."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """An upgrade request to forward.

    Attributes:
        headers: header fields as the client sent them.
        path: path, percent-encoded, including the proxy's mount prefix.
        prefix: the proxy's mount prefix, percent-encoded (``root_path``, ``SCRIPT_NAME``); empty if it is not mounted.
        query: query string without the question mark.
        secure: whether the client uses TLS, as far as the server knows.
        client: the client's address; empty when unknown.
        scope: the ASGI scope, where frameworks keep the session and the user; None under WSGI.
        environ: the WSGI environ; None under ASGI.
    """

    headers: Headers
    path: str
    prefix: str
    query: str
    secure: bool
    client: str
    scope: Mapping[str, Any] | None = None
    environ: Mapping[str, Any] | None = None

    @property
    def upgrade(self) -> Request:
        """The request as the opening handshake describes it."""
        return Request(self.headers, "GET", self.path + (f"?{self.query}" if self.query else ""))


@dataclass(frozen=True, slots=True)
class Destination:
    """The upstream of one request, and the request target there.

    Attributes:
        url: ``http`` or ``https`` URL of the upstream.
        target: path and query, percent-encoded.
        prefix: the prefix that was stripped from the path, percent-encoded; empty for none.
        unix: path of the Unix socket; None for TCP.
        headers: further header fields.
    """

    url: httpx.URL
    target: str
    prefix: str
    unix: str | None
    headers: httpx.Headers

    @property
    def shown(self) -> str:
        """The text for logs, without the query."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        scheme = "wss" if self.url.scheme == "https" else "ws"
        return f"{scheme}://{self.url.netloc.decode('ascii')}{self.target.partition('?')[0]}"


@lru_cache(maxsize=256)
def parse_upstream(url: str) -> tuple[httpx.URL, str | None]:
    """The URL of an upstream, and the path of its Unix socket, None for TCP.

    Raises:
        ValueError: the URL is invalid.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"expected the absolute path of a Unix socket, such as unix:/run/app.sock, got {url!r}")
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"expected a ws:// or wss:// URL on a platform without Unix sockets, got {url!r}")
        return httpx.URL("http://localhost"), path
    parsed = as_http_url(url)
    if parsed.userinfo:
        raise ValueError("expected a URL without user and password: give headers={'Authorization': ...} instead")
    return parsed, None


def destination(upstream: UpstreamLike | None, request: ProxyRequest, strip_prefix: bool | str) -> Destination:
    """The destination of a request.

    Args:
        upstream: the application's choice.
        request: the request.
        strip_prefix: True to strip the proxy's mount prefix from the path, False to keep it, or a prefix to strip.

    Raises:
        HandshakeError: no upstream (404), or a path that could escape from its prefix (400).
        ValueError, TypeError: the application's choice is not an upstream.
    """
    if upstream is None:
        raise HandshakeError("expected an upstream for this request, got none", status=404)
    if isinstance(upstream, str):
        upstream = Upstream(upstream)
    if not isinstance(upstream, Upstream):
        raise TypeError(f"expected a URL or Upstream(...) for this request, got {type(upstream).__name__}")
    url, unix = parse_upstream(upstream.url)
    _check_path(request.path)
    path, stripped = _path_there(url, request, strip_prefix)
    own_query = url.query.decode("ascii")
    query = "&".join(part for part in (own_query, request.query) if part)
    target = path + (f"?{query}" if query else "")
    return Destination(url, target, stripped, unix, httpx.Headers(upstream.headers))


def _check_path(path: str) -> None:
    """Refuse a path that the upstream could resolve to a path outside its prefix.

    Browsers resolve dot segments themselves, including those with ``%2e`` and backslashes.
    """
    if not path.startswith("/"):
        raise HandshakeError("expected a path as the request target, got another form", status=400)
    segments = unquote(path).replace("\\", "/").split("/")
    # Some servers remove ";..." before they resolve dot segments.
    if any(segment.partition(";")[0] in (".", "..") for segment in segments):
        raise HandshakeError("expected a path without dot segments, got one with . or ..", status=400)


def _path_there(url: httpx.URL, request: ProxyRequest, strip_prefix: bool | str) -> tuple[str, str]:
    """The path at the upstream, and the prefix that was stripped from the request's."""
    prefix = (strip_prefix if isinstance(strip_prefix, str) else request.prefix).rstrip("/")
    divided = split_prefix(request.path, prefix) if prefix else None
    stripped, rest = "", request.path
    if divided is not None and strip_prefix is not False:
        stripped, rest = prefix, divided[1]
    base = url.raw_path.decode("ascii").partition("?")[0]
    if base in ("", "/"):
        return rest or "/", stripped
    return (base.rstrip("/") + rest, stripped) if divided is not None else (base, "")
