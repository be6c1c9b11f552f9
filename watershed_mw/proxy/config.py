"""What a proxy does, decided once: checked options, and the steps that are the same under ASGI and WSGI."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, unquote

import httpx

from ..connection.limit import ConnectionLimit
from ..core.handshake.headers import Headers, check_outgoing, shown
from ..errors import HandshakeError
from ..options import ConnectionOptions, Options
from ..watershed import Watershed
from .headers import request_fields
from .paths import PATH_SAFE, VISIBLE, may_decode_to, path_of_target, split_prefix
from .target import Choice, Destination, ProxyRequest, UpstreamLike, destination
from .upstream import Refused, Switched, ask

__all__ = ["Mode", "Plan", "request_of_environ", "request_of_scope"]

Mode: TypeAlias = Literal["auto", "raw", "messages"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a proxy, checked; see :class:`~watershed_mw.proxy.WebSocketProxy`."""

    upstream: UpstreamLike | Choice
    keep_host: bool
    strip_prefix: bool | str
    headers: httpx.Headers
    drop_headers: frozenset[str]
    ssl: ssl.SSLContext | None
    mode: Mode
    open_timeout: float
    close_timeout: float
    idle_timeout: float | None
    max_duration: float | None
    max_bytes: int | None
    options: Options
    both: ConnectionOptions
    """Of both connections where messages are relayed."""
    shed: Watershed
    """For the upstream's end of relayed messages."""
    connection_limit: ConnectionLimit

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of a relay, by their names."""
        return {
            "idle_timeout": self.idle_timeout,
            "close_timeout": self.close_timeout,
            "max_duration": self.max_duration,
            "max_bytes": self.max_bytes,
        }

    def chosen(self, request: ProxyRequest) -> UpstreamLike | Awaitable[UpstreamLike | None] | None:
        """What the application says of this request, in the thread that asks. Raises whatever its callable raises."""
        return self.upstream(request) if callable(self.upstream) else self.upstream

    def destination(self, chosen: UpstreamLike | None, request: ProxyRequest) -> Destination:
        """Where this request is to go. Raises as :func:`~watershed_mw.proxy.target.destination`."""
        return destination(chosen, request, self.strip_prefix)

    async def ask(
        self, to: Destination, request: ProxyRequest, key: str, handshake: Iterable[tuple[str, str]], *, raw: bool
    ) -> Switched | Refused:
        """Ask the upstream for the upgrade, with the client's key and offers, or with ours.

        Args:
            to: where.
            request: the client's request.
            key: the key in ``handshake``.
            handshake: the fields that ask for the upgrade.
            raw: whether the client's own Sec-WebSocket fields go on.

        Raises:
            HandshakeError: no answer (502, 504), or a header field that cannot be written (500).
        """
        extra = httpx.Headers(self.headers)
        extra.update(to.headers)
        host = to.url.netloc.decode("ascii")
        fields = request_fields(request, host, to.prefix, keep_host=self.keep_host, drop=self.drop_headers, extra=extra)
        if not raw:
            fields = [pair for pair in fields if not pair[0].lower().startswith("sec-websocket-")]
        fields += handshake
        for name, value in fields:
            _check_field(name, value)
        return await ask(to, fields, key, context=self.ssl, open_timeout=self.open_timeout)


def _check_field(name: str, value: str) -> None:
    try:
        check_outgoing([(name, value)])
        written = value == value.strip(" \t")
    except ValueError:
        written = False
    if not written:
        # Not what it holds, neither to the client nor to the log: it may be the application's own secret.
        raise HandshakeError(f"the proxy cannot write the header field {shown(name)}", status=500)


def request_of_scope(scope: Mapping[str, Any], headers: Headers) -> ProxyRequest:
    """The request that an ASGI scope tells of, with its header fields as they were parsed."""
    prefix = quote(str(scope.get("root_path") or ""), PATH_SAFE)
    raw = path_of_target(bytes(scope.get("raw_path") or b""))
    path = quote(raw, VISIBLE)
    # A middleware may have changed the path, and need not have changed both.
    if split_prefix(path, prefix) is None or unquote(raw.decode("latin-1")) != scope["path"]:
        path = quote(scope["path"], PATH_SAFE)
    return ProxyRequest(
        headers=headers,
        path=path,
        prefix=prefix,
        query=quote(bytes(scope.get("query_string") or b""), VISIBLE),
        secure=scope.get("scheme") in ("wss", "https"),
        client=str((scope.get("client") or ("",))[0]),
        scope=scope,
    )


def request_of_environ(environ: Mapping[str, Any], headers: Headers, target: str | None) -> ProxyRequest:
    """The request that a WSGI environ tells of.

    Args:
        environ: the environ.
        headers: its header fields.
        target: the request target as it came, where the server keeps it.
    """
    names = ("SCRIPT_NAME", "PATH_INFO")
    mounted, rest = (str(environ.get(name, "")).encode("latin-1") for name in names)
    prefix = quote(mounted, PATH_SAFE)
    # PEP 3333 has the path decoded, in which %2F and "/" are the same.
    raw = path_of_target((target or "").encode("latin-1", "replace"))
    path = quote(raw, VISIBLE)
    if split_prefix(path, prefix) is None or not may_decode_to(raw, mounted + rest):
        path = quote(mounted + rest, PATH_SAFE)
    return ProxyRequest(
        headers=headers,
        path=path or "/",
        prefix=prefix,
        query=quote(str(environ.get("QUERY_STRING", "")).encode("latin-1"), VISIBLE),
        secure=environ.get("wsgi.url_scheme") == "https",
        client=str(environ.get("REMOTE_ADDR", "")),
        environ=environ,
    )
