"""Flask: views that decide before the 101, and handlers that fail after it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort, got_request_exception, make_response, redirect, request
from werkzeug.exceptions import Gone

from tests.support.flask_app import application
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Werkzeug, errors_in
from tests.support.waiting import Inbox, eventually
from tests.support.wsgi_apps import assert_quiet, get
from watershed_mw import AsyncConnection, ConnectionClosed, HandshakeError, ThreadConnection
from watershed_mw.flask import Shed
from watershed_mw.testing import connect

# --- decisions before the 101 --------------------------------------------------------------------------------


def chooser() -> Flask:
    app = Flask(__name__)
    shed = Shed(app)

    def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs) if "user" in request.args else redirect("/login")

        return guarded

    @shed.route("/choose/<way>", accept=False)
    @login_required
    def choose(way: str) -> Any:
        if way == "abort":
            abort(403, "not you")
        if way == "raise":
            raise LookupError("secret")

        async def asynchronous(connection: AsyncConnection) -> None:
            await connection.send("async")

        class Talk:
            async def __call__(self, connection: AsyncConnection) -> None:
                await connection.send("object")

        async def with_more(more: str, connection: AsyncConnection) -> None:
            await connection.send(more)

        return {
            "tuple": ("who are you?", 401, {"X-Why": "token"}),
            "json": ({"error": "full"}, 429),
            "response": make_response("gone", 410),
            "application": request.environ["watershed"].reject(402, b"pay first"),
            "exception": Gone("left"),
            "async": asynchronous,
            "object": Talk(),
            "partial": functools.partial(with_more, "partial"),
            "lambda": lambda connection: connection.send("lambda"),
        }[way]

    return app


@pytest.mark.need(9, 13)
@pytest.mark.parametrize(
    "path, status, body",
    [
        ("tuple?user", 401, b"who are you?"),
        ("json?user", 429, b'{"error":"full"}\n'),
        ("response?user", 410, b"gone"),
        ("application?user", 402, b"pay first"),
        ("exception?user", 410, b"left"),
        ("abort?user", 403, b"not you"),
        ("tuple", 302, b"/login"),
    ],
)
def test_a_deciding_view_refuses_like_any_view(
    caplog: pytest.LogCaptureFixture, path: str, status: int, body: bytes
) -> None:
    with Werkzeug(chooser()) as server:
        with Peer(server.port) as peer:
            peer.send(head(f"/choose/{path}"))
            answer = peer.refusal()
            assert answer.status == status
            assert body in answer.body
        assert server.access_log(1) == [f"GET /choose/{path} {status}"]
        assert_quiet(server, caplog)


def test_a_deciding_view_may_be_a_coroutine_function() -> None:
    app = Flask(__name__)

    @Shed(app).route("/", accept=False)
    async def choose() -> Any:
        if "user" not in request.args:
            return "who are you?", 401
        return lambda connection: connection.send("welcome")

    with connect(app.test_client(), "/?user=ann") as connection:
        assert connection.receive() == "welcome"
    with pytest.raises(HandshakeError) as refused, connect(app.test_client(), "/"):
        pass
    assert refused.value.status == 401


@pytest.mark.parametrize("way", ["async", "object", "partial", "lambda"])
def test_a_deciding_view_may_return_any_kind_of_handler(way: str) -> None:
    with connect(chooser().test_client(), f"/choose/{way}?user") as connection:
        assert connection.receive() == way


@pytest.mark.need(9)
def test_an_exception_before_the_101_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(chooser()) as server, Peer(server.port) as peer:
        peer.send(head("/choose/raise?user"))
        assert peer.refusal().status == 500
    assert len(errors_in(caplog.records)) == 1


@pytest.mark.need(9)
@pytest.mark.parametrize("way", ["before", "after"])
def test_hooks_may_respond_instead_of_the_route(way: str) -> None:
    app, called = Flask(__name__), Inbox[str]()

    @Shed(app).route("/")
    def view(connection: ThreadConnection) -> None:
        called.put("handler")

    if way == "before":
        app.before_request(lambda: ("too many", 429))
    else:
        app.after_request(lambda response: make_response("too many", 429))
    with Werkzeug(app) as server, Peer(server.port) as peer:
        peer.send(head("/"))
        answer = peer.refusal()
        assert (answer.status, answer.body) == (429, b"too many")
    assert called.empty


@pytest.mark.need(8)
def test_a_page_of_another_host_is_refused(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(app) as server:
        for path in ("/blocking/7", "/async/7", "/choose?user=ann"):
            with Peer(server.port) as peer:
                peer.send(head(path, Origin="http://elsewhere.example"))
                assert peer.refusal().status == 403
        assert [line[-3:] for line in server.access_log(3)] == ["403"] * 3
        assert_quiet(server, caplog)


# --- handlers that fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["raise", "raise-async"])
def test_exceptions_of_a_handler_are_reported_as_flask_does(caplog: pytest.LogCaptureFixture, way: str) -> None:
    app = application()
    signalled, torn_down = Inbox[BaseException](), Inbox[BaseException | None]()

    def note(sender: Flask, exception: BaseException, **more: Any) -> None:
        signalled.put(exception)

    got_request_exception.connect(note, app)
    app.teardown_request(torn_down.put)
    with connect(app.test_client(), f"/{way}") as connection:
        assert list(connection) == []
        assert connection.close_code == 1011
    assert isinstance(signalled.get(), LookupError)
    assert signalled.empty
    assert torn_down.get() is None  # of the request
    assert isinstance(torn_down.get(), LookupError)  # of the handler
    [record] = [record for record in caplog.records if record.exc_info]
    assert (record.name, record.getMessage()) == (app.logger.name, f"Exception on /{way} [WebSocket]")


def test_a_callback_that_raises_in_the_background_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)

    @Shed(app).route("/")
    def view(connection: ThreadConnection) -> None:
        connection.on("text", {}.__getitem__)
        connection.run_in_background()

    with Werkzeug(app) as server, Peer(server.port) as peer:
        peer.open()
        peer.send(text("absent"))
        assert peer.close()[0] == 1011
        peer.send(close(1011))
        peer.end()
        assert server.troubles == []
    eventually(lambda: errors_in(caplog.records), "a line in the log")
    assert len(errors_in(caplog.records)) == 1


@pytest.mark.parametrize("way", ["raise", "raise-async"])
@pytest.mark.parametrize("setting", ["TESTING", "PROPAGATE_EXCEPTIONS"])
def test_a_propagated_exception_closes_with_1011_too(caplog: pytest.LogCaptureFixture, setting: str, way: str) -> None:
    app = application()
    app.config[setting] = True
    with Werkzeug(app) as server:
        with Peer(server.port) as peer:
            peer.open(f"/{way}")
            assert peer.close()[0] == 1011
            peer.send(close(1011))
            peer.end()
        # Logged once: by the server if the exception reached it, otherwise by the application's logger.
        told = eventually(lambda: server.troubles or errors_in(caplog.records), "a traceback")
        assert len(told) == 1
        assert get(server.port, "/page").body == b"page"


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_connection_closed_of_its_own_connection_is_not_a_failure(caplog: pytest.LogCaptureFixture, way: str) -> None:
    app, ended = Flask(__name__), Inbox[str]()
    shed = Shed(app)

    @shed.route("/blocking")
    def blocking(connection: ThreadConnection) -> None:
        try:
            connection.receive()
        finally:
            ended.put("handler")

    @shed.route("/async")
    async def asynchronous(connection: AsyncConnection) -> None:
        try:
            await connection.receive()
        finally:
            ended.put("handler")

    with Werkzeug(app) as server:
        with Peer(server.port) as peer:
            peer.open(f"/{way}")
            peer.send(close(4001))
            assert peer.close()[0] == 4001
            peer.end()
        assert ended.get() == "handler"
        assert server.access_log(1) == [f"GET /{way} 101"]
        assert_quiet(server, caplog)


@pytest.mark.parametrize("way", ["blocking", "async"])
def test_connection_closed_of_another_connection_is_a_failure(caplog: pytest.LogCaptureFixture, way: str) -> None:
    app = Flask(__name__)
    shed = Shed(app)

    @shed.route("/blocking")
    def blocking(connection: ThreadConnection) -> None:
        raise ConnectionClosed(1006, "the database")

    @shed.route("/async")
    async def asynchronous(connection: AsyncConnection) -> None:
        raise ConnectionClosed(1006, "the database")

    with connect(app.test_client(), f"/{way}") as connection:
        assert list(connection) == []
        assert connection.close_code == 1011
    eventually(lambda: len(errors_in(caplog.records)) == 1, "one line in the log")


def test_a_decorated_coroutine_function_is_recognised() -> None:
    app, calls = Flask(__name__), Inbox[str]()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.put(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    @Shed(app).route("/<name>")
    @counted
    async def greet(connection: AsyncConnection, name: str) -> None:
        await connection.send(f"hello {name}")

    with connect(app.test_client(), "/ann") as connection:
        assert connection.receive() == "hello ann"
    assert calls.get() == "greet"


def test_a_coroutine_that_would_never_be_awaited_is_a_clear_error() -> None:
    app = Flask(__name__)
    app.testing = True

    async def talk(connection: AsyncConnection, name: str) -> None: ...

    Shed(app).route("/")(lambda connection: talk(connection, "ann"))
    with (
        pytest.raises(TypeError, match="expected a plain function or a coroutine function"),
        connect(app.test_client(), "/"),
    ):
        pass
