"""Starlette under the uvicorn class: routes, the opening handshake, and refusals.

Applications are as users write them. Everything in front of a handler (sessions, authentication, CORS, a middleware of
the test's own) is observed by a bare TCP client.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, NoMatchFound, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.frames import Opcode

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import Peer, binary, close, dial, head, text
from tests.support.starlette_apps import echo, get, page, plain, refused, tell, told
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Inbox, eventually
from watershed_mw import (
    AsyncConnection,
    ConnectionClosed,
    DeflateOptions,
    HandshakeError,
    LocalProtocolError,
    WatershedASGI,
)
from watershed_mw.asgi import ASGIUpgrade
from watershed_mw.starlette import WatershedRoute, upgrade_of

# --- routes --------------------------------------------------------------------------------------------------


async def params(conn: AsyncConnection) -> None:
    request = conn.request
    assert isinstance(request, HTTPConnection)
    values = {name: [type(value).__name__, str(value)] for name, value in request.path_params.items()}
    await tell(conn, [request.scope["root_path"], request.url.path, values, dict(request.query_params)])


ROUTES = [
    Route("/", page),
    Route("/both", page),
    WatershedRoute("/both", echo),
    WatershedRoute("/echo", echo),
    WebSocketRoute("/plain", plain),
    WatershedRoute("/int/{number:int}/{rest:path}", params, name="number"),
    WatershedRoute("/uuid/{id:uuid}", params),
    WatershedRoute("/float/{x:float}", params),
    Mount(
        "/api",
        name="api",
        routes=[
            Route("/", page),
            Mount("/{tenant}", name="tenant", routes=[WatershedRoute("/rooms/{room}", params, name="room")]),
        ],
    ),
    Mount("/router", app=Router(routes=[WatershedRoute("/x", params)])),
    Host("other.example", Router(routes=[WatershedRoute("/hosted", params)])),
]


def test_ordinary_routes_and_websocket_routes_coexist(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    uvicorns.run(Starlette(routes=ROUTES))
    assert get(uvicorns.port, "/").body == b"a page"
    assert get(uvicorns.port, "/both").body == b"a page"
    for path in ("/both", "/echo"):
        with dial(uvicorns.port, path) as client:
            for message in ("Grüße", b"\x00\xff", "", "x" * 70000):
                client.send(message)
                assert client.recv(LIMIT) == message
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/plain", Sec_WebSocket_Protocol="old")
        assert (answer["sec-websocket-protocol"], answer["x-old"]) == ("old", "yes")
        peer.send(text("old") + binary(b"12345"))
        assert peer.text() == "plain old"
        assert json.loads(peer.text()) == {"bytes": 5}
        assert peer.close() == (4002, "done")
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/int/42/a/b%20c?q=1&q=2", ["", "/int/42/a/b c", {"number": ["int", "42"], "rest": ["str", "a/b c"]}]),
        ("/float/1.5", ["", "/float/1.5", {"x": ["float", "1.5"]}]),
        (
            "/uuid/00000000-0000-0000-0000-00000000000f",
            [
                "",
                "/uuid/00000000-0000-0000-0000-00000000000f",
                {"id": ["UUID", "00000000-0000-0000-0000-00000000000f"]},
            ],
        ),
        ("/api/t/rooms/r", ["/api/t", "/api/t/rooms/r", {"tenant": ["str", "t"], "room": ["str", "r"]}]),
        ("/router/x", ["/router", "/router/x", {}]),
    ],
)
def test_path_parameters_convertors_and_mounts_work(uvicorns: Uvicorn, path: str, expected: list[Any]) -> None:
    uvicorns.run(Starlette(routes=ROUTES))
    assert told(uvicorns.port, path) == [*expected, {"q": "2"} if "?" in path else {}]


def test_a_host_route_works(uvicorns: Uvicorn) -> None:
    uvicorns.run(Starlette(routes=ROUTES))
    assert told(uvicorns.port, "/hosted", Host="other.example")[1] == "/hosted"
    assert refused(uvicorns.port, "/hosted").status == 403


def test_the_root_path_of_a_server_reaches_the_handler() -> None:
    with Uvicorn(Starlette(routes=ROUTES), root_path="/front") as server:
        root, path, values, _ = told(server.port, "/api/t/rooms/r")
    assert (root, path) == ("/front/api/t", "/front/api/t/rooms/r")
    assert values == {"tenant": ["str", "t"], "room": ["str", "r"]}


def test_route_names_become_paths_and_urls(uvicorns: Uvicorn) -> None:
    app = Starlette(routes=ROUTES)
    assert app.url_path_for("number", number=7, rest="a/b") == "/int/7/a/b"
    assert app.url_path_for("api:tenant:room", tenant="t", room="r") == "/api/t/rooms/r"
    # The default name is that of the endpoint.
    assert app.url_path_for("echo") == "/both"
    with pytest.raises(NoMatchFound):
        app.url_path_for("number", number=7)

    async def urls(conn: AsyncConnection) -> None:
        await tell(conn, str(conn.request.url_for("urls")))

    uvicorns.run(Starlette(routes=[WatershedRoute("/urls", urls)]))
    assert told(uvicorns.port, "/urls", Host="site.example") == "ws://site.example/urls"


def test_a_route_has_starlettes_repr_and_equality() -> None:
    route = WatershedRoute("/echo", echo)
    assert repr(route) == "WatershedRoute(path='/echo', name='echo')"
    assert route == WatershedRoute("/echo", echo)
    assert route != WatershedRoute("/other", echo)
    assert route.endpoint is echo


def test_endpoints_may_be_methods_partials_and_objects(uvicorns: Uvicorn) -> None:
    class Greeter:
        async def method(self, conn: AsyncConnection) -> None:
            await tell(conn, "method")

        async def __call__(self, conn: AsyncConnection) -> None:
            await tell(conn, "object")

    greeter = Greeter()
    routes = [
        WatershedRoute("/method", greeter.method),
        WatershedRoute("/object", greeter),
        WatershedRoute("/partial", functools.partial(tell, value="partial")),
    ]
    uvicorns.run(Starlette(routes=routes))
    for name in ("method", "object", "partial"):
        assert told(uvicorns.port, f"/{name}") == name


def test_plain_requests_and_other_paths_are_not_matched(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    """Starlette's responses to a page request for a WebSocket's path, and to a WebSocket for an unknown path."""
    uvicorns.run(Starlette(routes=ROUTES))
    answer = get(uvicorns.port, "/echo")
    assert (answer.status, answer.body) == (404, b"Not Found")
    # For a WebSocket request without a route Starlette sends a close, which ASGI turns into a 403.
    for path in ("/nowhere", "/", "/int/abc/x", "/echo/", "/api/t/rooms/"):
        assert refused(uvicorns.port, path).status == 403, path
    assert errors_in(caplog.records) == []


def test_a_route_is_an_application_on_its_own(uvicorns: Uvicorn) -> None:
    uvicorns.run(Router(routes=[WatershedRoute("/echo", echo)]))
    with dial(uvicorns.port, "/echo") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "hello"


def test_an_invalid_option_of_a_route_is_an_error_at_definition() -> None:
    with pytest.raises(TypeError, match="max_size"):
        WatershedRoute("/", echo, max_size=1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_message_size"):
        WatershedRoute("/", echo, max_message_size=-1)


# --- the opening handshake -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offer, chosen",
    [("v1, v2", "v1"), ("v2, v1", "v2"), ("v1", "v1"), ("x, v1", "v1"), (["x", "v2"], "v2"), (None, None)],
)
def test_a_subprotocol_is_negotiated_by_the_route(uvicorns: Uvicorn, offer: Any, chosen: str | None) -> None:
    async def handler(conn: AsyncConnection) -> None:
        await tell(conn, conn.protocol)

    uvicorns.run(Starlette(routes=[WatershedRoute("/", handler, protocols=["v2", "v1"])]))
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/", Sec_WebSocket_Protocol=offer)
        assert answer.all("sec-websocket-protocol") == ([chosen] if chosen else [])
        assert json.loads(peer.text()) == chosen


def test_no_subprotocol_in_common_is_refused_before_the_handler(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    entered = Inbox[None]()

    async def handler(conn: AsyncConnection) -> None:
        entered.put(None)

    run = uvicorns.run(Starlette(routes=[WatershedRoute("/", handler, protocols=["v2", "v1"])]))
    answer = refused(uvicorns.port, "/", Sec_WebSocket_Protocol="V1, x")
    assert answer.status == 400
    assert b"'V1, x'" in answer.body
    assert run.outcome() is None
    assert entered.empty
    assert errors_in(caplog.records) == []


@pytest.mark.need(8)
@pytest.mark.parametrize("front", [False, True], ids=["alone", "behind the middleware"])
def test_a_route_validates_every_request(uvicorns: Uvicorn, front: bool) -> None:
    entered = Inbox[None]()

    async def handler(conn: AsyncConnection) -> None:
        entered.put(None)

    app: Any = Starlette(routes=[WatershedRoute("/", handler)])
    uvicorns.run(WatershedASGI(app) if front else app)
    assert refused(uvicorns.port, "/", Origin="http://evil.example").status == 403
    assert refused(uvicorns.port, "/", Sec_WebSocket_Key=None).status == 400
    answer = refused(uvicorns.port, "/", Sec_WebSocket_Version="8")
    assert (answer.status, answer["sec-websocket-version"]) == (426, "13")
    assert entered.empty
    with Peer(uvicorns.port) as peer:
        peer.open("/", Origin="http://127.0.0.1")
        assert peer.close() == (1000, "")


def test_options_of_a_route_override_those_of_the_middleware(uvicorns: Uvicorn) -> None:
    routes = [
        WatershedRoute("/own", echo, max_message_size=100, origins=["http://friend.example"]),
        WatershedRoute("/front", echo),
        WatershedRoute("/open", echo, origins="*"),
    ]
    uvicorns.run(WatershedASGI(Starlette(routes=routes), max_message_size=200, compression=False))
    for path, limit in (("/own", 100), ("/front", 200), ("/open", 200)):
        with Peer(uvicorns.port) as peer:
            answer = peer.open(path, Sec_WebSocket_Extensions="permessage-deflate")
            assert answer.all("sec-websocket-extensions") == []  # the middleware's, where the route says nothing
            peer.send(binary(bytes(limit)))
            assert len(peer.frame().data) == limit
            peer.send(binary(bytes(limit + 1)))
            assert peer.close()[0] == 1009
    # The middleware in front checks first.
    assert refused(uvicorns.port, "/own", Origin="http://friend.example").status == 403
    assert refused(uvicorns.port, "/open", Origin="http://evil.example").status == 403


def test_options_of_a_route_work_without_the_middleware(uvicorns: Uvicorn) -> None:
    route = WatershedRoute(
        "/", echo, origins=["http://friend.example"], compression=DeflateOptions(window_bits=9), max_message_rate=5
    )
    uvicorns.run(Starlette(routes=[route]))
    with Peer(uvicorns.port) as peer:
        offer = "permessage-deflate; server_max_window_bits=15"
        answer = peer.open(Origin="http://friend.example", Sec_WebSocket_Extensions=offer)
        assert "server_max_window_bits=9" in answer["sec-websocket-extensions"]
        peer.send(text("x") * 8)
        assert [peer.text() for _ in range(5)] == ["x"] * 5
        assert peer.close()[0] == 1008


@pytest.mark.need(27)
def test_a_route_counts_its_connections(uvicorns: Uvicorn) -> None:
    uvicorns.run(Starlette(routes=[WatershedRoute("/", echo, max_connections=1)]))
    with Peer(uvicorns.port) as first:
        first.open()
        assert refused(uvicorns.port, "/").status == 503
        first.send(close(1000))
        assert first.close() == (1000, "")
        first.end()

    def comes_in() -> bool:
        with Peer(uvicorns.port) as second:
            second.send(head())
            return second.answer().status == 101

    eventually(comes_in)


# --- the decision is the endpoint's --------------------------------------------------------------------------


@pytest.mark.need(9)
@pytest.mark.parametrize("status", [401, 404, 429])
@pytest.mark.parametrize("way", ["reject", "HTTPException", "handler of the application's"])
def test_a_refusal_has_status_headers_and_body(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, status: int, way: str
) -> None:
    class Refused(Exception):
        pass

    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        if way == "reject":
            await upgrade.reject(status, b"because\n", [("Retry-After", "7"), ("Content-Type", "text/plain")])
        elif way == "HTTPException":
            raise HTTPException(status, "because\n", headers={"Retry-After": "7"})
        else:
            raise Refused

    def answer_to(request: Any, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("because\n", status, headers={"Retry-After": "7"})

    route = WatershedRoute("/", handler, accept=False)
    run = uvicorns.run(Starlette(routes=[route], exception_handlers={Refused: answer_to}))
    answer = refused(uvicorns.port, "/")
    assert (answer.status, answer.body, answer["retry-after"]) == (status, b"because\n", "7")
    assert answer["content-type"].startswith("text/plain")
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_a_websocket_exception_before_the_accept_is_a_403(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        raise WebSocketException(1008, "no")

    uvicorns.run(Starlette(routes=[WatershedRoute("/", handler, accept=False)]))
    assert refused(uvicorns.port, "/").status == 403
    assert errors_in(caplog.records) == []


def test_an_accept_takes_protocols_headers_and_options(uvicorns: Uvicorn) -> None:
    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        room = request.path_params["room"]
        conn = await upgrade.accept(["room.v1"], headers=[("X-Room", room)], max_message_size=10)
        await echo(conn)

    uvicorns.run(Starlette(routes=[WatershedRoute("/{room}", handler, accept=False)]))
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/blue", Sec_WebSocket_Protocol="room.v1")
        assert (answer["x-room"], answer["sec-websocket-protocol"]) == ("blue", "room.v1")
        peer.send(text("0123456789"))
        assert peer.text() == "0123456789"
        peer.send(text("0123456789a"))
        assert peer.close()[0] == 1009


def test_a_second_answer_is_a_local_error(uvicorns: Uvicorn) -> None:
    errors = Inbox[Exception]()

    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        answers: list[Callable[[], Awaitable[Any]]] = [upgrade.accept, lambda: upgrade.reject(404)]
        await (upgrade.accept() if request.url.path == "/accept" else upgrade.reject(409))
        for answer in answers:
            try:
                await answer()
            except Exception as error:  # noqa: BLE001  # whichever it is, the test looks at it
                errors.put(error)

    uvicorns.run(Starlette(routes=[WatershedRoute("/{way}", handler, accept=False)]))
    with Peer(uvicorns.port) as peer:
        peer.open("/accept")
        assert peer.close() == (1000, "")
    assert refused(uvicorns.port, "/reject").status == 409
    for _ in range(4):
        assert isinstance(errors.get(), LocalProtocolError)


def test_an_endpoint_that_decides_nothing_is_an_error(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        pass

    uvicorns.run(Starlette(routes=[WatershedRoute("/", handler, accept=False)]))
    assert refused(uvicorns.port, "/").status == 500
    assert eventually(lambda: errors_in(caplog.records)) == ["ASGI callable returned without completing handshake."]


def test_a_failed_negotiation_may_be_caught(uvicorns: Uvicorn) -> None:
    errors = Inbox[HandshakeError]()

    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        try:
            await upgrade.accept(["v2"])
        except HandshakeError as error:
            errors.put(error)

    run = uvicorns.run(Starlette(routes=[WatershedRoute("/", handler, accept=False)]))
    assert refused(uvicorns.port, "/", Sec_WebSocket_Protocol="v1").status == 400
    assert errors.get().status == 400
    assert run.outcome() is None


def test_upgrade_of_without_the_middleware_says_what_is_missing(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    errors = Inbox[RuntimeError]()

    async def endpoint(websocket: WebSocket) -> None:
        try:
            upgrade_of(websocket)
        except RuntimeError as error:
            errors.put(error)
        await websocket.close()

    uvicorns.run(Starlette(routes=[WebSocketRoute("/", endpoint)]))
    assert refused(uvicorns.port, "/").status == 403
    assert "WatershedASGI" in str(errors.get())
    assert errors_in(caplog.records) == []


# --- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [True, False])
def test_an_error_before_the_accept_is_a_500_and_is_logged(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, accept: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise LookupError("a secret")

    class Failing:
        def __init__(self, app: ASGIApp) -> None:
            pass

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            fail()

    if accept:
        route = WatershedRoute("/", echo, middleware=[Middleware(Failing)])
    else:
        route = WatershedRoute("/", fail, accept=False)
    run = uvicorns.run(Starlette(routes=[route]))
    answer = refused(uvicorns.port, "/")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert isinstance(run.outcome(), LookupError)
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


@pytest.mark.parametrize(
    "error",
    [LookupError("a secret"), HTTPException(404), WebSocketException(1008)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_after_the_accept_closes_with_1011_and_is_logged(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def handler(conn: AsyncConnection) -> None:
        await conn.send("hi")
        raise error

    uvicorns.run(Starlette(routes=[WatershedRoute("/", handler)]))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "hi"
        code, reason = peer.close()
        if isinstance(error, WebSocketException):
            # Starlette's own handler closes with its code, as it does for its own WebSocket.
            assert code == 1008
        else:
            assert (code, reason) == (1011, "")
            assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]
        peer.send(close(code or 1000))
        peer.end()


@pytest.mark.need(14, 15)
def test_a_handler_that_only_sends_stops_when_its_client_leaves(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    errors = Inbox[ConnectionClosed]()

    async def handler(conn: AsyncConnection) -> None:
        try:
            while True:
                await conn.send("tick")
                await asyncio.sleep(0.001)
        except ConnectionClosed as error:
            errors.put(error)
            raise

    run = uvicorns.run(Starlette(routes=[WatershedRoute("/", handler)]))
    for leave, code in ((Peer.vanish, 1006), (lambda peer: peer.send(close(4001)), 4001)):
        with Peer(uvicorns.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            leave(peer)
            assert errors.get().code == code
            assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_a_route_handler_may_use_events(uvicorns: Uvicorn) -> None:
    ended = Inbox[tuple[int, str]]()

    async def handler(conn: AsyncConnection) -> None:
        conn.on("text", lambda message: conn.send(message.upper()))
        conn.on("ping", conn.send)
        ended.put(await conn.run())

    uvicorns.run(Starlette(routes=[WatershedRoute("/", handler)]))
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(text("loud") + b"\x89\x82\0\0\0\0hi" + close(4000, "bye"))
        # A PONG does not wait for the replies to messages.
        frames = [(frame.opcode, bytes(frame.data)) for frame in (peer.frame(), peer.frame(), peer.frame())]
        assert frames == [(Opcode.PONG, b"hi"), (Opcode.TEXT, b"LOUD"), (Opcode.BINARY, b"hi")]
        assert peer.close() == (4000, "bye")
    assert ended.get() == (4000, "bye")
