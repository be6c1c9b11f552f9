"""Test clients that speak ASGI without a server: their messages are accepted in every integration.

Starlette's TestClient as its users call it, without headers that they would not write; Channels' communicator; and a
bare scope. A real request is still checked completely.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, WebSocketRoute

from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.peers import Peer, head
from tests.support.threaded_servers import Uvicorn
from watershed_mw import AsyncConnection, WatershedASGI
from watershed_mw.asgi.servers import TEST_CLIENT, server_of
from watershed_mw.starlette import WatershedRoute

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette's word on the HTTP library below it
    from starlette.testclient import TestClient, WebSocketDenialResponse

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


async def plain(websocket: WebSocket) -> None:
    """An endpoint that does not know about this package."""
    await websocket.accept(next(iter(websocket.scope["subprotocols"]), None))
    async for message in websocket.iter_text():
        await websocket.send_text(message)


async def echo(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def upgraded(scope: Scope, receive: Receive, send: Send) -> None:
    await echo(await scope["watershed"].through(receive, send).accept(["chat.v1"], headers=[("x-app", "yes")]))


class _Upgraded:
    """An ASGI endpoint for Starlette's routes, which treat a function differently."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await upgraded(scope, receive, send)


ROUTES: list[BaseRoute] = [
    WebSocketRoute("/plain", plain),
    WebSocketRoute("/upgraded", _Upgraded()),
    WatershedRoute("/route", echo, protocols=["chat.v1"]),
]


def fastapi_app() -> FastAPI:
    app = FastAPI(routes=ROUTES)
    app.add_middleware(WatershedASGI)
    return app


FRONTS: dict[str, Any] = {
    "around Starlette": lambda: WatershedASGI(Starlette(routes=ROUTES)),
    "inside of Starlette": lambda: Starlette(routes=ROUTES, middleware=[Middleware(WatershedASGI)]),
    "inside of FastAPI": fastapi_app,
}


@pytest.fixture(params=FRONTS)
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    with TestClient(FRONTS[request.param]()) as client:
        yield client


PATHS = ["/plain", "/upgraded", "/route"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://testserver"},
        {"Sec-WebSocket-Key": KEY},
        {"Sec-WebSocket-Key": KEY, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
        {"sec-websocket-key": KEY, "upgrade": "websocket"},
        {"SEC-WEBSOCKET-KEY": "anything", "UPGRADE": "websocket"},
        {"X-Token": "abc", "Cookie": "a=1"},
    ],
    ids=lambda headers: " ".join(headers) or "none",
)
def test_starlettes_test_client_connects(client: TestClient, path: str, headers: dict[str, str]) -> None:
    with client.websocket_connect(path, headers=headers) as session:
        session.send_text("hi")
        assert session.receive_text() == "hi"


@pytest.mark.parametrize("path", PATHS)
def test_subprotocols_are_negotiated_with_a_test_client(client: TestClient, path: str) -> None:
    with client.websocket_connect(path, subprotocols=["chat.v1"]) as session:
        assert session.accepted_subprotocol == "chat.v1"


def test_headers_of_the_accept_reach_a_test_client(client: TestClient) -> None:
    with client.websocket_connect("/upgraded") as session:
        assert session.extra_headers == [(b"x-app", b"yes")]


@pytest.mark.parametrize("path", PATHS)
def test_checks_outside_the_servers_handshake_still_apply(client: TestClient, path: str) -> None:
    status, body = denied(client, path, {"Origin": "http://evil.example"})
    assert status == 403
    assert "evil.example" in body
    assert denied(client, path, {"Host": "a@evil"})[0] == 400


def denied(client: TestClient, path: str, headers: dict[str, str]) -> tuple[int, str]:
    session = client.websocket_connect(path, headers=headers)
    with pytest.raises(WebSocketDenialResponse) as denial:
        session.__enter__()
    return denial.value.status_code, denial.value.text


async def plain_asgi(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


@pytest.mark.parametrize("app", [plain_asgi, upgraded], ids=["plain", "upgraded"])
def test_channels_communicator_connects(app: Any) -> None:
    async def converse() -> None:
        communicator_class = import_module("channels.testing").WebsocketCommunicator
        communicator = communicator_class(WatershedASGI(app), "/chat")
        connected, _ = await communicator.connect()
        assert connected
        await communicator.send_to(text_data="hi")
        assert await communicator.receive_from() == "hi"
        await communicator.disconnect()

    asyncio.run(converse())


BARE: dict[str, Any] = {"type": "websocket", "path": "/", "headers": []}
REAL = [(b"Upgrade", b"websocket"), (b"sec-websocket-key", KEY.encode())]


@pytest.mark.parametrize(
    "scope, of_test_client",
    [
        (BARE, True),
        (BARE | {"http_version": "1.0"}, True),
        (BARE | {"http_version": "2"}, False),
        (BARE | {"headers": REAL}, False),
        (BARE | {"headers": [*REAL, (b"sec-websocket-key", b"testserver==")]}, True),
    ],
    ids=["no fields", "of HTTP/1.0", "of HTTP/2", "real", "Starlette's key"],
)
def test_scopes_of_test_clients_are_recognised(scope: dict[str, Any], of_test_client: bool) -> None:
    async def channel(*message: Any) -> Any: ...

    assert (server_of(scope, channel, channel) is TEST_CLIENT) is of_test_client


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto", "watershed_mw.uvicorn:WatershedProtocol"])
def test_a_real_request_with_a_test_clients_key_is_refused(ws: str) -> None:
    """A server that is recognised by its channels is never taken for a test client."""
    with Uvicorn(WatershedASGI(upgraded), ws=ws) as server, Peer(server.port) as peer:
        peer.send(head(Sec_WebSocket_Key="testserver=="))
        assert peer.refusal().status == 400
