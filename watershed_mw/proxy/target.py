"""Where a request is to go: the upstream's URL, or what the application says for this request, and the target there."""

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
    """Where to forward one request.

    Args:
        url: ``ws://``, ``wss://`` (or ``http://``, ``https://``) URL, or ``unix:/path/of/socket``. The request's path
            is appended to a URL without a path; a URL with one stands for what the proxy is mounted under, or for the
            whole path where it is not mounted.
        headers: further header fields for this upstream, in place of those of the same name.

    Raises:
        ValueError: no such URL.
    """

    url: str
    headers: Fields = ()

    def __post_init__(self) -> None:
        parse_upstream(self.url)


UpstreamLike: TypeAlias = "str | Upstream"

Choice: TypeAlias = "Callable[[ProxyRequest], Awaitable[UpstreamLike | None] | UpstreamLike | None]"
"""Told of a request; returns its upstream, or refuses: None is a 404, a raised ``HandshakeError`` has its status."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """An upgrade request that waits for its upstream.

    Attributes:
        headers: header fields as the client sent them.
        path: path, percent-encoded, with what the proxy is mounted under.
        prefix: what it is mounted under, percent-encoded (``root_path``, ``SCRIPT_NAME``); empty for nothing.
        query: query string without the question mark.
        secure: whether the client speaks TLS, as far as the server knows.
        client: the client's address, empty when unknown.
        scope: the ASGI scope, where a framework keeps session and user; None under WSGI.
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
        """The request as the opening handshake has it."""
        return Request(self.headers, "GET", self.path + (f"?{self.query}" if self.query else ""))


@dataclass(frozen=True, slots=True)
class Destination:
    """The upstream of one request.

    Attributes:
        url: URL of the upstream, its scheme ``http`` or ``https``.
        target: path and query of the request there, percent-encoded.
        prefix: what was left out of the path, percent-encoded; empty for nothing.
        unix: path of the Unix socket, or None.
        headers: further header fields.
    """

    url: httpx.URL
    target: str
    prefix: str
    unix: str | None
    headers: httpx.Headers

    @property
    def shown(self) -> str:
        """For logs: without credentials and query."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        scheme = "wss" if self.url.scheme == "https" else "ws"
        return f"{scheme}://{self.url.netloc.decode('ascii')}{self.target.partition('?')[0]}"


@lru_cache(maxsize=256)
def parse_upstream(url: str) -> tuple[httpx.URL, str | None]:
    """The URL of an upstream, and the path of its Unix socket.

    Raises:
        ValueError: no such URL.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"expected the absolute path of a Unix socket, such as unix:/run/app.sock, got {url!r}")
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"expected a ws:// or wss:// URL, as this platform has no Unix sockets, got {url!r}")
        return httpx.URL("http://localhost"), path
    parsed = as_http_url(url)
    if parsed.userinfo:
        raise ValueError("expected a URL without user and password: give headers={'Authorization': ...} instead")
    return parsed, None


def destination(upstream: UpstreamLike | None, request: ProxyRequest, strip_prefix: bool | str) -> Destination:
    """The upstream of this request, with the path and the query that it gets there.

    Args:
        upstream: what the application has chosen.
        request: the request.
        strip_prefix: True to leave out what the proxy is mounted under, False to keep it, or the prefix to leave out.

    Raises:
        HandshakeError: there is none; status 404. Or the path could lead out of where it belongs; status 400.
        ValueError, TypeError: it is no URL.
    """
    if upstream is None:
        raise HandshakeError("expected an upstream for this request, got none: nothing is here", status=404)
    if isinstance(upstream, str):
        upstream = Upstream(upstream)
    if not isinstance(upstream, Upstream):
        raise TypeError(f"expected a URL or Upstream(...) for this request, got {type(upstream).__name__}")
    url, unix = parse_upstream(upstream.url)
    _check_path(request.path)
    path, left_out = _path_there(url, request, strip_prefix)
    own_query = url.query.decode("ascii")
    query = "&".join(part for part in (own_query, request.query) if part)
    target = path + (f"?{query}" if query else "")
    return Destination(url, target, left_out, unix, httpx.Headers(upstream.headers))


def _check_path(path: str) -> None:
    """Refuse a path that the upstream could read as one outside of the part that it stands for.

    Browsers resolve dot segments before they ask, those of ``%2e`` and backslashes included.
    """
    if not path.startswith("/"):
        raise HandshakeError("expected a request for a path, got one for something else", status=400)
    segments = unquote(path).replace("\\", "/").split("/")
    # Some servers take ";..." away before they resolve.
    if any(segment.partition(";")[0] in (".", "..") for segment in segments):
        raise HandshakeError("expected a path without dot segments, got one with them", status=400)


def _path_there(url: httpx.URL, request: ProxyRequest, strip_prefix: bool | str) -> tuple[str, str]:
    """The path of the request at the upstream, and the prefix that was left out of it."""
    prefix = (strip_prefix if isinstance(strip_prefix, str) else request.prefix).rstrip("/")
    divided = split_prefix(request.path, prefix) if prefix else None
    left_out, rest = "", request.path
    if divided is not None and strip_prefix is not False:
        left_out, rest = prefix, divided[1]
    base = url.raw_path.decode("ascii").partition("?")[0]
    if base in ("", "/"):
        return rest or "/", left_out
    return (base.rstrip("/") + rest, left_out) if divided is not None else (base, "")
