"""The ASGI middleware under the uvicorn class, alone and in Starlette.

The fixtures of conftest.py run most tests on asyncio and uvloop, with h11 and httptools.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.frames import Opcode

from tests.support import LIMIT, SOON
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import ACCEPT, Peer, binary, close, dial, head, ping, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import AsyncConnection, ConnectionClosed, HandshakeError, WatershedASGI
from watershed_mw.sockets.tls_views import DetachedSocket

MIB = 2**20
Handler: TypeAlias = Callable[[Any], Awaitable[None]]


def bare(handler: Handler, **options: Any) -> ASGIApp:
    """The middleware around an application that only calls `handler` with the upgrade."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(scope["watershed"])

    return WatershedASGI(app, **options)


async def echo(upgrade: Any) -> None:
    """Echo, by iteration."""
    connection: AsyncConnection = await upgrade.accept()
    async for message in connection:
        await connection.send(message)


# --- an open connection ------------------------------------------------------------------------------------


def test_an_accepted_connection_echoes(every_uvicorn: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    run = every_uvicorn.run(bare(echo))
    with dial(every_uvicorn.port) as client:
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70000, b"y" * MIB):
            client.send(message)
            assert client.recv(LIMIT) == message
        client.close(3001, "enough")
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_the_accept_carries_subprotocol_and_headers(uvicorns: Uvicorn) -> None:
    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept(["b", "c"], headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        await connection.send(f"{connection.protocol} {connection.get_protocol()} {connection.remote}")

    uvicorns.run(bare(handler, protocols=["a"]))
    with Peer(uvicorns.port) as peer:
        answer = peer.open(Sec_WebSocket_Protocol="a, c, b")
        assert answer["sec-websocket-accept"] == ACCEPT
        assert answer["sec-websocket-protocol"] == "c"
        assert answer.all("set-cookie") == ["a=1", "b=2"]
        assert peer.text() == "c c {}:{}".format(*peer.sock.getsockname())
        assert peer.close() == (1000, "")


def test_the_connection_knows_its_scope(uvicorns: Uvicorn) -> None:
    paths = Inbox[tuple[str, bytes]]()

    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept()
        paths.put((connection.request["path"], connection.request["query_string"]))
        assert upgrade.request.target == "/room/blue?q=1"

    run = uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.open("/room/blue?q=1")
        assert peer.close() == (1000, "")
    assert paths.get() == ("/room/blue", b"q=1")
    assert run.outcome() is None


def test_native_events_arrive(uvicorns: Uvicorn) -> None:
    events = Inbox[tuple[Any, ...]]()

    async def handler(upgrade: Any) -> None:
        connection: AsyncConnection = await upgrade.accept()
        for name in ("text", "binary", "ping", "pong", "connection_reset", "error", "end"):
            connection.on(name, lambda *args, name=name: events.put((name, *args)))
        await connection.ping(b"ours")
        events.put(await connection.run())

    uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.open()
        asked = peer.frame()
        assert (asked.opcode, bytes(asked.data)) == (Opcode.PING, b"ours")
        peer.send(b"\x8a\x84\0\0\0\0ours")
        peer.send(text("t") + binary(b"b") + ping(b"theirs") + close(4000, "bye"))
        answer = peer.frame()
        assert (answer.opcode, bytes(answer.data)) == (Opcode.PONG, b"theirs")
        assert peer.close() == (4000, "bye")
    expected = [("pong", b"ours"), ("text", "t"), ("binary", b"b"), ("ping", b"theirs"), ("end", 4000, "bye")]
    assert [events.get() for _ in expected] == expected
    assert events.get() == (4000, "bye")
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert bytes(peer.frame().data) == b"ours"
        peer.vanish()
    assert [events.get() for _ in range(3)] == [("connection_reset",), ("end", 1006, ""), (1006, "")]


@pytest.mark.need(14, 15)
def test_a_handler_that_only_sends_stops_at_the_end(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    errors = Inbox[BaseException]()

    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept()
        try:
            while True:
                await connection.send("tick")  # no other await: send() alone has to let the event loop run
        except ConnectionClosed as error:
            errors.put(error)
            raise

    run = uvicorns.run(bare(handler))
    for leave in (Peer.vanish, lambda peer: peer.sock.close(), lambda peer: peer.send(close())):
        with Peer(uvicorns.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            leave(peer)
            assert isinstance(errors.get(), ConnectionClosed)
            assert run.outcome() is None  # that a client leaves is no failure, and is not logged as one
    assert errors_in(caplog.records) == []


@pytest.mark.need(4)
def test_a_slow_client_makes_send_wait(uvicorns: Uvicorn) -> None:
    stalled, message = Gate[int](), b"m" * 65536

    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept()
        sent = 0
        while not stalled.passed:
            sent += 1
            try:
                await asyncio.wait_for(connection.send(message), 0.3)
            except TimeoutError:
                stalled.put(sent)
        await connection.end(code=4000)

    run = uvicorns.run(bare(handler))
    with Peer(uvicorns.port, receive_buffer=4096) as slow:
        slow.open()
        count = stalled.get()
        assert count * len(message) < 8 * MIB
        for _ in range(count):
            assert bytes(slow.frame().data) == message
        assert slow.close()[0] == 4000
        slow.send(close(4000))
        slow.end()
    assert run.outcome() is None


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_connection_left_open_by_the_application_is_closed(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept()
        await connection.send("hi")
        if how == "raises":
            raise LookupError("a secret")

    run = uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "hi"
        assert peer.close() == (1000 if how == "returns" else 1011, "")
        peer.send(close())
        peer.end()
    assert (run.outcome() is None) is (how == "returns")


def test_an_application_may_receive_the_connect_message_itself(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        connection = await asyncio.wait_for(scope["watershed"].accept(), SOON)
        await connection.send("hi")

    uvicorns.run(WatershedASGI(app))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "hi"


def test_a_second_accept_is_a_clear_error(uvicorns: Uvicorn) -> None:
    errors = Inbox[BaseException | None]()

    async def handler(upgrade: Any) -> None:
        connection = await upgrade.accept()
        try:
            await upgrade.accept()
        except Exception as error:  # noqa: BLE001  # whichever it is, the test looks at it
            errors.put(error)
        else:
            errors.put(None)
        await connection.send("still mine")

    uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "still mine"
    error = errors.get()
    assert isinstance(error, RuntimeError | ValueError)
    assert "accept" in str(error)


# --- detached ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["returns", "raises"])
def test_a_detached_socket_belongs_to_the_application(every_uvicorn: Uvicorn, after: str) -> None:
    sockets, started, gate = Inbox[Any](), Gate[None](), Gate[None]()

    async def handler(upgrade: Any) -> None:
        started.put(None)
        await gate.wait()
        sockets.put(await upgrade.accept(detached=True, headers=[("X-Detached", "1")]))
        if after == "raises":
            raise LookupError

    run = every_uvicorn.run(bare(handler))
    with Peer(every_uvicorn.port) as peer:
        peer.send(head())
        started.get()
        peer.send(b"early bytes")
        gate.put(None)
        answer = peer.answer()
        assert (answer.status, answer["x-detached"]) == (101, "1")
        with sockets.get() as taken:
            run.outcome()
            assert isinstance(taken, DetachedSocket)
            taken.settimeout(LIMIT)
            early = b""
            while len(early) < len(b"early bytes"):  # in .head as far as the server had read it
                early += taken.recv(4)
            assert early == b"early bytes"
            assert taken.head == b""
            taken.sendall(b"raw")
            assert peer.sock.recv(100) == b"raw"
            peer.send(b"raw too")
            assert taken.recv(100) == b"raw too"
            # The event loop no longer owns it, so nothing else reads or closes it.
            with dial_page(every_uvicorn.port):
                pass
            peer.send(b"only mine")
            assert taken.recv(100) == b"only mine"
        assert peer.rest() == b""


@contextlib.contextmanager
def dial_page(port: int) -> Any:
    """One more iteration of the server's event loop."""
    with Peer(port) as peer:
        peer.send(b"\0\r\n\r\n")
        assert peer.answer().status == 400
        yield


def test_a_detached_socket_outlives_the_server() -> None:
    sockets = Inbox[Any]()

    async def handler(upgrade: Any) -> None:
        sockets.put(await upgrade.accept(detached=True))

    with Uvicorn(loop="uvloop", http="httptools") as server:
        server.run(bare(handler))
        peer = Peer(server.port)
        peer.open()
        taken = sockets.get()
    with peer, taken:
        taken.settimeout(LIMIT)
        taken.sendall(b"still here")
        assert peer.sock.recv(100) == b"still here"


# --- no connection -----------------------------------------------------------------------------------------


@pytest.mark.need(9)
def test_reject_sends_status_headers_and_body(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(upgrade: Any) -> None:
        await upgrade.reject(402, b"pay first", [("Retry-After", "5"), ("Content-Type", "a/b")])

    run = uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body, answer["retry-after"]) == (402, b"pay first", "5")
    assert answer["content-type"] == "a/b"
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize("status", [204, 304])
def test_a_rejection_without_a_body_has_no_body_headers(uvicorns: Uvicorn, status: int) -> None:
    run = uvicorns.run(bare(lambda upgrade: upgrade.reject(status, headers=[("ETag", '"1"')])))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body, answer["etag"]) == (status, b"", '"1"')
    assert answer.all("content-length") == []
    assert run.outcome() is None


@pytest.mark.parametrize(
    "status, changes",
    [
        pytest.param(400, {"Sec_WebSocket_Key": None}, id="no key"),
        pytest.param(426, {"Sec_WebSocket_Version": "8"}, id="version 8"),
        pytest.param(403, {"Origin": "http://evil.example"}, id="foreign origin"),
        pytest.param(403, {"Origin": "null"}, id="null origin"),
        pytest.param(403, {"Origin": "http://127.0.0.1.evil.example"}, id="origin that begins alike"),
    ],
)
def test_a_bad_handshake_never_reaches_the_application(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, status: int, changes: dict[str, Any]
) -> None:
    entered = Inbox[None]()

    async def handler(upgrade: Any) -> None:
        entered.put(None)

    uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.send(head(**changes))
        answer = peer.refusal()
    assert answer.status == status
    assert answer.body.startswith(b"expected")
    assert answer["content-type"].startswith("text/plain")
    if status == 426:
        assert answer["sec-websocket-version"] == "13"
    assert entered.empty
    assert errors_in(caplog.records) == []


def test_a_handshake_error_of_accept_is_answered_once_and_not_logged_as_an_error(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    errors = Inbox[HandshakeError]()

    async def handler(upgrade: Any) -> None:
        try:
            await upgrade.accept()
        except HandshakeError as error:
            errors.put(error)
            raise

    run = uvicorns.run(bare(handler, protocols=["chat"]))
    with Peer(uvicorns.port) as peer:
        peer.send(head(Sec_WebSocket_Protocol="Chat"))
        answer = peer.refusal()
    assert answer.status == errors.get().status == 400
    assert b"'Chat'" in answer.body
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.need(8)
@pytest.mark.parametrize(
    "origins, origin, status",
    [
        (None, "http://127.0.0.1", 101),
        (None, None, 101),
        (None, "http://127.0.0.1:81", 403),
        (["https://a.example"], "https://a.example", 101),
        (["https://a.example"], "http://a.example", 403),
        (["*.a.example"], "https://x.a.example", 101),
        ("*", "http://evil.example", 101),
    ],
)
def test_the_origins_option_allows_origins(uvicorns: Uvicorn, origins: Any, origin: str | None, status: int) -> None:
    uvicorns.run(bare(echo, origins=origins))
    with Peer(uvicorns.port) as peer:
        peer.send(head(Origin=origin))
        assert peer.answer().status == status


def test_a_client_may_vanish_before_the_accept(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    started, gate = Gate[None](), Gate[None]()

    errors = Inbox[ConnectionClosed]()

    async def handler(upgrade: Any) -> None:
        started.put(None)
        await gate.wait()
        try:
            await upgrade.accept()
        except ConnectionClosed as error:
            errors.put(error)
            raise

    run = uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        started.get()
        peer.vanish()
    # The loop is single-threaded: once it has served this, it has seen that the client has left.
    with dial_page(uvicorns.port):
        gate.put(None)
    assert errors.get().code == 1006
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


# --- options -----------------------------------------------------------------------------------------------


def test_options_override_uvicorns_settings() -> None:
    with Uvicorn(ws_max_size=10_000, ws_per_message_deflate=False) as server:
        server.run(bare(echo, max_message_size=1000, compression=True))
        with Peer(server.port) as peer:
            answer = peer.open(Sec_WebSocket_Extensions="permessage-deflate")
            assert answer["sec-websocket-extensions"].startswith("permessage-deflate")
            peer.send(binary(bytes(1001)))
            assert peer.close()[0] == 1009
        # Options that the middleware does not set come from uvicorn's settings.
        server.run(bare(echo))
        with Peer(server.port) as peer:
            answer = peer.open(Sec_WebSocket_Extensions="permessage-deflate")
            assert answer.all("sec-websocket-extensions") == []
            peer.send(binary(bytes(10_000)))
            assert len(peer.frame().data) == 10_000
            peer.send(binary(bytes(10_001)))
            assert peer.close()[0] == 1009


def test_unknown_and_invalid_options_are_refused_immediately() -> None:
    with pytest.raises(TypeError, match="max_size"):
        WatershedASGI(bare(echo), max_size=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_message_size"):
        WatershedASGI(bare(echo), max_message_size=-1)


# --- Starlette ---------------------------------------------------------------------------------------------


async def starlette_echo(websocket: WebSocket) -> None:
    connection = await websocket.scope["watershed"].accept()
    async for message in connection:
        await connection.send(f"{websocket.path_params['room']}: {message}")


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"page, {'watershed' in request.scope}")


async def plain(websocket: WebSocket) -> None:
    """Starlette's own WebSocket, which does not use the upgrade."""
    await websocket.accept()
    await websocket.send_text(f"plain {await websocket.receive_text()}")
    await websocket.close(4002)


ROUTES = [
    Route("/", page),
    WebSocketRoute("/plain", plain),
    Mount("/rooms", routes=[WebSocketRoute("/{room}", starlette_echo)]),
]


@pytest.mark.parametrize("place", ["outermost", "in Starlette's list"])
def test_the_middleware_works_in_starlette(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, place: str) -> None:
    if place == "outermost":
        app: Any = WatershedASGI(Starlette(routes=ROUTES), max_message_size=1000)
    else:
        app = Starlette(routes=ROUTES, middleware=[Middleware(WatershedASGI, max_message_size=1000)])
    uvicorns.run(app)
    with dial(uvicorns.port, "/rooms/blue") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "blue: hello"
    with dial(uvicorns.port, "/plain") as client:
        client.send("old")
        assert client.recv(LIMIT) == "plain old"
    with Peer(uvicorns.port) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert peer.refusal().body == b"page, False"
    with Peer(uvicorns.port) as peer:
        peer.send(head("/nowhere"))
        assert peer.refusal().status == 403
    with Peer(uvicorns.port) as peer:
        peer.send(head("/rooms/blue", Origin="http://evil.example"))
        assert peer.refusal().status == 403
    with Peer(uvicorns.port) as peer:
        peer.open("/rooms/blue")
        peer.send(binary(bytes(1001)))
        assert peer.close()[0] == 1009
    assert errors_in(caplog.records) == []


def test_http_and_lifespan_scopes_pass_unchanged() -> None:
    seen: list[tuple[Any, Any, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((dict(scope), receive, send))

    async def receive() -> dict[str, Any]:
        raise AssertionError("nobody asked")

    async def send(message: Any) -> None:
        raise AssertionError("nobody asked")

    scopes: list[dict[str, Any]] = [{"type": "http", "path": "/"}, {"type": "lifespan"}, {"type": "something new"}]
    for scope in scopes:
        asyncio.run(WatershedASGI(app)(scope, receive, send))
    assert seen == [(scope, receive, send) for scope in scopes]


def test_lifespan_state_works_under_uvicorn() -> None:
    states = Inbox[Any]()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        states.put("up")
        yield {"database": "open"}
        states.put("down")

    async def endpoint(websocket: WebSocket) -> None:
        states.put(websocket.state.database)
        await websocket.scope["watershed"].accept()

    app = WatershedASGI(Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan))
    with Uvicorn(app, lifespan="on") as server, Peer(server.port) as peer:
        peer.open()
        assert peer.close()[0] == 1000
    assert [states.get() for _ in range(3)] == ["up", "open", "down"]


def test_exception_details_do_not_reach_the_client(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(upgrade: Any) -> None:
        raise LookupError("a secret")

    uvicorns.run(bare(handler))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]
