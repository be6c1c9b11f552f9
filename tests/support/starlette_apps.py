"""Handlers for the Starlette tests, and clients for them."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from itsdangerous import TimestampSigner
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket

from tests.support.peers import Peer, head
from watershed_mw import AsyncConnection

SECRET = "of a test"


async def echo(conn: AsyncConnection) -> None:
    async for message in conn:
        await conn.send(message)


async def tell(conn: AsyncConnection, value: Any) -> None:
    """Send a value as JSON."""
    await conn.send(json.dumps(value))


def told(port: int, path: str, **changes: Any) -> Any:
    """The value that the handler at `path` sends before it closes with 1000."""
    with Peer(port) as peer:
        peer.open(path, **changes)
        value = json.loads(peer.text())
        assert peer.close() == (1000, "")
        return value


def refused(port: int, path: str, **changes: Any) -> Any:
    """The HTTP response to a request that is not accepted."""
    with Peer(port) as peer:
        peer.send(head(path, **changes))
        return peer.refusal()


def get(port: int, path: str, *fields: str) -> Any:
    """The response to an ordinary GET."""
    with Peer(port) as peer:
        peer.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: here", "Connection: close", *fields, "", ""]).encode())
        return peer.answer()


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("a page")


async def plain(websocket: WebSocket) -> None:
    """Starlette's own WebSocket, in an application that does not know about this package."""
    await websocket.accept("old", headers=[(b"x-old", b"yes")])
    await websocket.send_text(f"plain {await websocket.receive_text()}")
    await websocket.send_json({"bytes": len(await websocket.receive_bytes())})
    await websocket.close(4002, "done")


def unsigned(cookie: str) -> Any:
    """The contents of the session cookie that SessionMiddleware has set in a response."""
    match = re.match("session=([^;]*);", cookie)
    assert match is not None, cookie
    return json.loads(base64.b64decode(TimestampSigner(SECRET).unsign(match[1])))
