"""FastAPI under the uvicorn class: a connection among dependencies and security schemes.

A refusal of a dependency has to be an HTTP response, and what a dependency opened has to be closed again: both are
observed from outside, by a bare TCP client and by the dependencies' reports.
"""

# No `from __future__ import annotations` here: FastAPI could not look up names that are local to a test.
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection

from tests.support import LIMIT
from tests.support.fastapi_apps import application, refused, tell, told
from tests.support.peers import Peer, close, dial, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Inbox, eventually
from watershed_mw import AsyncConnection, ConnectionClosed, WatershedASGI
from watershed_mw.asgi import ASGIUpgrade
from watershed_mw.fastapi import Accepted, upgrade

Connection = Annotated[AsyncConnection, Depends(Accepted())]
Upgrade = Annotated[ASGIUpgrade, Depends(upgrade)]


# --- a connection as a dependency ----------------------------------------------------------------------------


def test_an_endpoint_gets_its_connection(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    app = application()

    @app.websocket("/echo")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    @app.get("/echo")
    async def page() -> str:
        return "a page"

    @app.websocket("/plain")
    async def plain(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"plain {await websocket.receive_text()}")
        await websocket.close(4002)

    uvicorns.run(app)
    with dial(uvicorns.port, "/echo") as client:
        for message in ("Grüße", b"\x00\xff", ""):
            client.send(message)
            assert client.recv(LIMIT) == message
    with Peer(uvicorns.port) as peer:
        peer.send(b"GET /echo HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert peer.answer().body == b'"a page"'
    with Peer(uvicorns.port) as peer:
        peer.open("/plain")
        peer.send(text("old"))
        assert peer.text() == "plain old"
        assert peer.close() == (4002, "")
    assert errors_in(caplog.records) == []


def test_subprotocols_and_options_apply_per_endpoint(uvicorns: Uvicorn) -> None:
    app = application(max_message_size=1000, protocols=["front.v1"])

    @app.websocket("/own")
    async def own(conn: Annotated[AsyncConnection, Depends(Accepted(["own.v1"], max_message_size=10))]) -> None:
        await tell(conn, conn.protocol)
        await conn.receive()

    @app.websocket("/front")
    async def front(conn: Connection) -> None:
        await tell(conn, conn.protocol)
        await conn.receive()

    uvicorns.run(app)
    for path, limit in (("/own", 10), ("/front", 1000)):
        with Peer(uvicorns.port) as peer:
            answer = peer.open(path, Sec_WebSocket_Protocol=f"x, {path[1:]}.v1")
            assert answer["sec-websocket-protocol"] == f"{path[1:]}.v1"
            assert json.loads(peer.text()) == f"{path[1:]}.v1"
            peer.send(text("x" * (limit + 1)))
            assert peer.close()[0] == 1009
        assert refused(uvicorns.port, path, Sec_WebSocket_Protocol="x").status == 400


def test_the_request_of_the_connection_is_starlettes(uvicorns: Uvicorn) -> None:
    app = application()
    app.add_middleware(SessionMiddleware, secret_key="of a test")
    app.state.database = "open"

    @app.websocket("/rooms/{room}")
    async def endpoint(room: str, conn: Connection) -> None:
        request: HTTPConnection = conn.request
        assert isinstance(request, HTTPConnection)
        values = [request.path_params["room"], request.query_params["q"], request.cookies["c"], dict(request.session)]
        await tell(conn, [room, *values, request.app.state.database])

    uvicorns.run(app)
    assert told(uvicorns.port, "/rooms/blue?q=1", Cookie="c=d") == ["blue", "blue", "1", "d", {}, "open"]


@pytest.mark.need(8)
def test_a_page_of_another_host_never_reaches_a_dependency(uvicorns: Uvicorn) -> None:
    called = Inbox[None]()
    app = application(origins=["https://friend.example"])

    def dependency() -> None:
        called.put(None)

    @app.websocket("/", dependencies=[Depends(dependency)])
    async def endpoint(conn: Connection) -> None:
        await tell(conn, "hello")

    uvicorns.run(app)
    assert refused(uvicorns.port, "/", Origin="https://evil.example").status == 403
    assert called.empty
    assert told(uvicorns.port, "/", Origin="https://friend.example") == "hello"
    called.get()


def test_without_the_middleware_the_error_says_what_is_missing(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def endpoint(conn: Connection) -> None:
        await conn.send("never")

    run = uvicorns.run(app)
    assert refused(uvicorns.port, "/").status == 500
    error = run.outcome()
    assert isinstance(error, RuntimeError)
    assert "add_middleware(WatershedASGI)" in str(error)
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


# --- other dependencies --------------------------------------------------------------------------------------


@pytest.mark.need(10)
@pytest.mark.parametrize("ending", ["the endpoint returns", "the endpoint raises", "the client leaves", "it vanishes"])
def test_dependencies_that_yield_are_closed_with_the_connection(uvicorns: Uvicorn, ending: str) -> None:
    events = Inbox[str]()
    app = application()

    def engine() -> Iterator[str]:
        events.put("engine up")
        try:
            yield "engine"
        finally:
            events.put("engine down")

    async def session(engine: Annotated[str, Depends(engine)]) -> AsyncIterator[str]:
        events.put("session up")
        try:
            yield f"session of {engine}"
        finally:
            events.put("session down")

    def name(session: Annotated[str, Depends(session)], websocket: WebSocket) -> str:
        return f"{websocket.query_params['name']} in {session}"

    @app.websocket("/")
    async def endpoint(name: Annotated[str, Depends(name)], conn: Connection) -> None:
        await conn.send(name)
        events.put(f"received {await conn.receive()!r}")
        if ending == "the endpoint raises":
            raise LookupError("a secret")

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open("/?name=ann")
        assert peer.text() == "ann in session of engine"
        assert [events.get(), events.get()] == ["engine up", "session up"]
        assert events.empty  # open for as long as the endpoint runs
        if ending == "the client leaves":
            peer.send(close(4000))
        elif ending == "it vanishes":
            peer.vanish()
        else:
            peer.send(text("go"))
            assert events.get() == "received 'go'"
            assert peer.close()[0] == (1011 if ending == "the endpoint raises" else 1000)
        assert [events.get(), events.get()] == ["session down", "engine down"]
        assert isinstance(run.outcome(), LookupError) is (ending == "the endpoint raises")


def test_an_endpoint_that_raises_is_logged_and_the_client_gets_no_details(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    app = application()
    raised: list[Exception] = []

    @app.websocket("/")
    async def endpoint(conn: Connection) -> None:
        await conn.send("hi")
        raise raised[0]

    run = uvicorns.run(app)
    for error in (LookupError("a secret"), HTTPException(404, "a secret")):
        caplog.clear()
        raised[:] = [error]
        with Peer(uvicorns.port) as peer:
            peer.open()
            assert peer.text() == "hi"
            assert peer.close() == (1011, "")
            peer.send(close(1011))
            peer.end()
        assert run.outcome() is not None
        assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


@pytest.mark.need(15)
def test_a_client_disconnect_is_not_an_error_of_the_endpoint(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    app = application()
    seen = Inbox[ConnectionClosed]()

    @app.websocket("/")
    async def endpoint(conn: Connection) -> None:
        try:
            await conn.receive()
        except ConnectionClosed as error:
            seen.put(error)
            raise

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(close(4001, "bye"))
        assert peer.close() == (4001, "bye")
    assert (seen.get().code, run.outcome()) == (4001, None)
    assert errors_in(caplog.records) == []


def test_a_dependency_that_fails_before_the_accept_unwinds_the_others(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    events = Inbox[str]()
    app = application()

    def session() -> Iterator[None]:
        events.put("up")
        try:
            yield
        finally:
            events.put("down")

    def fails(how: str) -> None:
        raise HTTPException(418, "a teapot") if how == "refuses" else LookupError("a secret")

    @app.websocket("/{how}", dependencies=[Depends(session), Depends(fails)])
    async def endpoint(conn: Connection) -> None:
        events.put("the endpoint ran")

    run = uvicorns.run(app)
    answer = refused(uvicorns.port, "/refuses")
    assert (answer.status, json.loads(answer.body)) == (418, {"detail": "a teapot"})
    assert [events.get(), events.get(), run.outcome()] == ["up", "down", None]
    assert errors_in(caplog.records) == []
    answer = refused(uvicorns.port, "/fails")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert [events.get(), events.get()] == ["up", "down"]
    assert isinstance(run.outcome(), LookupError)
    assert events.empty


def test_dependencies_on_the_connection_may_follow_it(uvicorns: Uvicorn) -> None:
    app = application()

    async def first_message(conn: Connection) -> Any:
        return await conn.receive()

    async def hello(message: Annotated[Any, Depends(first_message)]) -> str:
        return f"hello {message}"

    @app.websocket("/")
    async def endpoint(conn: Connection, hello: Annotated[str, Depends(hello)]) -> None:
        await tell(conn, hello)

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(text("ann"))
        assert json.loads(peer.text()) == "hello ann"


def test_dependencies_that_share_a_connection_get_the_same_one(uvicorns: Uvicorn) -> None:
    app = application()
    accepted = Accepted()

    async def room(conn: Annotated[AsyncConnection, Depends(accepted)]) -> int:
        return conn.id

    @app.websocket("/")
    async def endpoint(
        room: Annotated[int, Depends(room)], conn: Annotated[AsyncConnection, Depends(accepted)]
    ) -> None:
        await tell(conn, conn.id == room)

    uvicorns.run(app)
    assert told(uvicorns.port, "/") is True


@pytest.mark.parametrize("place", ["of the endpoint", "of a dependency"])
def test_a_dependency_after_the_connection_is_an_error_that_names_it(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    app = application()
    called = Inbox[None]()

    def too_late() -> None:
        called.put(None)

    if place == "of the endpoint":

        @app.websocket("/")
        async def endpoint(conn: Connection, late: Annotated[None, Depends(too_late)]) -> None:
            called.put(None)

    else:

        def wraps(conn: Connection, late: Annotated[None, Depends(too_late)]) -> None:
            called.put(None)

        @app.websocket("/")
        async def other_endpoint(wrapped: Annotated[None, Depends(wraps)]) -> None:
            called.put(None)

    run = uvicorns.run(app)
    answer = refused(uvicorns.port, "/")
    assert answer.status == 500
    error = run.outcome()
    assert isinstance(error, RuntimeError)
    assert "too_late" in str(error)
    assert called.empty
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


def test_dependencies_can_be_overridden(uvicorns: Uvicorn) -> None:
    app = application()
    accepted = Accepted()

    def user() -> str:
        raise HTTPException(401)

    @app.websocket("/")
    async def endpoint(
        user: Annotated[str, Depends(user)], conn: Annotated[AsyncConnection, Depends(accepted)]
    ) -> None:
        await tell(conn, [user, conn.protocol])

    uvicorns.run(app)
    assert refused(uvicorns.port, "/").status == 401
    app.dependency_overrides[user] = lambda: "ann"
    assert told(uvicorns.port, "/") == ["ann", None]

    async def another(websocket: WebSocket) -> AsyncConnection:
        return await Accepted(["v1"])(websocket)

    app.dependency_overrides[accepted] = another
    assert told(uvicorns.port, "/", Sec_WebSocket_Protocol="v1") == ["ann", "v1"]


def test_the_lifespan_runs_before_and_after() -> None:
    events = Inbox[str]()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.put("up")
        yield {"database": "open"}
        events.put("down")

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(WatershedASGI)

    def database(request: HTTPConnection) -> str:
        state: str = request.state.database
        return state

    @app.websocket("/")
    async def endpoint(database: Annotated[str, Depends(database)], conn: Connection) -> None:
        await conn.send(database)
        events.put(str((await conn.run())[0]))

    with Uvicorn(app, lifespan="on") as server, Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "open"
        server.begin_stop()
        assert peer.close()[0] == 1012
        peer.send(close(1012))
    assert [events.get() for _ in range(3)] == ["up", "1012", "down"]


# --- routers -------------------------------------------------------------------------------------------------


def test_routers_work_with_prefixes_and_dependencies(uvicorns: Uvicorn) -> None:
    order = Inbox[str]()

    def note(word: str) -> Any:
        return Depends(lambda: order.put(word))

    def with_key(request: HTTPConnection) -> None:
        if request.query_params.get("key") != "open sesame":
            raise HTTPException(403, "the key is wrong")

    rooms = APIRouter(prefix="/rooms", dependencies=[note("router"), Depends(with_key)])

    @rooms.websocket("/{name}", dependencies=[note("route")])
    async def room(name: str, own: Annotated[None, note("endpoint")], conn: Connection) -> None:
        await tell(conn, [name, str(conn.request.url_for("room", name="x").path)])

    @rooms.get("/{name}")
    async def page(name: str, request: Request) -> str:
        return name

    app = FastAPI(dependencies=[note("application")])
    app.add_middleware(WatershedASGI)
    app.include_router(rooms, prefix="/api", dependencies=[note("include")])
    uvicorns.run(app)
    answer = refused(uvicorns.port, "/api/rooms/blue?key=wrong")
    assert (answer.status, json.loads(answer.body)) == (403, {"detail": "the key is wrong"})
    assert [order.get() for _ in range(3)] == ["application", "include", "router"]
    assert told(uvicorns.port, "/api/rooms/blue?key=open%20sesame") == ["blue", "/api/rooms/x"]
    assert [order.get() for _ in range(5)] == ["application", "include", "router", "route", "endpoint"]
    assert refused(uvicorns.port, "/rooms/blue?key=open%20sesame").status == 403  # no such path


# --- the endpoint decides ------------------------------------------------------------------------------------


@pytest.mark.need(9)
def test_the_upgrade_leaves_the_decision_to_the_endpoint(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    app = application()

    @app.websocket("/rooms/{name}")
    async def room(name: str, up: Upgrade) -> None:
        if name == "full":
            await up.reject(429, b"too many\n", [("Retry-After", "5")])
        elif name == "raises":
            raise HTTPException(404, "no such room")
        else:
            conn = await up.accept(["chat.v1"], headers=[("X-Room", name)], ping_interval=None)
            assert up.request.target == f"/rooms/{name}"
            await tell(conn, [conn.protocol, conn.request.path_params["name"]])

    uvicorns.run(app)
    answer = refused(uvicorns.port, "/rooms/full")
    assert (answer.status, answer.body, answer["retry-after"]) == (429, b"too many\n", "5")
    answer = refused(uvicorns.port, "/rooms/raises")
    assert (answer.status, json.loads(answer.body)) == (404, {"detail": "no such room"})
    with Peer(uvicorns.port) as peer:
        answer = peer.open("/rooms/blue", Sec_WebSocket_Protocol="chat.v1")
        assert (answer["x-room"], answer["sec-websocket-protocol"]) == ("blue", "chat.v1")
        assert json.loads(peer.text()) == ["chat.v1", "blue"]
        assert peer.close() == (1000, "")
    assert errors_in(caplog.records) == []


def test_the_applications_exception_handlers_respond(uvicorns: Uvicorn) -> None:
    class NotYet(Exception):
        pass

    app = application()

    @app.exception_handler(NotYet)
    async def not_yet(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"when": "later"}, 425)

    def dependency() -> None:
        raise NotYet

    @app.websocket("/", dependencies=[Depends(dependency)])
    async def endpoint(conn: Connection) -> None:
        await conn.send("never")

    uvicorns.run(app)
    answer = refused(uvicorns.port, "/")
    assert (answer.status, json.loads(answer.body)) == (425, {"when": "later"})
