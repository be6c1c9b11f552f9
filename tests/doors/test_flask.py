"""Flask sugar: routes of a Shed, behind the whole of Flask's machinery, on werkzeug and through the test client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, current_app, g, redirect, request, session, url_for
from werkzeug.debug import DebuggedApplication
from werkzeug.test import Client

from tests.support import LIMIT
from watershed_mw import AsyncConnection, HandshakeError, ThreadConnection, WatershedWSGI, live_connections
from watershed_mw.flask import Shed, UpgradeResponse
from watershed_mw.testing import connect

from .support import Inbox, Peer, Werkzeug, close, dial, errors_in, eventually, head, text
from .wsgi_support import assert_quiet

EVENTS = Inbox[str]()
"""What the application says it does, in order."""


def application(**options: Any) -> Flask:
    app = Flask(__name__)
    app.secret_key = "secret"
    shed = Shed(app, **options)

    @app.before_request
    def before() -> Any:
        g.user = request.args.get("user", "nobody")
        if g.user == "banned":
            abort(403)
        return redirect("/login") if g.user == "stranger" else None

    @app.after_request
    def after(response: Any) -> Any:
        response.headers["X-After"] = "yes"
        session["seen"] = True
        return response

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        EVENTS.put("teardown")

    @app.get("/page")
    def page() -> str:
        return "page"

    @shed.route("/blocking/<int:number>", protocols=["chat.v2", "chat.v1"])
    def blocking(connection: ThreadConnection, number: int) -> None:
        EVENTS.put("handler")
        for message in connection:
            where = f"{request.path} {current_app.name == app.name} {url_for('page', _external=False)}"
            connection.send(f"{message!s} {number} {g.user} {where}")

    @shed.route("/async/<int:number>")
    async def asynchronous(connection: AsyncConnection, number: int) -> None:
        async for message in connection:
            where = f"{request.path} {current_app.name == app.name} {url_for('page', _external=False)}"
            await connection.send(f"{message!s} {number} {g.user} {where}")

    @shed.route("/background")
    def background(connection: ThreadConnection) -> None:
        connection.on("text", lambda message: connection.send(f"{message} {connection.request.args['user']}"))
        connection.on("end", lambda code, reason: EVENTS.put(f"end {code}"))
        connection.run_in_background()

    @shed.route("/events")
    async def events(connection: AsyncConnection) -> None:
        connection.on("text", connection.send)
        EVENTS.put(f"end {(await connection.run())[0]}")

    @shed.route("/raise")
    def raises(connection: ThreadConnection) -> None:
        raise LookupError("secret")

    @shed.route("/raise-async")
    async def raises_async(connection: AsyncConnection) -> None:
        raise LookupError("secret")

    @shed.route("/choose", accept=False)
    def choose() -> Any:
        if request.args.get("user") is None:
            return "who are you?", 401
        session["name"] = g.user

        def shout(connection: ThreadConnection) -> None:
            for message in connection:
                connection.send(str(message).upper())

        return shout

    @shed.route("/small", connection_options={"max_message_size": 10})
    def small(connection: ThreadConnection) -> None:
        for message in connection:
            connection.send(message)

    return app


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    while not EVENTS.empty:
        EVENTS.get()
    eventually(lambda: not live_connections(), "the end of every connection")


@pytest.fixture(scope="module")
def app() -> Flask:
    return application()


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_a_handler_has_its_parameters_and_its_context(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}/7?user=ann") as connection:
        connection.send("hi")
        assert connection.receive() == f"hi 7 ann /{way}/7 True /page"


def test_the_request_is_over_before_the_handler_begins(app: Flask) -> None:
    with connect(app.test_client(), "/blocking/7") as connection:
        assert [EVENTS.get(), EVENTS.get()] == ["teardown", "handler"]
        connection.send("hi")
        connection.receive()
        assert EVENTS.empty
    assert EVENTS.get() == "teardown"  # of the handler's own context


@pytest.mark.parametrize("way", ["background", "events"])
def test_connections_that_need_no_thread(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}?user=ann") as connection:
        connection.send("hi")
        assert connection.receive() == ("hi ann" if way == "background" else "hi")
    while (event := EVENTS.get()) == "teardown":
        pass
    assert event == "end 1000"


@pytest.mark.need(9, 10, 13)
def test_whatever_flask_refuses_is_refused_before_the_101(app: Flask) -> None:
    for path, status in (
        ("/blocking/7?user=banned", 403),
        ("/blocking/7?user=stranger", 302),
        ("/blocking/seven", 404),
        ("/nowhere", 404),
        ("/choose", 401),
    ):
        with pytest.raises(HandshakeError) as refused, connect(app.test_client(), path):
            pass
        assert refused.value.status == status
        if status == 401:
            assert refused.value.body == b"who are you?"


@pytest.mark.need(10)
def test_fields_of_the_response_and_the_session_go_with_the_101(app: Flask) -> None:
    with Werkzeug(app) as server, Peer(server.port) as peer:
        answer = peer.open("/choose?user=ann")
        assert answer["x-after"] == "yes"
        assert answer["set-cookie"].startswith("session=")
        assert not answer.all("content-length")
        peer.send(text("hi"))
        assert peer.text() == "HI"
        client = app.test_client()
        client.set_cookie("session", answer["set-cookie"].partition(";")[0].removeprefix("session="))
        with client.session_transaction() as kept:
            assert (kept["name"], kept["seen"]) == ("ann", True)


def test_subprotocols_are_negotiated(app: Flask) -> None:
    with connect(app.test_client(), "/blocking/7", protocols=["other", "chat.v1"]) as connection:
        assert connection.protocol == "chat.v1"
    with pytest.raises(HandshakeError) as refused, connect(app.test_client(), "/blocking/7", protocols=["other"]):
        pass
    assert refused.value.status == 400


@pytest.mark.parametrize("way", ["raise", "raise-async"])
@pytest.mark.parametrize("wrap", ["plain", "debug", "debugger"])
def test_a_handler_that_raises_is_logged_once_and_closes_with_1011(
    caplog: pytest.LogCaptureFixture, way: str, wrap: str
) -> None:
    app = application()
    app.debug = wrap == "debug"
    with Werkzeug(DebuggedApplication(app, evalex=True) if wrap == "debugger" else app) as server:
        with Peer(server.port) as peer:
            peer.open(f"/{way}")
            assert peer.close()[0] == 1011
            peer.send(close(1011))
            peer.end()
        assert server.access_log(1) == [f"GET /{way} 101"]
        assert server.troubles == []
    eventually(lambda: len(errors_in(caplog.records)) == 1, "one line in the log")
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


@pytest.mark.need(13)
@pytest.mark.parametrize("way", ["blocking/7", "async/7", "background", "events"])
def test_a_client_that_leaves_is_no_noise(caplog: pytest.LogCaptureFixture, app: Flask, way: str) -> None:
    with Werkzeug(app) as server:
        with Peer(server.port) as peer:
            peer.open(f"/{way}?user=ann")
            peer.send(text("hi"))
            assert peer.text().startswith("hi")
            peer.vanish()
        eventually(lambda: not live_connections(), "the end of the connection")
        assert server.access_log(1) == [f"GET /{way}?user=ann 101"]
        assert_quiet(server, caplog)


def test_pages_beside_it_are_untouched(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/page").text == "page"
    assert client.get("/blocking/7").status_code == 400  # as Flask answers where a WebSocket is asked for


def test_options_of_a_route_and_of_a_shed() -> None:
    app = application(max_message_size=100)
    for path, most in (("/small", 10), ("/events", 100)):
        with connect(app.test_client(), path) as connection:
            connection.send("x" * most)
            assert connection.receive() == "x" * most
            connection.send("x" * (most + 1))
            with contextlib.suppress(OSError):
                connection.receive()
            assert connection.close_code == 1009


def test_blueprints_and_init_app() -> None:
    shed = Shed(max_message_size=50)

    @shed.route("/late", endpoint="later")
    def late(connection: ThreadConnection) -> None:
        connection.send(url_for("later"))

    outer, inner = Blueprint("outer", __name__, url_prefix="/outer"), Blueprint("inner", __name__, url_prefix="/inner")
    inner_shed = Shed(inner)

    @inner_shed.route("/echo/<name>")
    async def echo(connection: AsyncConnection, name: str) -> None:
        await connection.send(f"{name} {url_for('outer.inner.echo', name='x')}")

    app = Flask(__name__)
    shed.init_app(app)
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    assert isinstance(app.wsgi_app, WatershedWSGI)
    assert not isinstance(app.wsgi_app.app, WatershedWSGI)
    with connect(app.test_client(), "/late") as connection:
        assert connection.receive() == "ws://localhost/late"
    with connect(app.test_client(), "/outer/inner/echo/ann") as connection:
        assert connection.receive() == "ann ws://localhost/outer/inner/echo/x"


def test_a_view_may_return_the_response_itself() -> None:
    app = Flask(__name__)
    app.wsgi_app = WatershedWSGI(app.wsgi_app)  # type: ignore[method-assign]

    @app.route("/", websocket=True)
    def view() -> UpgradeResponse:
        response = UpgradeResponse(lambda connection: connection.send("hi"))
        response.headers["X-Own"] = "yes"
        return response

    with Werkzeug(app) as server, Peer(server.port) as peer:
        assert peer.open("/")["x-own"] == "yes"
        assert peer.text() == "hi"


def test_without_the_middleware_it_is_a_clear_error() -> None:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: UpgradeResponse(lambda connection: None), websocket=True)
    with pytest.raises(RuntimeError, match="expected WatershedWSGI around the application"):
        app.test_client().get("/", headers={"Upgrade": "websocket", "Connection": "Upgrade"})


def test_a_coroutine_function_is_no_handler_of_a_threads_event() -> None:
    errors = Inbox[str]()

    async def handler(message: str) -> None: ...

    app = Flask(__name__)
    shed = Shed(app)

    @shed.route("/")
    def view(connection: ThreadConnection) -> None:
        for attempt in (lambda: connection.on("text", handler), lambda: connection.run_in_background(print)):  # type: ignore[arg-type]
            try:
                attempt()
            except TypeError as error:
                errors.put(str(error))

    with connect(app.test_client(), "/"):
        pass
    assert errors.get().startswith("expected a function that may block as handler of 'text', got the coroutine")
    assert errors.get().startswith("expected a coroutine function (async def) to run in the background, got")


@pytest.mark.need(12)
def test_async_handlers_hold_no_thread(app: Flask) -> None:
    with Werkzeug(app, threaded=False) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.port, "/async/7")) for _ in range(20)]
        for client in clients:
            client.send("hi")
            assert str(client.recv(LIMIT)).startswith("hi 7")
        with Peer(server.port) as peer:  # the one thread is free
            peer.send(b"GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert peer.answer().body == b"page"
        with Peer(server.port) as peer:
            peer.send(head("/choose"))
            assert peer.refusal().status == 401


# --- the test client -------------------------------------------------------------------------------------------


@pytest.mark.need(20)
def test_the_test_client_keeps_cookies_both_ways(app: Flask) -> None:
    client = app.test_client()
    with connect(client, "/choose?user=ann") as connection:
        connection.send("hi")
        assert connection.receive() == "HI"
    with client.session_transaction() as kept:
        assert kept["name"] == "ann"


@pytest.mark.need(20)
def test_the_test_client_never_waits_for_ever() -> None:
    app = Flask(__name__)
    shed = Shed(app)
    gate = Inbox[None]()

    @shed.route("/silent")
    def silent(connection: ThreadConnection) -> None:
        for _ in connection:
            pass

    @shed.route("/undecided", accept=False)
    def undecided() -> Any:
        gate.get()
        return "no", 403

    with connect(app.test_client(), "/silent", timeout=0.1) as connection:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.receive()
        assert time.monotonic() - begun < LIMIT
    with pytest.raises(TimeoutError), connect(app.test_client(), "/undecided", timeout=0.1):
        pass
    gate.put(None)


@pytest.mark.need(20)
def test_what_the_application_raises_is_raised_in_the_test() -> None:
    def bare(environ: dict[str, Any], start_response: Any) -> Any:
        connection = environ["watershed"].accept()
        connection.receive()
        raise LookupError("in the application")

    def converse() -> None:
        with connect(Client(WatershedWSGI(bare)), "/") as connection:
            connection.send("go on")
            assert list(connection) == []
            assert connection.close_code == 1011

    with pytest.raises(LookupError, match="in the application"):
        converse()


@pytest.mark.need(20)
def test_the_application_closes(app: Flask) -> None:
    app = Flask(__name__)

    @Shed(app).route("/")
    def bye(connection: ThreadConnection) -> None:
        connection.end("bye", code=4001)

    with connect(app.test_client(), "/") as connection:
        assert list(connection) == []
        assert (connection.close_code, connection.close_reason) == (4001, "bye")
