"""Converts requests and responses from other libraries to the core's :class:`Request` and :class:`Response`.

WSGI environs, ASGI scopes, requests of well-known libraries and plain mappings arrive already parsed. Raw heads go to
:mod:`watershed_mw.http.parse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Request, Response
from ..errors import HandshakeError
from .parse import read_request_head, read_response_head
from .target import CONTROL, in_origin_form

__all__ = ["as_request", "as_response", "http_version"]


def as_request(source: Any) -> Request:
    """Convert a request from any of these forms:

    - ``bytes``: a raw request head, ending in an empty line
    - a WSGI environ
    - an ASGI scope of type ``websocket`` or ``http``
    - an object with ``headers`` and a method, such as a handler of ``http.server``, ``httpx.Request``
    - a mapping of header names to values, taken as ``GET`` with HTTP/1.1

    Raises:
        HandshakeError: the raw head is not an HTTP request (400) or longer than 64 KiB (431), or the target holds a
            control character (400).
        TypeError: ``source`` has none of these forms.
    """
    if isinstance(source, Request):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return read_request_head(bytes(source))[0]
    if not isinstance(source, Mapping):
        return in_origin_form(_from_object(source))
    if "REQUEST_METHOD" in source:
        return in_origin_form(_from_environ(source))
    if "headers" in source and "type" in source and "path" in source:
        return in_origin_form(_from_scope(source))
    return Request(Headers(source))


def _from_object(source: Any) -> Request:
    headers = getattr(source, "headers", None)
    if headers is None:
        raise TypeError(
            "expected a request as bytes, WSGI environ, ASGI scope, object with headers, or mapping of headers; "
            f"got {type(source).__name__}"
        )
    # http.server has command and request_version; other libraries have method, and no version.
    method = getattr(source, "command", None) or getattr(source, "method", None) or "GET"
    version = str(getattr(source, "request_version", None) or "HTTP/1.1").removeprefix("HTTP/")
    target = getattr(source, "path", None) or getattr(getattr(source, "url", None), "path", "/")
    return Request(Headers(_fields(headers)), str(method), str(target), version)


def _from_environ(environ: Mapping[str, Any]) -> Request:
    fields = [
        (key[5:].replace("_", "-"), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    ]
    # WSGI passes this field without the prefix HTTP_ (PEP 3333).
    if environ.get("CONTENT_LENGTH"):
        fields.append(("Content-Length", environ["CONTENT_LENGTH"]))
    # Only the raw target shows this, where the server keeps it: PATH_INFO is decoded and may hold any byte.
    if CONTROL.search(str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or "")):
        raise HandshakeError("expected a request target without control characters, got at least one")
    target = (str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))) or "/"
    if environ.get("QUERY_STRING"):
        target += f"?{environ['QUERY_STRING']}"
    return Request(Headers(fields), str(environ["REQUEST_METHOD"]), target, http_version(environ))


def http_version(environ: Mapping[str, Any]) -> str:
    """The HTTP version of the request, such as "1.1"."""
    if "eventlet.input" in environ:
        return "1.1"  # eventlet reports 1.0 for every request
    return str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).removeprefix("HTTP/")


def _from_scope(scope: Mapping[str, Any]) -> Request:
    query = scope.get("query_string") or b""
    # A mounted application gets the path after its prefix, which may be empty.
    target = (scope["path"] or "/") + ("?" + query.decode("latin-1") if query else "")
    headers = Headers(scope["headers"])
    if scope.get("subprotocols") and "sec-websocket-protocol" not in headers:
        # Some servers (uvicorn with wsproto) remove the field from the headers.
        headers = Headers([*headers, ("sec-websocket-protocol", ", ".join(scope["subprotocols"]))])
    version = str(scope.get("http_version", "1.1"))
    return Request(headers, str(scope.get("method", "GET")), target, version)


def as_response(source: Any) -> Response:
    """Convert a response: ``bytes`` (a raw head), an object with ``status_code`` and ``headers``, or (status, headers).

    Raises:
        HandshakeError: the raw head is not an HTTP response.
        TypeError: ``source`` has none of these forms.
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
    # httpx joins repeated fields in items(); multi_items() keeps them separate.
    return headers.multi_items() if hasattr(headers, "multi_items") else headers.items()
