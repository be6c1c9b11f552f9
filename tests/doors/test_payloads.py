"""The payloads that an ASGI application may send: the same under the uvicorn class and over ASGI messages."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.payloads import REFUSED, SENDABLE
from tests.support.peers import dial
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import Gate
from watershed_mw import WatershedASGI


@pytest.mark.parametrize("field", ["text", "bytes", "both"])
def test_asgi_messages_accept_every_payload_type(uvicorns: Uvicorn, field: str) -> None:
    """In either field: the type of a message is that of its payload."""
    failures = Gate[list[str]]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for data, message in SENDABLE.values():
            kind = field if field != "both" else "text" if isinstance(message, str) else "bytes"
            other = "bytes" if kind == "text" else "text"
            await send({"type": "websocket.send", kind: data, other: None})
        failed = []
        for data in REFUSED.values():
            try:
                await send({"type": "websocket.send", "text": data})
            except (TypeError, RuntimeError) as error:
                failed.append(type(error).__name__)
        failures.put(failed)

    run = uvicorns.run(app)
    with dial(uvicorns.port) as client:
        for _, message in SENDABLE.values():
            assert client.recv(LIMIT) == message
    assert run.outcome() is None
    # Without either field it is not a message.
    assert failures.get() == ["RuntimeError" if data is None else "TypeError" for data in REFUSED.values()]


@pytest.mark.parametrize("ws", ["websockets-sansio", "watershed_mw.uvicorn:WatershedProtocol"])
def test_connections_accept_every_payload_type(ws: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn = await scope["watershed"].accept()
        for data, _ in SENDABLE.values():
            await conn.send(data)
        for data in REFUSED.values():
            with pytest.raises(TypeError, match=r"expected str .*bytes-like"):
                await conn.send(data)

    with Uvicorn(ws=ws) as server:
        run = server.run(WatershedASGI(app))
        with dial(server.port) as client:
            for _, message in SENDABLE.values():
                assert client.recv(LIMIT) == message
        assert run.outcome() is None


def test_starlettes_methods_accept_every_payload_type(uvicorns: Uvicorn) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        for data, message in SENDABLE.values():
            sending: Any = websocket.send_text if isinstance(message, str) else websocket.send_bytes
            await sending(data)

    run = uvicorns.run(Starlette(routes=[WebSocketRoute("/", endpoint)]))
    with dial(uvicorns.port) as client:
        for _, message in SENDABLE.values():
            assert client.recv(LIMIT) == message
    assert run.outcome() is None
