"""The opening handshake of RFC 6455 section 4, for both sides, on parsed requests and responses.

It relies on the HTTP layer for the syntax of the head and validates the contents. It neither parses nor writes HTTP: a
refusal is a :class:`~watershed_mw.errors.HandshakeError` with the status, headers and body to send.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import HandshakeError
from .extensions import DeflateOptions, DeflateParameters, accept_offer, check_answer
from .headers import Headers, check_incoming, is_host, is_token, parse_extensions, parse_tokens, shown
from .origin import check_origin

__all__ = [
    "Agreement",
    "Request",
    "Response",
    "accept_key",
    "check_request",
    "check_response",
    "check_subprotocols",
    "check_switch",
    "negotiate",
    "offered_subprotocols",
    "select_subprotocol",
]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION = "13"


@dataclass(frozen=True, slots=True)
class Request:
    """A client's opening handshake.

    Attributes:
        headers: the header fields as the HTTP layer parsed them.
        method: HTTP method, upper case.
        target: request target in origin form, with the query string, such as ``/chat?room=1``.
        http_version: ``"1.1"`` for HTTP/1.1.
    """

    headers: Headers
    method: str = "GET"
    target: str = "/"
    http_version: str = "1.1"


@dataclass(frozen=True, slots=True)
class Response:
    """A server's response to the opening handshake: HTTP status and header fields."""

    status: int
    headers: Headers = field(default_factory=Headers)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of the opening handshake: subprotocol and compression, or None."""

    subprotocol: str | None = None
    deflate: DeflateParameters | None = None


# The usual result, shared because creating a frozen dataclass is slow.
_NOTHING = Agreement()


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept value for ``key`` (RFC 6455 section 4.2.2, point 5.4)."""
    # It proves that the server speaks WebSocket and is not a signature, so SHA-1 is sufficient.
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode("ascii")


def check_request(request: Request, origins: str | Sequence[str] | None = None) -> str:
    """Validate a client's opening handshake (RFC 6455 section 4.2.1) and return its key.

    Over HTTP/2 and later it is an extended CONNECT, which the HTTP layer recognizes; it has no key and no upgrade
    (RFC 8441 section 5), and the returned key is empty.

    Args:
        request: the request.
        origins: origins allowed in addition to the request's host; ``"*"`` allows every origin.

    Raises:
        HandshakeError: with status 400, 403 (origin), 405 (method), 426 (no upgrade, other version).
    """
    headers = request.headers
    if request.method != "GET":
        raise HandshakeError(
            f"expected method GET, got {shown(request.method)}",
            status=405,
            headers=[("Allow", "GET")],
        )
    version = _version(request.http_version)
    if version < (1, 1):
        raise HandshakeError(f"expected HTTP/1.1 or later, got HTTP/{request.http_version[:8]}")
    if not request.target.startswith("/"):
        raise HandshakeError(f"expected a path as the request target, got {shown(request.target)}")
    extended_connect = version >= (2, 0)
    host = headers.get_one("host")
    if host and not is_host(host):
        raise HandshakeError(f"expected a Host header such as 'a.example:8000', got {shown(host)}")
    if not extended_connect:
        if not host:
            raise HandshakeError("expected a Host header, got none")
        _check_upgrade_tokens(headers, status=426)
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        # The request has no body (section 4.1); one would be parsed as frames.
        raise HandshakeError(
            "expected an upgrade request without a body, got a Content-Length or Transfer-Encoding header"
        )
    spoken = headers.get("sec-websocket-version")
    if spoken != VERSION:
        raise HandshakeError(
            f"expected Sec-WebSocket-Version: {VERSION}, got {shown(spoken) if spoken else 'none'}",
            status=426,
            headers=[("Sec-WebSocket-Version", VERSION), ("Upgrade", "websocket"), ("Connection", "Upgrade")],
        )
    key = "" if extended_connect else _check_key(headers)
    check_incoming(headers)
    check_origin(headers, origins)
    # Negotiated later, but validated now, before the application sees the request.
    offered_subprotocols(headers)
    parse_extensions(headers)
    return key


def _check_upgrade_tokens(headers: Headers, *, status: int) -> None:
    for name, expected in (("upgrade", "websocket"), ("connection", "upgrade")):
        value = headers.get(name)
        if value.isascii() and value.lower() == expected:
            continue  # the usual case: a single token
        # Section 4.2.1: both are lists of tokens, compared case-insensitively.
        if expected not in (token.lower() for token in parse_tokens(headers, name)):
            got = headers.get(name)
            raise HandshakeError(
                f"expected the token {expected!r} in header {name.title()}, got {shown(got) if got else 'none'}",
                status=status,
                headers=[("Upgrade", "websocket"), ("Connection", "Upgrade")] if status == 426 else (),
            )


def _version(http_version: str) -> tuple[int, int]:
    if http_version == "1.1":
        return 1, 1
    major, _, minor = http_version.partition(".")
    try:
        return int(major), int(minor or 0)
    except ValueError:
        return 0, 0


def _check_key(headers: Headers) -> str:
    key = headers.get_one("sec-websocket-key")
    if not key:
        raise HandshakeError("expected a Sec-WebSocket-Key header, got none")
    try:
        nonce = binascii.a2b_base64(key.encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        nonce = b""
    if len(nonce) != 16:
        raise HandshakeError(f"expected 16 bytes in base64 in header Sec-WebSocket-Key, got {shown(key)}")
    return key


def offered_subprotocols(headers: Headers) -> list[str]:
    """The subprotocols that a request offers, in order of preference (section 4.1, point 10).

    Raises:
        HandshakeError: an element is not a token, or is repeated; status 400.
    """
    offered = parse_tokens(headers, "sec-websocket-protocol")
    if len(set(offered)) != len(offered):
        raise HandshakeError(
            "expected each subprotocol once, got a repeated subprotocol in header Sec-WebSocket-Protocol"
        )
    return offered


def check_subprotocols(protocols: Sequence[object]) -> tuple[str, ...]:
    """Validate the names of subprotocols that are to be offered or supported.

    Raises:
        ValueError: a name is not a token, or ``protocols`` is a string instead of a list.
    """
    if isinstance(protocols, str):
        raise ValueError(f"expected a list of subprotocols, got the string {protocols!r}: write [{protocols!r}]")
    names = []
    for name in protocols:
        if not isinstance(name, str) or not is_token(name):
            raise ValueError(f"expected subprotocol names that are tokens, got {name!r}")
        names.append(name)
    return tuple(names)


def select_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """The first supported subprotocol in the client's order, compared case-sensitively; None if it offered none.

    Raises:
        HandshakeError: the client offered some and none is supported; status 400. A browser would fail the connection
            anyway, without a reason.
    """
    if not offered:
        return None
    for name in offered:
        if name in supported:
            return name
    have = ", ".join(supported) or "none"
    raise HandshakeError(
        f"no subprotocol in common: the client offers {shown(', '.join(offered))}, this server supports {have}"
    )


def negotiate(
    request: Request, key: str, *, subprotocol: str | None, deflate: DeflateOptions | None
) -> tuple[Agreement, list[tuple[str, str]]]:
    """The agreement of a server, and the header fields of its 101 (section 4.2.2).

    Args:
        request: a request that :func:`check_request` has accepted.
        key: the key that it returned.
        subprotocol: the selected subprotocol, or None.
        deflate: settings for permessage-deflate, or None for no compression.

    Raises:
        HandshakeError: the client's extensions are malformed; status 400.
    """
    fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_key(key))]
    if subprotocol is not None:
        fields.append(("Sec-WebSocket-Protocol", subprotocol))
    offers = parse_extensions(request.headers)
    agreed = accept_offer(offers, deflate) if deflate is not None else None
    if agreed is None:
        return _NOTHING if subprotocol is None else Agreement(subprotocol), fields
    parameters, answer = agreed
    fields.append(("Sec-WebSocket-Extensions", answer))
    return Agreement(subprotocol, parameters), fields


def check_response(
    response: Response, key: str, *, offered: Headers, protocols: Sequence[str] = (), deflate: DeflateOptions
) -> Agreement:
    """Validate a server's response (section 4.1) and return the agreement.

    Args:
        response: the response.
        key: the Sec-WebSocket-Key that was sent.
        offered: the request's headers as sent; a response must not contain what they do not offer.
        protocols: subprotocols that count as offered in addition to those in ``offered``.
        deflate: settings for permessage-deflate.

    Raises:
        HandshakeError: the response is invalid; it has the server's status.
    """
    try:
        return _check_response(response, key, offered, protocols, deflate)
    except HandshakeError as error:
        error.status = response.status
        raise


def check_switch(response: Response, key: str) -> None:
    """Check only that a response switches to WebSocket, and that it belongs to the request with ``key``.

    Raises:
        HandshakeError: it does not, so frames do not follow.
    """
    headers = response.headers
    if response.status != 101:
        raise HandshakeError(f"expected status 101 (Switching Protocols), got {response.status}")
    _check_upgrade_tokens(headers, status=400)
    answer = headers.get_one("sec-websocket-accept")
    expected = accept_key(key)
    if answer is None or not hmac.compare_digest(answer.encode("latin-1", "replace"), expected.encode("ascii")):
        raise HandshakeError(f"expected Sec-WebSocket-Accept: {expected}, got {shown(answer) if answer else 'none'}")


def _check_response(
    response: Response, key: str, offered: Headers, protocols: Sequence[str], deflate: DeflateOptions
) -> Agreement:
    check_switch(response, key)
    headers = response.headers
    subprotocol = headers.get_one("sec-websocket-protocol")
    names = [*protocols, *parse_tokens(offered, "sec-websocket-protocol")]
    if subprotocol is not None and subprotocol not in names:
        raise HandshakeError(
            f"expected an offered subprotocol ({', '.join(names) or 'none'}), got {shown(subprotocol)}"
        )
    answers = parse_extensions(headers)
    # Without an answer the offer does not matter, whatever an application has written into it.
    return Agreement(subprotocol, check_answer(answers, parse_extensions(offered), deflate) if answers else None)
