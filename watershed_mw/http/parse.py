"""Parses request and response heads with h11, and plain request heads with httptools where that is installed."""

from __future__ import annotations

from typing import Any

import h11

try:
    import httptools
except ImportError:  # an optional dependency
    httptools = None  # type: ignore[assignment]
from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Request, Response
from ..errors import HandshakeError
from .target import in_origin_form

__all__ = ["MAX_HEAD", "as_parsed", "read_by_h11", "read_request_head", "read_response_head"]


# h11's default of 16 KiB is too small for 2,000 short fields or one huge cookie.
MAX_HEAD = 64 * 2**10


# Printable ASCII. Parsers agree on heads of these and CRLF: no folded lines, tabs, control characters or other bytes.
_PLAIN = bytes(range(0x20, 0x7F))


def read_request_head(data: bytes) -> tuple[Request, bytes]:
    """Parse a raw request head (RFC 9112), and return it with the bytes that follow it.

    Raises:
        HandshakeError: the head is incomplete, too long, or not an HTTP request.
    """
    end = data.find(b"\r\n\r\n") + 4
    if (size := end if end >= 4 else len(data)) > MAX_HEAD:
        raise HandshakeError(f"expected an HTTP head of at most {MAX_HEAD} bytes, got {size}", status=431)
    # httptools is faster, but only h11 reports why it rejects a head.
    if httptools is not None and end >= 4 and (request := _read_plain(data[:end])) is not None:  # type: ignore[redundant-expr]
        return request, data[end:]
    return read_by_h11(data)


def read_by_h11(data: bytes) -> tuple[Request, bytes]:
    """As :func:`read_request_head`, without httptools."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    event = _read_head(connection, data)
    assert isinstance(event, h11.Request)
    request = Request(
        Headers([(name, value) for name, value in event.headers]),
        event.method.decode("ascii"),
        event.target.decode("latin-1"),
        event.http_version.decode("ascii"),
    )
    return in_origin_form(request), connection.trailing_data[0]


def as_parsed(fields: list[tuple[bytes, bytes]], head: bytes) -> Request | None:
    """The request with this head, if a parser's ``fields`` match it byte for byte and nothing about it is unusual.

    Returns None if h11 has to parse the head. The caller's parser has checked that names and method are tokens.
    """
    first_line, _, rest = head.partition(b"\r\n")
    words = first_line.split(b" ")
    if len(words) != 3 or not words[0] or not words[1].startswith(b"/") or words[2] != b"HTTP/1.1":
        return None
    again = b"\r\n".join(map(b": ".join, fields))
    if rest != again + b"\r\n\r\n" or head.translate(None, _PLAIN) != b"\r\n" * (len(fields) + 2):
        return None
    # Parsers differ about spaces around names and values.
    if b" \r\n" in rest or b":  " in rest or b" :" in rest or len(head) > MAX_HEAD:
        return None
    headers = Headers(fields)
    # h11 checks lengths, and the Host field.
    if "content-length" in headers or "transfer-encoding" in headers or len(headers.get_all("host")) != 1:
        return None
    return Request(headers, words[0].decode("ascii"), words[1].decode("ascii"))


class _Fields(list[tuple[bytes, bytes]]):
    """Collects the fields that httptools finds."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name, value))


def _read_plain(head: bytes) -> Request | None:
    """Parse a head with httptools; None if h11 has to parse it."""
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # raised for every upgrade
    except httptools.HttpParserError:
        return None
    return as_parsed(fields, head)


def read_response_head(data: bytes) -> tuple[Response, bytes]:
    """Parse a raw response head (RFC 9112), and return it with the bytes that follow it.

    Raises:
        HandshakeError: the head is incomplete, too long, or not an HTTP response.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    # h11 reads a response only after a request; this one stands in for the handshake that was sent.
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-"), ("Upgrade", "websocket")]))
    connection.send(h11.EndOfMessage())
    event = _read_head(connection, data)
    assert isinstance(event, (h11.Response, h11.InformationalResponse))
    headers = Headers([(name, value) for name, value in event.headers])
    return Response(event.status_code, headers), connection.trailing_data[0]


def _read_head(connection: h11.Connection, data: bytes) -> Any:
    try:
        connection.receive_data(data)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise HandshakeError(f"expected an HTTP head, got {error}", status=error.error_status_hint) from None
    if not isinstance(event, (h11.Request, h11.Response, h11.InformationalResponse)):
        raise HandshakeError("expected a complete HTTP head that ends in an empty line, got an incomplete one")
    # h11's own limit applies to incomplete heads only.
    if (size := len(data) - len(connection.trailing_data[0])) > MAX_HEAD:
        raise HandshakeError(f"expected an HTTP head of at most {MAX_HEAD} bytes, got {size}", status=431)
    return event
