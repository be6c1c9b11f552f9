"""Header rules of a proxy (RFC 9110 section 7.6): which fields go to the upstream, and which to the client.

Fields are forwarded as parsed names and values; they are never serialized and parsed again.
"""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from ..core.handshake.headers import Headers, is_token
from .target import ProxyRequest

__all__ = ["answer_fields", "refusal_fields", "request_fields"]

# Fields for one hop only (RFC 9110 section 7.6.1); Connection may name more.
_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-authentication-info",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
# The server in front adds its own to each response.
_SERVER_FIELDS = frozenset({"date", "server"})
# Fields of the opening handshake itself (RFC 6455 sections 4.1 and 4.2.2).
_HANDSHAKE = frozenset({"sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol"})


def end_to_end(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """``fields`` without the hop-by-hop ones."""
    fields = list(fields)
    named = {
        token.strip().lower() for name, value in fields if name.lower() == "connection" for token in value.split(",")
    }
    # A peer must not remove fields of the opening handshake by naming them.
    named = {name for name in named if not name.startswith("sec-websocket-")} | _HOP_BY_HOP
    return [pair for pair in fields if pair[0].lower() not in named]


def request_fields(
    request: ProxyRequest, host: str, prefix: str, *, keep_host: bool, drop: frozenset[str], extra: httpx.Headers
) -> list[tuple[str, str]]:
    """The header fields of the request to the upstream, all but those that ask for the upgrade.

    Args:
        request: the client's request.
        host: the upstream's Host.
        prefix: the prefix that was stripped from the path.
        keep_host: whether to forward the client's Host instead.
        drop: names of fields to drop, in lower case.
        extra: the application's fields, which replace those of the same name.
    """
    original = request.headers.get("host")
    fields = [pair for pair in end_to_end(request.headers) if pair[0].lower() not in ("host", "content-length")]
    dropped = {_plain(name) for name in drop}
    fields = [pair for pair in _forwarded(fields, request, original, prefix) if _plain(pair[0]) not in dropped]
    fields.insert(0, ("host", original if keep_host and original else host))
    names = {_plain(name) for name in extra}
    return [pair for pair in fields if _plain(pair[0]) not in names] + [*extra.multi_items()]


def _plain(name: str) -> str:
    # A WSGI or CGI upstream cannot distinguish X_User from X-User.
    return name.lower().replace("_", "-")


def _forwarded(fields: list[tuple[str, str]], request: ProxyRequest, host: str, prefix: str) -> list[tuple[str, str]]:
    """Add the client, the scheme and the host of the request (RFC 7239, and the older X-Forwarded-*)."""
    client = request.client or "unknown"
    scheme = "https" if request.secure else "http"
    # The address may be any text if the server trusts a proxy in front of it.
    node = _quoted(f"[{client}]" if ":" in client else client)
    element = f"for={node};proto={scheme}" + (f";host={_quoted(host)}" if host else "")
    # Lists of hops are appended to; the other fields are replaced, as a client could forge them.
    replaced = {"x-forwarded-proto": scheme, "x-forwarded-host": host, "x-forwarded-prefix": prefix}
    appended = {"x-forwarded-for": client, "forwarded": element}
    known = Headers(fields)
    if known.get("x-forwarded-for").rpartition(",")[2].strip() == client:
        # The server took the client's address from this field; do not list it twice.
        appended["x-forwarded-for"] = ""
    kept = [pair for pair in fields if (name := _plain(pair[0])) not in replaced and name not in appended]
    for name, value in appended.items():
        kept.append((name, ", ".join(part for part in (known.get(name), value) if part)))
    return kept + [(name, value) for name, value in replaced.items() if value]


def _quoted(host: str) -> str:
    """A value of RFC 7239: a token, or a quoted string."""
    if is_token(host):
        return host
    return '"' + host.replace("\\", "\\\\").replace('"', '\\"') + '"'


def answer_fields(fields: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The fields of the client's 101, made from the upstream's: those of the opening handshake, and the others."""
    answer = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    fields = end_to_end(fields)
    answer += [pair for pair in fields if pair[0].lower() in _HANDSHAKE]
    excluded = _HANDSHAKE | _SERVER_FIELDS | {"content-length"}
    return answer, [pair for pair in fields if pair[0].lower() not in excluded]


def refusal_fields(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The fields of a refusal to the client, made from the upstream's."""
    fields = list(fields)
    excluded = set(_SERVER_FIELDS)
    if any(name.lower() == "transfer-encoding" for name, _ in fields):
        excluded.add("content-length")  # Transfer-Encoding overrides it (RFC 9112 section 6.3)
    return [pair for pair in end_to_end(fields) if pair[0].lower() not in excluded]
