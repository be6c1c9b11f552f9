"""Header rules of a proxy (RFC 9110 section 7.6): what goes on to the upstream, what comes back to the client.

Fields are passed on as they were parsed, name by name and value by value; nothing is ever written out and
parsed again.
"""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from ..core.handshake.headers import Headers, is_token
from .target import ProxyRequest

__all__ = ["answer_fields", "refusal_fields", "request_fields"]

# About one connection, not about the message (RFC 9110 section 7.6.1), besides those that Connection names.
_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-authentication-info",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
# What the server in front says of itself in each answer.
_SAID_HERE = frozenset({"date", "server"})
# What the opening handshake itself is made of (RFC 6455 sections 4.1 and 4.2.2).
_HANDSHAKE = frozenset({"sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol"})


def end_to_end(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """``fields`` without those that concern one connection alone."""
    fields = list(fields)
    named = {
        token.strip().lower() for name, value in fields if name.lower() == "connection" for token in value.split(",")
    }
    # The handshake is not for a peer to take apart.
    named = {name for name in named if not name.startswith("sec-websocket-")} | _HOP_BY_HOP
    return [pair for pair in fields if pair[0].lower() not in named]


def request_fields(
    request: ProxyRequest, host: str, prefix: str, *, keep_host: bool, drop: frozenset[str], extra: httpx.Headers
) -> list[tuple[str, str]]:
    """The header fields of the request to the upstream, all but those that ask for the upgrade.

    Args:
        request: the client's request.
        host: Host of the upstream.
        prefix: what was left out of the path.
        keep_host: whether the upstream is told the client's Host instead.
        drop: names, in lower case, that do not go on.
        extra: fields of the application, in place of those of the same name.
    """
    original = request.headers.get("host")
    fields = [pair for pair in end_to_end(request.headers) if pair[0].lower() not in ("host", "content-length")]
    dropped = {_plain(name) for name in drop}
    fields = [pair for pair in _forwarded(fields, request, original, prefix) if _plain(pair[0]) not in dropped]
    fields.insert(0, ("host", original if keep_host and original else host))
    names = {_plain(name) for name in extra}
    return [pair for pair in fields if _plain(pair[0]) not in names] + [*extra.multi_items()]


def _plain(name: str) -> str:
    # To an upstream that is a WSGI or CGI program X_User is X-User.
    return name.lower().replace("_", "-")


def _forwarded(fields: list[tuple[str, str]], request: ProxyRequest, host: str, prefix: str) -> list[tuple[str, str]]:
    """Add who asked, by which scheme and for which host (RFC 7239, and the older X-Forwarded-*)."""
    client = request.client or "unknown"
    scheme = "https" if request.secure else "http"
    # A server that trusts the proxy in front of it may have been told any address.
    node = _quoted(f"[{client}]" if ":" in client else client)
    element = f"for={node};proto={scheme}" + (f";host={_quoted(host)}" if host else "")
    # A list of hops grows; what is said of this request is said by this server alone, as a client may say anything.
    said = {"x-forwarded-proto": scheme, "x-forwarded-host": host, "x-forwarded-prefix": prefix}
    grown = {"x-forwarded-for": client, "forwarded": element}
    known = Headers(fields)
    if known.get("x-forwarded-for").rpartition(",")[2].strip() == client:
        # The server has believed the proxy in front of it, whose word this is: a hop is named once.
        grown["x-forwarded-for"] = ""
    kept = [pair for pair in fields if (name := _plain(pair[0])) not in said and name not in grown]
    for name, value in grown.items():
        kept.append((name, ", ".join(part for part in (known.get(name), value) if part)))
    return kept + [(name, value) for name, value in said.items() if value]


def _quoted(host: str) -> str:
    """As a value of RFC 7239."""
    if is_token(host):
        return host
    return '"' + host.replace("\\", "\\\\").replace('"', '\\"') + '"'


def answer_fields(fields: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The fields of the upstream's 101, for ours: those of the opening handshake, and the others."""
    answer = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    fields = end_to_end(fields)
    answer += [pair for pair in fields if pair[0].lower() in _HANDSHAKE]
    left_out = _HANDSHAKE | _SAID_HERE | {"content-length"}
    return answer, [pair for pair in fields if pair[0].lower() not in left_out]


def refusal_fields(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The fields of another answer of the upstream's, for ours."""
    fields = list(fields)
    left_out = set(_SAID_HERE)
    if any(name.lower() == "transfer-encoding" for name, _ in fields):
        left_out.add("content-length")  # the other one counts (RFC 9112 section 6.3)
    return [pair for pair in end_to_end(fields) if pair[0].lower() not in left_out]
