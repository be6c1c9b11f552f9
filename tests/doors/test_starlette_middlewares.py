"""Middleware in front of a route: sessions, authentication, CORS, and other packages' middleware."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import Peer, binary, close, text
from tests.support.starlette_apps import SECRET, echo, get, page, plain, refused, tell, told, unsigned
from tests.support.threaded_servers import Uvicorn, errors_in
from watershed_mw import AsyncConnection, WatershedASGI
from watershed_mw.asgi import ASGIUpgrade
from watershed_mw.starlette import WatershedRoute, upgrade_of

# --- what the request knows ----------------------------------------------------------------------------------


class ByHeader(AuthenticationBackend):
    """Trusts a header for the user's name, which is enough for tests."""

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
    """The session cookie in which SessionMiddleware stores these values."""
    return TimestampSigner(SECRET).sign(base64.b64encode(json.dumps(session).encode())).decode()


@pytest.mark.need(10)
@pytest.mark.parametrize("front", [False, True], ids=["alone", "behind the middleware"])
def test_the_request_has_everything_that_middleware_adds(uvicorns: Uvicorn, front: bool) -> None:
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
    # A cookie with another signature gives no session, and the client counts as unknown.
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
def test_a_session_started_before_the_accept_is_a_cookie_on_the_101(uvicorns: Uvicorn, place: str) -> None:
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
    """Starlette's own check, in front of a native connection."""
    conn = await upgrade_of(websocket).accept()
    await tell(conn, conn.request.user.display_name)


@pytest.mark.need(9, 10)
def test_authentication_decides_before_the_101(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    def needs(scope: str) -> Callable[[Any], Any]:
        """As `requires` does, for a WatershedRoute's handler."""

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


def test_an_authentication_error_is_an_http_response(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    from starlette.authentication import AuthenticationError

    class Broken(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> None:
            raise AuthenticationError("no such user")

    middleware = [Middleware(AuthenticationMiddleware, backend=Broken())]
    uvicorns.run(Starlette(routes=[WatershedRoute("/", echo)], middleware=middleware))
    assert refused(uvicorns.port, "/").status == 403
    assert errors_in(caplog.records) == []


def test_cors_does_not_affect_websockets(uvicorns: Uvicorn) -> None:
    """CORS applies to pages: it neither admits a foreign WebSocket nor refuses an allowed one."""
    cors = Middleware(CORSMiddleware, allow_origins=["https://app.example"])
    routes = [WatershedRoute("/strict", echo), WatershedRoute("/app", echo, origins=["https://app.example"])]
    uvicorns.run(Starlette(routes=[Route("/", page), *routes], middleware=[cors]))
    assert get(uvicorns.port, "/", "Origin: https://app.example")["access-control-allow-origin"]
    assert refused(uvicorns.port, "/strict", Origin="https://app.example").status == 403
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/app", Origin="https://app.example")
        assert answer.all("access-control-allow-origin") == []


# --- middlewares of others -----------------------------------------------------------------------------------


class Watching:
    """A pure ASGI middleware: it sees the messages, and adds a header to the accept."""

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
def test_middleware_sees_the_handshake_but_not_the_frames(uvicorns: Uvicorn, place: str) -> None:
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


def test_middleware_of_mounts_and_routes_applies(uvicorns: Uvicorn) -> None:
    seen: list[str] = []
    route = WatershedRoute("/x", echo, middleware=[Middleware(Watching, seen=seen, name="x-route")])
    mount = Mount("/m", routes=[route], middleware=[Middleware(Watching, seen=seen, name="x-mount")])
    uvicorns.run(Starlette(routes=[mount], middleware=[Middleware(Watching, seen=seen, name="x-app")]))
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/m/x")
        assert [answer[name] for name in ("x-app", "x-mount", "x-route")] == ["was here"] * 3
    assert seen[:6] == ["websocket.connect"] * 3 + ["websocket.accept"] * 3


@pytest.mark.parametrize("place", ["outermost", "in Starlette's list"])
def test_the_middlewares_origins_apply(uvicorns: Uvicorn, place: str) -> None:
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
