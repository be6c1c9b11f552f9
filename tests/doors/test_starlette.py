"""Starlette's sugar on our uvicorn class: routes, what stands in front of them, and who decides (issue 3, section 3).

Applications are as users write them. Everything in front of a handler (sessions, authentication, CORS, a
middleware of the test's own) is judged by what a bare TCP client gets to see.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, NoMatchFound, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.frames import Opcode

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import Peer, binary, close, dial, head, text
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

SECRET = "of a test"


async def echo(conn: AsyncConnection) -> None:
    async for message in conn:
        await conn.send(message)


async def tell(conn: AsyncConnection, value: Any) -> None:
    """Send a value as JSON."""
    await conn.send(json.dumps(value))


def told(port: int, path: str, **changes: Any) -> Any:
    """The value that the handler at `path` tells, before it closes with 1000."""
    with Peer(port) as peer:
        peer.open(path, **changes)
        value = json.loads(peer.text())
        assert peer.close() == (1000, "")
        return value


def refused(port: int, path: str, **changes: Any) -> Any:
    """The HTTP answer of a request that is not accepted."""
    with Peer(port) as peer:
        peer.send(head(path, **changes))
        return peer.refusal()


def get(port: int, path: str, *fields: str) -> Any:
    """The answer to an ordinary GET."""
    with Peer(port) as peer:
        peer.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: here", "Connection: close", *fields, "", ""]).encode())
        return peer.answer()


# --- routes ------------------------------------------------------------------------------------------------


async def params(conn: AsyncConnection) -> None:
    request = conn.request
    assert isinstance(request, HTTPConnection)
    values = {name: [type(value).__name__, str(value)] for name, value in request.path_params.items()}
    await tell(conn, [request.scope["root_path"], request.url.path, values, dict(request.query_params)])


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("a page")


async def plain(websocket: WebSocket) -> None:
    """Starlette's own WebSocket, of an application that knows nothing of this package."""
    await websocket.accept("old", headers=[(b"x-old", b"yes")])
    await websocket.send_text(f"plain {await websocket.receive_text()}")
    await websocket.send_json({"bytes": len(await websocket.receive_bytes())})
    await websocket.close(4002, "done")


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


def test_ordinary_routes_and_ours_stand_beside_each_other(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
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
def test_path_parameters_convertors_and_mounts(uvicorns: Uvicorn, path: str, expected: list[Any]) -> None:
    uvicorns.run(Starlette(routes=ROUTES))
    assert told(uvicorns.port, path) == [*expected, {"q": "2"} if "?" in path else {}]


def test_a_host_route(uvicorns: Uvicorn) -> None:
    uvicorns.run(Starlette(routes=ROUTES))
    assert told(uvicorns.port, "/hosted", Host="other.example")[1] == "/hosted"
    assert refused(uvicorns.port, "/hosted").status == 403


def test_the_root_path_of_a_server_reaches_the_handler() -> None:
    with Uvicorn(Starlette(routes=ROUTES), root_path="/front") as server:
        root, path, values, _ = told(server.port, "/api/t/rooms/r")
    assert (root, path) == ("/front/api/t", "/front/api/t/rooms/r")
    assert values == {"tenant": ["str", "t"], "room": ["str", "r"]}


def test_names_of_routes_become_paths_and_urls(uvicorns: Uvicorn) -> None:
    app = Starlette(routes=ROUTES)
    assert app.url_path_for("number", number=7, rest="a/b") == "/int/7/a/b"
    assert app.url_path_for("api:tenant:room", tenant="t", room="r") == "/api/t/rooms/r"
    # Its name is its endpoint's, unless it gets one.
    assert app.url_path_for("echo") == "/both"
    with pytest.raises(NoMatchFound):
        app.url_path_for("number", number=7)

    async def urls(conn: AsyncConnection) -> None:
        await tell(conn, str(conn.request.url_for("urls")))

    uvicorns.run(Starlette(routes=[WatershedRoute("/urls", urls)]))
    assert told(uvicorns.port, "/urls", Host="site.example") == "ws://site.example/urls"


def test_a_route_is_shown_and_compared_like_starlettes_own() -> None:
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


def test_requests_that_are_no_upgrade_or_go_elsewhere(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    """What Starlette says to a page request for a WebSocket's path, and to a WebSocket for no path at all."""
    uvicorns.run(Starlette(routes=ROUTES))
    answer = get(uvicorns.port, "/echo")
    assert (answer.status, answer.body) == (404, b"Not Found")
    # Starlette has only a close for a WebSocket request that no route fits, and ASGI makes that a 403.
    for path in ("/nowhere", "/", "/int/abc/x", "/echo/", "/api/t/rooms/"):
        assert refused(uvicorns.port, path).status == 403, path
    assert errors_in(caplog.records) == []


def test_a_route_alone_is_an_application(uvicorns: Uvicorn) -> None:
    uvicorns.run(Router(routes=[WatershedRoute("/echo", echo)]))
    with dial(uvicorns.port, "/echo") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "hello"


def test_a_bad_option_of_a_route_is_an_error_at_the_start() -> None:
    with pytest.raises(TypeError, match="max_size"):
        WatershedRoute("/", echo, max_size=1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_message_size"):
        WatershedRoute("/", echo, max_message_size=-1)


# --- the opening handshake ---------------------------------------------------------------------------------


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
def test_a_route_judges_every_request(uvicorns: Uvicorn, front: bool) -> None:
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


def test_options_of_a_route_go_before_those_of_the_middleware(uvicorns: Uvicorn) -> None:
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
    # The middleware in front judges first, whatever stands behind it.
    assert refused(uvicorns.port, "/own", Origin="http://friend.example").status == 403
    assert refused(uvicorns.port, "/open", Origin="http://evil.example").status == 403


def test_options_of_a_route_alone(uvicorns: Uvicorn) -> None:
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


# --- what the request knows --------------------------------------------------------------------------------


class ByHeader(AuthenticationBackend):
    """Who a request says that it is. Tests need no more."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        if name is None:
            return None
        return AuthCredentials(["authenticated", *(["admin"] if name == "root" else [])]), SimpleUser(name)


async def who(conn: AsyncConnection) -> None:
    request = conn.request
    await tell(
        conn,
        {
            "session": dict(request.session),
            "cookies": dict(request.cookies),
            "user": request.user.display_name,
            "authenticated": request.user.is_authenticated,
            "scopes": list(request.auth.scopes),
            "state": request.app.state.database,
            "agent": request.headers.get("user-agent"),
            "client": request.client.host,
        },
    )


def signed(session: Mapping[str, Any]) -> str:
    """The cookie in which SessionMiddleware keeps this."""
    return TimestampSigner(SECRET).sign(base64.b64encode(json.dumps(session).encode())).decode()


def unsigned(cookie: str) -> Any:
    """What SessionMiddleware has put into the Set-Cookie field of an answer."""
    match = re.match("session=([^;]*);", cookie)
    assert match is not None, cookie
    return json.loads(base64.b64decode(TimestampSigner(SECRET).unsign(match[1])))


@pytest.mark.need(10)
@pytest.mark.parametrize("front", [False, True], ids=["alone", "behind the middleware"])
def test_the_request_is_starlettes_with_everything_in_front(uvicorns: Uvicorn, front: bool) -> None:
    app = Starlette(
        routes=[Mount("/in", routes=[WatershedRoute("/who", who)])],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["*"]),
            Middleware(SessionMiddleware, secret_key=SECRET),
            Middleware(AuthenticationMiddleware, backend=ByHeader()),
            *([Middleware(WatershedASGI)] if front else []),
        ],
    )
    app.state.database = "open"
    uvicorns.run(app)
    cookie = f"session={signed({'cart': [1, 2]})}; other=1"
    answer = told(uvicorns.port, "/in/who", Cookie=cookie, X_User="root", User_Agent="test")
    assert answer == {
        "session": {"cart": [1, 2]},
        "cookies": {"session": cookie.partition("; ")[0].removeprefix("session="), "other": "1"},
        "user": "root",
        "authenticated": True,
        "scopes": ["authenticated", "admin"],
        "state": "open",
        "agent": "test",
        "client": "127.0.0.1",
    }
    # A cookie that somebody else has signed is no session, and a stranger is one.
    answer = told(uvicorns.port, "/in/who", Cookie="session=eyJjYXJ0IjogWzFdfQ==.aaaa.bbbb")
    assert (answer["session"], answer["user"], answer["authenticated"]) == ({}, "", False)


class Sessions(SessionMiddleware):
    """Starlette saves a session with an HTTP response; this saves it with the accept of a WebSocket as well."""

    def __init__(self, app: Any, *, secret_key: str) -> None:
        async def inner(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, renaming(send, "websocket.accept", "http.response.start"))

        super().__init__(inner, secret_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            send = renaming(send, "http.response.start", "websocket.accept")
        await super().__call__(scope, receive, send)


def renaming(send: Send, old: str, new: str) -> Send:
    async def renamed(message: MutableMapping[str, Any]) -> None:
        await send({**message, "type": new} if message["type"] == old else message)

    return renamed


@pytest.mark.need(10)
@pytest.mark.parametrize("place", ["no middleware", "first of the list", "last of the list", "outermost wrapper"])
def test_a_session_that_the_handler_begins_is_a_cookie_on_the_101(uvicorns: Uvicorn, place: str) -> None:
    async def login(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        request.session["name"] = request.query_params["name"]
        conn = await upgrade.accept(headers=[("Set-Cookie", "own=1")])
        assert conn.request is request
        await tell(conn, conn.request.session)

    ours, session = Middleware(WatershedASGI), Middleware(Sessions, secret_key=SECRET)
    stack = {"first of the list": [ours, session], "last of the list": [session, ours]}.get(place, [session])
    app: Any = Starlette(routes=[WatershedRoute("/login", login, accept=False)], middleware=stack)
    uvicorns.run(WatershedASGI(app) if place == "outermost wrapper" else app)
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/login?name=ann")
        session_cookie, own = sorted(answer.all("set-cookie"), reverse=True)
        assert own == "own=1"
        assert unsigned(session_cookie) == {"name": "ann"}
        assert json.loads(peer.text()) == {"name": "ann"}
        assert peer.close() == (1000, "")


@requires("admin")
async def admins_only(websocket: WebSocket) -> None:
    """Starlette's own check, in front of a connection of ours."""
    conn = await upgrade_of(websocket).accept()
    await tell(conn, conn.request.user.display_name)


@pytest.mark.need(9, 10)
def test_authentication_decides_before_the_101(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    def needs(scope: str) -> Callable[[Any], Any]:
        """As `requires` does, for a handler of WatershedRoute's."""

        def decorate(handler: Callable[[AsyncConnection], Awaitable[None]]) -> Any:
            async def checked(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
                if scope in request.auth.scopes:
                    await handler(await upgrade.accept())
                elif request.user.is_authenticated:
                    await upgrade.reject(403, b"not for you\n")
                else:
                    await upgrade.reject(401, b"who are you?\n", [("WWW-Authenticate", "X-User")])

            return checked

        return decorate

    @needs("admin")
    async def hello(conn: AsyncConnection) -> None:
        await tell(conn, conn.request.user.display_name)

    app = Starlette(
        routes=[WatershedRoute("/hello", hello, accept=False), WebSocketRoute("/requires", admins_only)],
        middleware=[Middleware(WatershedASGI), Middleware(AuthenticationMiddleware, backend=ByHeader())],
    )
    uvicorns.run(app)
    stranger = refused(uvicorns.port, "/hello")
    assert (stranger.status, stranger.body, stranger["www-authenticate"]) == (401, b"who are you?\n", "X-User")
    assert refused(uvicorns.port, "/hello", X_User="ann").status == 403
    assert refused(uvicorns.port, "/requires").status == 403  # Starlette's answer: a close before the accept
    for path in ("/hello", "/requires"):
        assert told(uvicorns.port, path, X_User="root") == "root"
    assert errors_in(caplog.records) == []


def test_an_authentication_error_is_an_http_answer(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    from starlette.authentication import AuthenticationError

    class Broken(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> None:
            raise AuthenticationError("no such user")

    middleware = [Middleware(AuthenticationMiddleware, backend=Broken())]
    uvicorns.run(Starlette(routes=[WatershedRoute("/", echo)], middleware=middleware))
    assert refused(uvicorns.port, "/").status == 403
    assert errors_in(caplog.records) == []


def test_cors_lets_websockets_pass_untouched(uvicorns: Uvicorn) -> None:
    """CORS is for pages: it neither lets a foreign WebSocket in nor keeps an allowed one out."""
    cors = Middleware(CORSMiddleware, allow_origins=["https://app.example"])
    routes = [WatershedRoute("/strict", echo), WatershedRoute("/app", echo, origins=["https://app.example"])]
    uvicorns.run(Starlette(routes=[Route("/", page), *routes], middleware=[cors]))
    assert get(uvicorns.port, "/", "Origin: https://app.example")["access-control-allow-origin"]
    assert refused(uvicorns.port, "/strict", Origin="https://app.example").status == 403
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/app", Origin="https://app.example")
        assert answer.all("access-control-allow-origin") == []


# --- middlewares of others ---------------------------------------------------------------------------------


class Watching:
    """A pure ASGI middleware: it sees what passes, and adds a header to the accept."""

    def __init__(self, app: ASGIApp, seen: list[str], name: str = "x-between") -> None:
        self.app = app
        self.seen = seen
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def seeing() -> MutableMapping[str, Any]:
            message = await receive()
            self.seen.append(message["type"])
            return message

        async def adding(message: MutableMapping[str, Any]) -> None:
            self.seen.append(message["type"])
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                message["headers"] = [*message.get("headers", ()), (self.name.encode(), b"was here")]
            await send(message)

        await self.app(scope, seeing, adding)


@pytest.mark.parametrize("place", ["alone", "inside the middleware", "outside the middleware", "on the route"])
def test_a_middleware_between_sees_the_handshake_and_not_the_frames(uvicorns: Uvicorn, place: str) -> None:
    seen: list[str] = []

    async def handler(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
        if "no" in request.query_params:
            await upgrade.reject(404, b"no such room\n")
        else:
            await echo(await upgrade.accept())

    watching, ours = Middleware(Watching, seen=seen), Middleware(WatershedASGI)
    route = WatershedRoute("/", handler, accept=False, middleware=[watching] if place == "on the route" else None)
    stack = {"alone": [watching], "inside the middleware": [ours, watching], "outside the middleware": [watching, ours]}
    uvicorns.run(Starlette(routes=[route], middleware=stack.get(place)))
    with Peer(uvicorns.port) as peer:
        assert peer.open()["x-between"] == "was here"
        peer.send(text("one"))
        assert peer.text() == "one"
        peer.send(close(4000))
        assert peer.close()[0] == 4000
    assert seen == ["websocket.connect", "websocket.accept"]
    answer = refused(uvicorns.port, "/?no")
    assert (answer.status, answer.body, answer["x-between"]) == (404, b"no such room\n", "was here")
    assert seen[2:] == ["websocket.connect", "websocket.http.response.start", "websocket.http.response.body"]


def test_middlewares_of_a_mount_and_of_a_route_all_stand_in_front(uvicorns: Uvicorn) -> None:
    seen: list[str] = []
    route = WatershedRoute("/x", echo, middleware=[Middleware(Watching, seen=seen, name="x-route")])
    mount = Mount("/m", routes=[route], middleware=[Middleware(Watching, seen=seen, name="x-mount")])
    uvicorns.run(Starlette(routes=[mount], middleware=[Middleware(Watching, seen=seen, name="x-app")]))
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/m/x")
        assert [answer[name] for name in ("x-app", "x-mount", "x-route")] == ["was here"] * 3
    assert seen[:6] == ["websocket.connect"] * 3 + ["websocket.accept"] * 3


@pytest.mark.parametrize("place", ["outermost", "in Starlette's list"])
def test_the_middleware_with_origins(uvicorns: Uvicorn, place: str) -> None:
    inner = [WatershedRoute("/ours", echo), WebSocketRoute("/plain", plain)]
    if place == "outermost":
        app: Any = WatershedASGI(Starlette(routes=inner), origins=["https://*.friend.example"])
    else:
        middleware = [Middleware(WatershedASGI, origins=["https://*.friend.example"])]
        app = Starlette(routes=inner, middleware=middleware)
    uvicorns.run(app)
    for path in ("/ours", "/plain"):
        assert refused(uvicorns.port, path, Origin="https://evil.example").status == 403
        with Peer(uvicorns.port) as peer:
            peer.open(path, Origin="https://a.friend.example")
            peer.send(text("hi") + binary(b"12345") + close(4002))
            assert peer.text() in ("hi", "plain hi")


# --- the decision is the endpoint's ------------------------------------------------------------------------


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


def test_a_websocket_exception_before_the_accept_is_starlettes_403(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_a_second_answer_is_a_mistake_of_the_program(uvicorns: Uvicorn) -> None:
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


def test_upgrade_of_without_a_middleware_says_what_is_missing(
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


# --- the end -----------------------------------------------------------------------------------------------


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
def test_an_error_after_the_accept_is_1011_and_is_logged(
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
def test_a_handler_that_only_sends_stops_with_its_client(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
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


def test_events_from_a_handler_of_a_route(uvicorns: Uvicorn) -> None:
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
