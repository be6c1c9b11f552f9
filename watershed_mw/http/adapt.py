"""Whatever carries a request or a response, as the core's :class:`Request` and :class:`Response`.

WSGI environs, ASGI scopes, requests of the well-known libraries and plain mappings were parsed by
somebody else and are taken as they are. Raw heads are parsed by h11, never here; and by httptools, where it is
installed, as far as both make the same of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

try:
    import httptools
except ImportError:  # an extra of ours, and uvicorn's
    httptools = None  # type: ignore[assignment]

from ..core.handshake.headers import Headers, check_outgoing
from ..core.handshake.negotiation import Request, Response
from ..errors import HandshakeError

__all__ = [
    "as_request",
    "as_response",
    "check_status",
    "environ_to_origin_form",
    "read_request_head",
    "read_response_head",
    "scope_to_origin_form",
    "write_fields",
    "write_head",
    "write_refusal",
    "write_response",
    "write_switch",
]

# h11's default is 16 KiB; 2,000 small headers or one huge cookie may be more, and must not be unbounded.
MAX_HEAD = 64 * 2**10

# Visible characters and the space. A head of these and its line ends has nothing that two parsers could read in two
# ways: no folded line, no tab, no control character, no byte beyond ASCII.
_PLAIN = bytes(range(0x20, 0x7F))

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# Schemes of a target in absolute form, which a client sends that takes this server for a proxy.
_SCHEMES = ("http", "https", "ws", "wss")


def as_request(source: Any) -> Request:
    """A request in any of these forms:

    - ``bytes``: a raw request head, ending in an empty line
    - a WSGI environ
    - an ASGI scope of type ``websocket`` or ``http``
    - an object with ``headers`` and a method, such as a handler of ``http.server``, ``httpx.Request``
    - a mapping of header names to values, taken as ``GET`` with HTTP/1.1

    Raises:
        HandshakeError: the raw head is no HTTP request (400), or longer than 64 KiB (431); or a server has let a
            control character pass (400).
        TypeError: it is none of these.
    """
    if isinstance(source, Request):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return read_request_head(bytes(source))[0]
    if not isinstance(source, Mapping):
        return _in_origin_form(_from_object(source))
    if "REQUEST_METHOD" in source:
        return _in_origin_form(_from_environ(source))
    if "headers" in source and "type" in source and "path" in source:
        return _in_origin_form(_from_scope(source))
    return Request(Headers(source))


def _from_object(source: Any) -> Request:
    headers = getattr(source, "headers", None)
    if headers is None:
        raise TypeError(
            "expected a request as bytes, WSGI environ, ASGI scope, object with headers, or mapping of headers; "
            f"got {type(source).__name__}"
        )
    # http.server calls it command and spells the version HTTP/1.1; the other libraries call it method.
    method = getattr(source, "command", None) or getattr(source, "method", None) or "GET"
    version = str(getattr(source, "request_version", None) or "HTTP/1.1").removeprefix("HTTP/")
    target = getattr(source, "path", None) or getattr(getattr(source, "url", None), "path", "/")
    return Request(Headers(_fields(headers)), str(method), str(target), version)


def _origin_form(target: str) -> tuple[str | None, str]:
    """A request target in origin form, and the host that it names where it came in absolute form.

    RFC 9112 section 3.2.2: a server must accept the absolute form, and take its host in place of the Host field.
    """
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return None, target
    host = rest
    for end in "/?#":
        host = host.partition(end)[0]
    path = rest[len(host) :]
    return host, path if path.startswith("/") else f"/{path}"


def _in_origin_form(request: Request) -> Request:
    if request.target.startswith("/"):
        return request
    host, target = _origin_form(request.target)
    # None, or several, are an error that the named host does not mend (RFC 9112 section 3.2).
    if host is None or len(request.headers.get_all("host")) != 1:
        return request
    headers = Headers([(name, host if name == "host" else value) for name, value in request.headers])
    return replace(request, headers=headers, target=target)


def scope_to_origin_form(scope: MutableMapping[str, Any]) -> None:
    """Put path and host of a target in absolute form where a scope has them, if the server has left that undone."""
    path: str = scope["path"]
    if "://" not in path:
        return
    # uvicorn puts its root path in front of whatever came as the target.
    root = str(scope.get("root_path") or "")
    root = root if path.startswith(root) else ""
    raw = bytes(scope.get("raw_path") or b"").decode("latin-1")
    host, target = _origin_form(raw.removeprefix(root) or path.removeprefix(root))
    fields = list(scope["headers"])
    if host is None or [name.lower() for name, _ in fields].count(b"host") != 1:
        return
    scope["path"] = root + (unquote(target) if raw else target)
    scope["raw_path"] = (root + target).encode("latin-1", "replace") if raw else None
    scope["headers"] = [
        (name, host.encode("latin-1", "replace") if name.lower() == b"host" else value) for name, value in fields
    ]


def environ_to_origin_form(environ: MutableMapping[str, Any]) -> None:
    """As :func:`scope_to_origin_form`, for a WSGI environ: some servers see to the path alone, some to neither."""
    host, target = _origin_form(str(environ.get("PATH_INFO", "")))
    if host is not None:
        environ["PATH_INFO"] = target
    for name in ("RAW_URI", "REQUEST_URI"):  # with escapes and query, where the server has one of them
        named, target = _origin_form(str(environ.get(name, "")))
        if named is not None:
            host, environ[name] = named, target
    if host is None:
        return
    environ["PATH_INFO"] = environ.get("PATH_INFO") or ("" if environ.get("SCRIPT_NAME") else "/")
    if "HTTP_HOST" in environ:
        environ["HTTP_HOST"] = host


def _from_environ(environ: Mapping[str, Any]) -> Request:
    fields = [
        (key[5:].replace("_", "-"), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    ]
    # WSGI keeps these two apart (PEP 3333).
    if environ.get("CONTENT_LENGTH"):
        fields.append(("Content-Length", environ["CONTENT_LENGTH"]))
    # What came, where a server has it: the path itself is decoded, and may hold any byte.
    if _CONTROL.search(str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or "")):
        raise HandshakeError("expected a request target without control characters, got one with them")
    target = (str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))) or "/"
    if environ.get("QUERY_STRING"):
        target += f"?{environ['QUERY_STRING']}"
    return Request(Headers(fields), str(environ["REQUEST_METHOD"]), target, http_version(environ))


def http_version(environ: Mapping[str, Any]) -> str:
    """The version of HTTP that the request in ``environ`` came with, such as "1.1"."""
    if "eventlet.input" in environ:
        return "1.1"  # eventlet says 1.0 of every request
    return str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).removeprefix("HTTP/")


def _from_scope(scope: Mapping[str, Any]) -> Request:
    query = scope.get("query_string") or b""
    # An application that is mounted may be given what is behind its prefix, which may be nothing.
    target = (scope["path"] or "/") + ("?" + query.decode("latin-1") if query else "")
    headers = Headers(scope["headers"])
    if scope.get("subprotocols") and "sec-websocket-protocol" not in headers:
        # Some servers (uvicorn with wsproto) take the field out of the headers.
        headers = Headers([*headers, ("sec-websocket-protocol", ", ".join(scope["subprotocols"]))])
    version = str(scope.get("http_version", "1.1"))
    return Request(headers, str(scope.get("method", "GET")), target, version)


def read_request_head(data: bytes) -> tuple[Request, bytes]:
    """Parse a raw request head (RFC 9112), and return it with the bytes that follow it.

    Raises:
        HandshakeError: it is incomplete, too long, or no HTTP request.
    """
    end = data.find(b"\r\n\r\n") + 4
    if (size := end if end >= 4 else len(data)) > MAX_HEAD:
        raise HandshakeError(f"expected an HTTP head of at most {MAX_HEAD} bytes, got {size}", status=431)
    # h11 takes its ten times longer, and knows why it refuses what it does.
    if httptools is not None and end >= 4 and (request := _read_plain(data[:end])) is not None:  # type: ignore[redundant-expr]
        return request, data[end:]
    return read_by_h11(data)


def read_by_h11(data: bytes) -> tuple[Request, bytes]:
    """What :func:`read_request_head` does, without httptools."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    event = _read_head(connection, data)
    assert isinstance(event, h11.Request)
    request = Request(
        Headers([(name, value) for name, value in event.headers]),
        event.method.decode("ascii"),
        event.target.decode("latin-1"),
        event.http_version.decode("ascii"),
    )
    return _in_origin_form(request), connection.trailing_data[0]


def as_parsed(fields: list[tuple[bytes, bytes]], head: bytes) -> Request | None:
    """The request with this head, if a parser's ``fields`` are the head to the letter and nothing about it is unusual.

    None where that is for h11 to judge. Names and method are trusted to be tokens.
    """
    first_line, _, rest = head.partition(b"\r\n")
    words = first_line.split(b" ")
    if len(words) != 3 or not words[0] or not words[1].startswith(b"/") or words[2] != b"HTTP/1.1":
        return None
    again = b"\r\n".join(map(b": ".join, fields))
    if rest != again + b"\r\n\r\n" or head.translate(None, _PLAIN) != b"\r\n" * (len(fields) + 2):
        return None
    # Spaces around a name are no part of it and those around a value are taken away, but not by every parser.
    if b" \r\n" in rest or b":  " in rest or b" :" in rest or len(head) > MAX_HEAD:
        return None
    headers = Headers(fields)
    # h11 has an opinion of lengths, and wants to know the host.
    if "content-length" in headers or "transfer-encoding" in headers or len(headers.get_all("host")) != 1:
        return None
    return Request(headers, words[0].decode("ascii"), words[1].decode("ascii"))


class _Fields(list[tuple[bytes, bytes]]):
    """Takes what httptools finds."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name, value))


def _read_plain(head: bytes) -> Request | None:
    """The request with this head, by httptools; None where that is for h11 to judge."""
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # as it says of every upgrade
    except httptools.HttpParserError:
        return None
    return as_parsed(fields, head)


def read_response_head(data: bytes) -> tuple[Response, bytes]:
    """Parse a raw response head (RFC 9112), and return it with the bytes that follow it. Raises as above."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    # h11 reads a response only to a request of its own; this one stands for the handshake that was sent.
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
        raise HandshakeError("expected a complete HTTP head that ends in an empty line, got only a part of one")
    # h11's own limit is for heads that are not complete yet.
    if (size := len(data) - len(connection.trailing_data[0])) > MAX_HEAD:
        raise HandshakeError(f"expected an HTTP head of at most {MAX_HEAD} bytes, got {size}", status=431)
    return event


def as_response(source: Any) -> Response:
    """A response as ``bytes`` (a raw head), an object with ``status_code`` and ``headers``, or (status, headers).

    Raises:
        HandshakeError: the raw head is no HTTP response.
        TypeError: it is none of these.
    """
    if isinstance(source, Response):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return read_response_head(bytes(source))[0]
    if isinstance(source, tuple) and len(source) == 2:
        return Response(int(source[0]), Headers(source[1]))
    status = getattr(source, "status_code", None) or getattr(source, "status", None)
    headers = getattr(source, "headers", None)
    if status is None or headers is None:
        raise TypeError(
            "expected a response as bytes, (status, headers), or object with status_code and headers; "
            f"got {type(source).__name__}"
        )
    return Response(int(status), Headers(_fields(headers)))


def _fields(headers: Any) -> Any:
    # httpx joins repeated fields in items(); multi_items() keeps them apart.
    return headers.multi_items() if hasattr(headers, "multi_items") else headers.items()


def check_status(status: Any) -> None:
    """Raise ValueError for what cannot be the status of a final response."""
    if not isinstance(status, int) or not 200 <= status < 600:
        raise ValueError(f"expected an HTTP status from 200 to 599, got {status!r}")


def write_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Header fields as bytes, each with the end of its line. Raises as :func:`write_head`."""
    pairs = list(fields)
    check_outgoing(pairs)
    return _lines(pairs)


def _lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in pairs]).encode("latin-1")


def write_head(first_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """A head as bytes: the first line, the header fields, and an empty line.

    Raises:
        ValueError: a field would break out of its line, or holds a character that ISO-8859-1 has not.
    """
    return b"%b\r\n%b\r\n" % (first_line.encode("latin-1"), write_fields(fields))


def write_switch(agreed: Sequence[tuple[str, str]], *lines: bytes) -> bytes:
    """The 101 (Switching Protocols) as bytes.

    Args:
        agreed: fields of :func:`~watershed_mw.core.handshake.negotiation.negotiate`.
        lines: further fields, by :func:`write_fields`.

    Raises:
        ValueError: as :func:`write_head`.
    """
    # All of them are this package's own words, but for the name that the application has chosen.
    for name, value in agreed:
        if name == "Sec-WebSocket-Protocol":
            check_outgoing([(name, value)])
    return b"".join((b"HTTP/1.1 101 Switching Protocols\r\n", _lines(agreed), *lines, b"\r\n"))


def write_response(status: int, fields: Iterable[tuple[str, str]], body: bytes | None = None) -> bytes:
    """A response as bytes; with a body it also gets its length, and the connection ends with it."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""  # For people alone: a client must not depend on it (RFC 9112 section 4).
    first_line = f"HTTP/1.1 {status} {phrase}"
    fields = list(fields)
    if body is None:
        return write_head(first_line, fields)
    # Who sends Upgrade must name it in Connection (RFC 9110 section 7.8).
    upgrade = any(name.lower() == "upgrade" for name, _ in fields)
    ends = [("Connection", "close, Upgrade" if upgrade else "close")]
    if status in (204, 304):
        body = b""  # and no length of one (RFC 9110 section 8.6)
    else:
        ends.append(("Content-Length", str(len(body))))
    pairs = [pair for pair in fields if pair[0].lower() not in ("connection", "content-length", "transfer-encoding")]
    return write_head(first_line, [*pairs, *ends]) + body


def write_refusal(error: HandshakeError, method: str = "GET") -> bytes:
    """The answer to a request that was refused, as plain text that says why; without it for HEAD."""
    fields = [*error.headers, ("Content-Type", "text/plain; charset=utf-8")]
    answer = write_response(error.status, fields, error.body)
    return answer if method != "HEAD" else answer.removesuffix(error.body)
