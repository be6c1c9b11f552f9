"""An upgrade request as uvicorn hands it over: the head, the bytes read past it, and the ASGI scope.

uvicorn gives its WebSocket class only the request head, serialized again from the result of its HTTP parser. Bytes that
followed the head in the same segment stay in the HTTP layer, and are taken from there; so are the parsed fields, if
they serialize to exactly this head.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from ..core.handshake.negotiation import Request
from ..errors import HandshakeError
from ..http.parse import as_parsed, read_request_head

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["early_bytes", "make_scope", "read_request", "scope_of_refused"]


def read_request(transport: asyncio.Transport, data: bytes) -> tuple[Request, list[tuple[bytes, bytes]], bytes]:
    """The request in ``data``, its header fields in ASGI's form, and the bytes after the head.

    uvicorn's HTTP layer has already parsed the head. Its result is used if it serializes to exactly these bytes;
    otherwise the head is parsed again.

    Raises:
        HandshakeError: as :func:`~watershed_mw.http.parse.read_request_head`.
    """
    http = transport.get_protocol()
    parsed = getattr(http, "headers", None)
    version = _http_version(http)
    if version == "1.1" and isinstance(parsed, list) and (taken := as_parsed(parsed, data)) is not None:
        return taken, parsed, b""
    request, rest = read_request_head(data)
    if request.http_version == "1.1":
        request = replace(request, http_version=version)
    return request, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers], rest


def _http_version(http: object) -> str:
    """The HTTP version of the request; the head that uvicorn writes always says 1.1."""
    scope = getattr(http, "scope", None)
    return str(scope.get("http_version", "1.1")) if isinstance(scope, dict) else "1.1"


def early_bytes(transport: asyncio.Transport) -> bytes:
    """Bytes that uvicorn's HTTP layer has read past the request head; call it only from within that layer's call.

    RFC 6455 section 4.1 requires clients to wait for the response, but some do not. zttp discards such bytes.

    Raises:
        HandshakeError: the HTTP layer does not reveal them (500). Accepting would silently lose them.
    """
    http = transport.get_protocol()
    parser = getattr(http, "conn", None)
    trailing = getattr(parser, "trailing_data", None)  # h11's own word for them
    if isinstance(trailing, tuple):
        return bytes(trailing[0])
    if type(parser).__module__.partition(".")[0] == "zttp":
        return b""
    early = _after_upgrade(sys.exception())
    if early is None:
        raise HandshakeError(
            f"expected a uvicorn HTTP class that keeps the bytes after a request head, got {type(http).__name__} of "
            f"uvicorn {uvicorn.__version__}, where they were not found: upgrade watershed_mw, or run uvicorn with "
            "--http h11",
            status=500,
            body=b"the server does not understand its own HTTP layer: its log says more\n",
        )
    return early


def _after_upgrade(stopped: BaseException | None) -> bytes | None:
    """The bytes after the head in the data that httptools was given; None if they are not found.

    httptools stops uvicorn with an exception that holds the offset of the first byte after the HTTP request. The data
    is a local variable of the uvicorn method that caught the exception.
    """
    if stopped is None or type(stopped).__name__ != "HttpParserUpgrade" or stopped.__traceback__ is None:
        return None
    data = stopped.__traceback__.tb_frame.f_locals.get("data")
    offset = stopped.args[0] if stopped.args else None
    if not isinstance(data, bytes) or not isinstance(offset, int) or not 0 <= offset <= len(data):
        return None
    return data[offset:]


def make_scope(
    config: Config,
    transport: asyncio.Transport,
    request: Request,
    fields: list[tuple[bytes, bytes]],
    subprotocols: list[str],
    state: dict[str, Any],
    door: object,
) -> dict[str, Any]:
    """The connection's scope (version 2.5 of ASGI's WebSocket specification), as uvicorn's own classes make it.

    Args:
        config: uvicorn's configuration.
        transport: the client's.
        request: the request.
        fields: its header fields, with lower-case names.
        subprotocols: the subprotocols that it offers.
        state: state of the application's lifespan.
        door: the value of ``extensions["watershed_mw"]``.
    """
    raw_path, _, query = request.target.partition("?")
    root_path = config.root_path
    secure, server, client = _ends(transport)
    return {
        "type": "websocket",
        "asgi": {"version": config.asgi_version, "spec_version": "2.5"},
        "http_version": request.http_version,
        "scheme": "wss" if secure else "ws",
        "server": server,
        "client": client,
        "root_path": root_path,
        "path": root_path + (unquote(raw_path) if "%" in raw_path else raw_path),
        "raw_path": (root_path + raw_path).encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": fields,
        "subprotocols": subprotocols,
        "state": state,
        "extensions": {"websocket.http.response": {}, "watershed_mw": door},
    }


def scope_of_refused(transport: asyncio.Transport, request: Request | None) -> dict[str, Any]:
    """The part of a scope that a log line needs, for a request that is invalid or refused before it has a scope."""
    path, _, query = ("?", "", "") if request is None else request.target.partition("?")
    return {"client": _ends(transport)[2], "path": unquote(path), "query_string": query.encode("latin-1")}


def _ends(transport: asyncio.Transport) -> tuple[bool, Any, Any]:
    """Whether the transport is secure, and the addresses of both ends, in ASGI's form."""
    http: Any = transport.get_protocol()
    try:
        return http.scheme == "https", http.server, http.client  # uvicorn has already asked the kernel
    except AttributeError:
        return is_ssl(transport), get_local_addr(transport), get_remote_addr(transport)
