"""An upgrade request as uvicorn hands it over: bytes that it read too far, and the ASGI scope.

uvicorn gives its WebSocket class the request head and nothing else. What came behind the head in the
same segment stays where its HTTP layer put it, and is fetched from there.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from .core.handshake import Request

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["left_behind", "make_scope", "remote_of", "shown_path"]


def left_behind(transport: asyncio.Transport) -> bytes:
    """Bytes that uvicorn's HTTP layer has read past the request head, as far as it still has them.

    RFC 6455 section 4.1 tells clients to wait for the answer, and some do not. zttp lets such bytes go.
    """
    parser = getattr(transport.get_protocol(), "conn", None)
    trailing = getattr(parser, "trailing_data", None)  # h11's own word for them
    if isinstance(trailing, tuple):
        return bytes(trailing[0])
    # httptools stops its caller with an exception that knows how far it got in the data of that call.
    stopped = sys.exception()
    if type(stopped).__name__ != "HttpParserUpgrade" or stopped is None or stopped.__traceback__ is None:
        return b""
    data = stopped.__traceback__.tb_frame.f_locals.get("data")
    offset = stopped.args[0] if stopped.args else None
    return data[offset:] if isinstance(data, bytes) and isinstance(offset, int) else b""


def make_scope(
    config: Config,
    transport: asyncio.Transport,
    request: Request,
    subprotocols: list[str],
    state: dict[str, Any],
    door: object,
) -> dict[str, Any]:
    """The connection's scope (ASGI, version 2.5 of its WebSocket part), as uvicorn's own classes make it."""
    raw_path, _, query = request.target.partition("?")
    root_path = config.root_path
    return {
        "type": "websocket",
        "asgi": {"version": config.asgi_version, "spec_version": "2.5"},
        "http_version": request.http_version,
        "scheme": "wss" if is_ssl(transport) else "ws",
        "server": get_local_addr(transport),
        "client": get_remote_addr(transport),
        "root_path": root_path,
        "path": root_path + unquote(raw_path),
        "raw_path": (root_path + raw_path).encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
        "subprotocols": subprotocols,
        "state": state,
        "extensions": {"websocket.http.response": {}, "watershed_mw": door},
    }


def remote_of(scope: dict[str, Any]) -> str:
    """The client as a log names it; a proxy's headers may have replaced the address and not known the port."""
    client = scope["client"]
    if not client:
        return ""
    host, port = client
    return f"{host}:{port}" if port else str(host)


def shown_path(scope: dict[str, Any], query: bool) -> str:
    """Path and query string for a log. What a query holds may be a token, so its values are hidden unless asked for."""
    path = quote(scope["path"])
    if not scope["query_string"]:
        return path
    text = scope["query_string"].decode("latin-1")
    if query:
        return f"{path}?{quote(text, safe='=&%+;,:@/?!$()*-._~')}"
    return f"{path}?{'&'.join(map(_without_value, text.split('&')))}"


def _without_value(field: str) -> str:
    name, equals, _ = field.partition("=")
    # Without a name there is only a value.
    return f"{quote(name, safe='%+')}=***" if equals else "***"
