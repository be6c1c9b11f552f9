"""Writes request and response heads as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from ..core.handshake.headers import check_outgoing
from ..errors import HandshakeError

__all__ = [
    "check_status",
    "status_line",
    "write_fields",
    "write_head",
    "write_refusal",
    "write_response",
    "write_switch",
]


def check_status(status: Any) -> None:
    """Raise ValueError unless ``status`` is valid for a final response."""
    if not isinstance(status, int) or not 200 <= status < 600:
        raise ValueError(f"expected an HTTP status from 200 to 599, got {status!r}")


def status_line(status: int) -> str:
    """Status code and reason phrase; clients ignore the phrase (RFC 9112 section 4)."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def write_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Header fields as bytes, each with its CRLF. Raises as :func:`write_head`."""
    pairs = list(fields)
    check_outgoing(pairs)
    return _lines(pairs)


def _lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in pairs]).encode("latin-1")


def write_head(first_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """A head as bytes: the first line, the header fields, and an empty line.

    Raises:
        ValueError: a field has an invalid name, a control character, or a character beyond ISO-8859-1.
    """
    return b"%b\r\n%b\r\n" % (first_line.encode("latin-1"), write_fields(fields))


def write_switch(agreed: Sequence[tuple[str, str]], *lines: bytes) -> bytes:
    """The 101 (Switching Protocols) response as bytes.

    Args:
        agreed: fields of :func:`~watershed_mw.core.handshake.negotiation.negotiate`.
        lines: further fields, by :func:`write_fields`.

    Raises:
        ValueError: as :func:`write_head`.
    """
    # The subprotocol is the application's; all other values are written by this package.
    for name, value in agreed:
        if name == "Sec-WebSocket-Protocol":
            check_outgoing([(name, value)])
    return b"".join((b"HTTP/1.1 101 Switching Protocols\r\n", _lines(agreed), *lines, b"\r\n"))


def write_response(status: int, fields: Iterable[tuple[str, str]], body: bytes | None = None) -> bytes:
    """A response as bytes; with a body, Content-Length and ``Connection: close`` are added."""
    first_line = f"HTTP/1.1 {status_line(status)}"
    fields = list(fields)
    if body is None:
        return write_head(first_line, fields)
    # A sender of Upgrade must list it in Connection (RFC 9110 section 7.8).
    upgrade = any(name.lower() == "upgrade" for name, _ in fields)
    ends = [("Connection", "close, Upgrade" if upgrade else "close")]
    if status in (204, 304):
        body = b""  # and no Content-Length (RFC 9110 section 8.6)
    else:
        ends.append(("Content-Length", str(len(body))))
    pairs = [pair for pair in fields if pair[0].lower() not in ("connection", "content-length", "transfer-encoding")]
    return write_head(first_line, [*pairs, *ends]) + body


def write_refusal(error: HandshakeError, method: str = "GET") -> bytes:
    """The response to a refused request: plain text with the reason, or no body for HEAD."""
    fields = [*error.headers, ("Content-Type", "text/plain; charset=utf-8")]
    answer = write_response(error.status, fields, error.body)
    return answer if method != "HEAD" else answer.removesuffix(error.body)
