"""Flask: routes of a Shed, behind all of Flask's machinery, on werkzeug and through the test client."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, current_app, request, session, url_for
from werkzeug.debug import DebuggedApplication
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.support import LIMIT
from tests.support.flask_app import EVENTS, application
from tests.support.peers import Peer, close, dial, head, text
from tests.support.threaded_servers import Werkzeug, errors_in
from tests.support.waiting import Inbox, eventually
from tests.support.wsgi_apps import assert_quiet
from watershed_mw import AsyncConnection, HandshakeError, ThreadConnection, WatershedWSGI, live_connections
from watershed_mw.flask import Shed, UpgradeResponse
from watershed_mw.testing import connect


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_a_handler_has_its_parameters_and_its_context(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}/7?user=ann") as connection:
        connection.send("hi")
        assert connection.receive() == f"hi 7 ann /{way}/7 True /page"


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_the_request_is_over_before_the_handler_begins(way: str) -> None:
    app, events = Flask(__name__), Inbox[str]()
    shed = Shed(app)
    app.before_request(lambda: events.put("before"))
    app.teardown_request(lambda error: events.put("teardown"))
    app.teardown_appcontext(lambda error: events.put("teardown of the application's context"))

    @app.after_request
    def after(response: Any) -> Any:
        events.put("after")
        return response

    @shed.route("/blocking")
    def blocking(connection: ThreadConnection) -> None:
        events.put("handler")
        connection.receive()

    @shed.route("/async")
    async def asynchronous(connection: AsyncConnection) -> None:
        events.put("handler")
        await connection.receive()

    torn_down = ["teardown", "teardown of the application's context"]
    with connect(app.test_client(), f"/{way}"):
        assert [events.get() for _ in range(5)] == ["before", "after", *torn_down, "handler"]
        assert events.empty
    assert [events.get(), events.get()] == torn_down  # of the handler's own context


@pytest.mark.parametrize("way", ["background", "events"])
def test_background_and_async_connections_need_no_thread(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}?user=ann") as connection:
        connection.send("hi")
        assert connection.receive() == ("hi ann" if way == "background" else "hi")
    while (event := EVENTS.get()) == "teardown":
        pass
    assert event == "end 1000"


@pytest.mark.need(9, 10, 13)
def test_flasks_refusals_are_sent_before_the_101(app: Flask) -> None:
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
def test_response_headers_and_the_session_go_with_the_101(app: Flask) -> None:
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
def test_a_client_disconnect_is_not_logged(caplog: pytest.LogCaptureFixture, app: Flask, way: str) -> None:
    with Werkzeug(app) as server:
        with Peer(server.port) as peer:
            peer.open(f"/{way}?user=ann")
            peer.send(text("hi"))
            assert peer.text().startswith("hi")
            peer.vanish()
        eventually(lambda: not live_connections(), "the end of the connection")
        assert server.access_log(1) == [f"GET /{way}?user=ann 101"]
        assert_quiet(server, caplog)


def test_other_pages_are_unaffected(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/page").text == "page"
    assert client.get("/blocking/7").status_code == 400  # as Flask answers where a WebSocket is asked for


def test_options_apply_per_route_and_per_shed() -> None:
    app = application(max_message_size=100)
    for path, most in (("/small", 10), ("/events", 100)):
        with connect(app.test_client(), path) as connection:
            connection.send("x" * most)
            assert connection.receive() == "x" * most
            connection.send("x" * (most + 1))
            with contextlib.suppress(OSError):
                connection.receive()
            assert connection.close_code == 1009


def test_blueprints_and_init_app_work() -> None:
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


def test_a_view_may_return_the_upgrade_response_itself() -> None:
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


def test_a_route_without_the_middleware_is_a_clear_error() -> None:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: UpgradeResponse(lambda connection: None), websocket=True)
    with pytest.raises(RuntimeError, match="the application is not wrapped in WatershedWSGI"):
        app.test_client().get("/", headers={"Upgrade": "websocket", "Connection": "Upgrade"})


def test_a_coroutine_function_is_refused_as_a_thread_event_handler() -> None:
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
def test_async_handlers_occupy_no_thread(app: Flask) -> None:
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


# --- what a route gives its handler --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_a_handler_can_read_the_session_and_build_its_own_url(way: str) -> None:
    app = Flask(__name__)
    app.secret_key = "secret"
    shed = Shed(app)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["name"] = name
        return "welcome"

    def words(number: int) -> str:
        address = url_for(request.endpoint or "", number=number, _external=True)
        return f"{session['name']} {request.endpoint} {address} {url_for('login', name='x', _external=True)}"

    if way == "blocking":

        @shed.route("/<int:number>", endpoint="ours")
        def blocking(connection: ThreadConnection, number: int) -> None:
            connection.send(words(number))

    else:

        @shed.route("/<int:number>", endpoint="ours")
        async def asynchronous(connection: AsyncConnection, number: int) -> None:
            await connection.send(words(number))

    client = app.test_client()
    client.get("/login/ann")
    with connect(client, "/7") as connection:
        assert connection.receive() == "ann ours ws://localhost/7 http://localhost/login/x"


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_each_connection_has_a_context_of_its_own(app: Flask, way: str) -> None:
    with Werkzeug(app) as server, contextlib.ExitStack() as stack:
        users = [f"user{number}" for number in range(5)]
        clients = [stack.enter_context(dial(server.port, f"/{way}/{user[4:]}?user={user}")) for user in users]
        for _ in range(2):
            for client in clients:
                client.send("hi")
            for number, client in enumerate(clients):
                assert client.recv(LIMIT) == f"hi {number} user{number} /{way}/{number} True /page"


def test_converters_and_defaults_work() -> None:
    app = Flask(__name__)
    shed = Shed(app)

    @shed.route("/files/<path:path>/<any(a, b):kind>")
    @shed.route("/files", defaults={"path": "index", "kind": "a"})
    def files(connection: ThreadConnection, path: str, kind: str) -> None:
        connection.send(f"{path} {kind}")

    assert files.__name__ == "files"  # the function stays what it was
    for path, expected in (("/files", "index a"), ("/files/x/y/b", "x/y b")):
        with connect(app.test_client(), path) as connection:
            assert connection.receive() == expected


def test_a_page_and_a_websocket_may_share_a_path() -> None:
    app = Flask(__name__)
    app.add_url_rule("/both", view_func=lambda: "page", endpoint="page")

    @Shed(app).route("/both")
    def both(connection: ThreadConnection) -> None:
        connection.send("socket")

    assert app.test_client().get("/both").text == "page"
    with connect(app.test_client(), "/both") as connection:
        assert connection.receive() == "socket"


def test_plain_requests_are_answered_by_flask() -> None:
    ours, plain = Flask(__name__), Flask(__name__)
    Shed(ours).route("/ws/")(lambda connection: None)
    plain.add_url_rule("/ws/", view_func=lambda: "", websocket=True, endpoint="<lambda>")
    for app in (ours, plain):
        app.add_url_rule("/page", view_func=lambda: "page", endpoint="page")
    answers = []
    for app in (ours, plain):
        client = app.test_client()
        answers.append(
            [
                (answer.status_code, answer.data, answer.headers.get("Location"))
                for path in ("/ws/", "/ws", "/page", "/nowhere")
                for answer in (client.get(path), client.post(path), client.options(path))
            ]
        )
    assert answers[0] == answers[1]
    assert answers[0][0][0] == 400


@pytest.mark.need(13)
@pytest.mark.parametrize("first", ["GET {} HTTP/1.0", "HEAD {} HTTP/1.1"])
@pytest.mark.parametrize("path", ["/blocking/7", "/async/7", "/choose?user=ann"])
def test_a_request_that_only_flask_takes_for_an_upgrade_is_refused(
    app: Flask, caplog: pytest.LogCaptureFixture, first: str, path: str
) -> None:
    with Werkzeug(app) as server:
        with Peer(server.port) as peer:
            peer.send(head(path, first=first))
            answer = peer.rest()  # an answer to HEAD has no body, whatever its length says
            assert answer.startswith(b"HTTP/1.1 400 ")
            said = b"expected GET over HTTP/1.1, got GET over HTTP/1.0"
            assert (said in answer) is first.startswith("GET")
        assert [line[-3:] for line in server.access_log(1)] == ["400"]
        assert_quiet(server, caplog)


def test_tls_terminated_by_a_proxy_works_in_any_order_of_middlewares() -> None:
    app = Flask(__name__)
    inner = Shed(app)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1, x_host=1)  # type: ignore[method-assign]
    outer = Shed(app)

    @inner.route("/blocking")
    def blocking(connection: ThreadConnection) -> None:
        connection.send(url_for("blocking"))

    @outer.route("/async")
    async def asynchronous(connection: AsyncConnection) -> None:
        await connection.send(url_for("asynchronous"))

    with Werkzeug(app) as server:
        for path in ("/blocking", "/async"):
            with Peer(server.port) as peer:
                peer.open(path, X_Forwarded_Proto="https", X_Forwarded_Host="chat.example.com")
                assert peer.text() == f"wss://chat.example.com{path}"
                assert peer.close()[0] == 1000
                peer.send(close())
                peer.end()
        assert len(server.access_log(2)) == 2
        assert server.troubles == []


# --- more than one of each -----------------------------------------------------------------------------------


def test_two_sheds_of_one_application_share_its_middleware() -> None:
    app = Flask(__name__)
    sheds = Shed(app, max_message_size=100), Shed(app, max_message_size=10)
    for number, shed in enumerate(sheds):

        @shed.route(f"/{number}", endpoint=f"echo{number}")
        def echo(connection: ThreadConnection) -> None:
            for message in connection:
                connection.send(message)

    assert not isinstance(app.wsgi_app.app, WatershedWSGI)  # type: ignore[attr-defined]
    for number in range(2):
        with connect(app.test_client(), f"/{number}") as connection:
            connection.send("x" * 100)
            assert connection.receive() == "x" * 100  # the first one's options apply


def test_a_blueprint_may_belong_to_two_applications() -> None:
    rooms, shed = Blueprint("rooms", __name__), Shed(protocols=["rooms.v1"])
    shed.init_app(rooms)

    @rooms.before_request
    def guard() -> Any:
        return None if "user" in request.args else abort(401)

    @rooms.errorhandler(401)
    def unknown(error: Exception) -> tuple[str, int]:
        return f"{current_app.name}: who are you?", 401

    @shed.route("/<int:number>")
    async def room(connection: AsyncConnection, number: int) -> None:
        await connection.send(f"{current_app.name} {connection.protocol} {url_for('.room', number=number)}")

    def without_language(endpoint: str | None, values: dict[str, Any] | None) -> None:
        (values or {}).pop("lang", None)

    def with_language(endpoint: str, values: dict[str, Any]) -> None:
        values["lang"] = "de"

    for name, prefix in (("one", "/a"), ("two", "/b/<lang>")):
        app = Flask(name)
        app.url_value_preprocessor(without_language)
        app.url_defaults(with_language)
        app.register_blueprint(rooms, url_prefix=prefix)
        path = prefix.replace("<lang>", "de")
        with connect(app.test_client(), f"{path}/3?user=ann", protocols=["rooms.v1"]) as connection:
            extra = "?lang=de" if name == "one" else ""
            assert connection.receive() == f"{name} rooms.v1 ws://localhost{path}/3{extra}"
        with pytest.raises(HandshakeError) as refused, connect(app.test_client(), f"{path}/3"):
            pass
        assert (refused.value.status, refused.value.body) == (401, f"{name}: who are you?".encode())
