"""The test client: WebSockets of WSGI applications without a server, through werkzeug's and Flask's own clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import pytest
from flask import Flask, abort, g, redirect, request, session
from flask.testing import FlaskClient
from werkzeug.test import Client

from tests.support import LIMIT, SOON
from tests.support.waiting import Gate, Inbox, eventually
from tests.support.wsgi_apps import Environ, StartResponse
from watershed_mw import (
    AsyncConnection,
    ConnectionClosed,
    HandshakeError,
    ThreadConnection,
    WatershedWSGI,
    live_connections,
)
from watershed_mw.flask import Shed, UpgradeResponse
from watershed_mw.testing import TestConnection, connect

ENDS = Inbox[tuple[int, str]]()
"""How connections have ended, as the application saw it."""


class DeliberateError(Exception):
    """The exception that the handlers raise."""


def application() -> Flask:
    app = Flask(__name__)
    app.secret_key = "secret"
    shed = Shed(app)

    @shed.route("/blocking", protocols=["chat.v2", "chat.v1"])
    def blocking(connection: ThreadConnection) -> None:
        connection.on("end", lambda code, reason: ENDS.put((code, reason)))
        for message in connection:
            if isinstance(message, str) and message.startswith("end "):
                connection.end("as you like", code=int(message[4:]))
            else:
                connection.send(message)

    @shed.route("/background")
    def background(connection: ThreadConnection) -> None:
        connection.on("end", lambda code, reason: ENDS.put((code, reason)))

        def answer(message: str) -> None:
            if message.startswith("end "):
                connection.end("as you like", code=int(message[4:]))
            else:
                connection.send(message)

        connection.on("text", answer)
        connection.on("binary", connection.send)
        connection.run_in_background()

    @shed.route("/async")
    async def asynchronous(connection: AsyncConnection) -> None:
        connection.on("end", lambda code, reason: ENDS.put((code, reason)))
        async for message in connection:
            if isinstance(message, str) and message.startswith("end "):
                connection.end("as you like", code=int(message[4:]))
            else:
                await connection.send(message)

    @shed.route("/request")
    def tell(connection: ThreadConnection) -> None:
        connection.send(f"{request.query_string.decode()} {request.headers.get('X-Asked')} {request.host}")

    @shed.route("/visits", accept=False)
    def visits() -> Any:
        session["visits"] = count = session.get("visits", 0) + 1
        response = UpgradeResponse(lambda connection: connection.send(f"{count} {request.cookies.get('taste')}"))
        response.set_cookie("taste", "sweet")
        return response

    @shed.route("/denied/<way>", accept=False)
    def denied(way: str) -> Any:
        if way == "login":
            return redirect("/login")
        if way == "abort":
            abort(403, "not you")
        return {"error": "who are you?"}, 401, {"X-Why": "token", "WWW-Authenticate": "Bearer"}

    @shed.route("/fails/<when>", accept=False)
    def fails(when: str) -> Any:
        if when == "before":
            raise DeliberateError(when)

        def handler(connection: ThreadConnection) -> None:
            if when == "later":
                connection.receive()
            raise DeliberateError(when)

        return handler

    return app


@pytest.fixture(scope="module")
def app() -> Flask:
    return application()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    eventually(lambda: not live_connections(), "the end of every connection")
    eventually(lambda: not serving(), "the end of every thread")
    while not ENDS.empty:
        ENDS.get()


def serving() -> list[str]:
    """Threads that still run an application for a test."""
    return [thread.name for thread in threading.enumerate() if thread.name == "watershed-test"]


def refused(client: Client, path: str, **options: Any) -> HandshakeError:
    with pytest.raises(HandshakeError) as refusal, connect(client, path, **options):
        pass
    return refusal.value


def ask(app: Flask, path: str) -> str | bytes:
    """The answer to one message."""
    with connect(app.test_client(), path) as connection:
        connection.send("go on")
        return connection.receive()


def drain(app: Flask, path: str) -> None:
    """Exchange messages with a handler that fails, and ignore the end."""
    with connect(app.test_client(), path) as connection:
        connection.send("go on")
        assert list(connection) == []
        assert connection.close_code == 1011


WAYS = pytest.mark.parametrize("way", ["blocking", "background", "async"])


@WAYS
def test_messages_of_both_types_are_echoed(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}") as connection:
        assert isinstance(connection, TestConnection)
        for message in ("Grüße, 水", b"\x00\xff", "", "x" * 200_000):
            connection.send(message)
            assert connection.receive() == message


@WAYS
def test_the_test_may_close_with_its_own_code(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}") as connection:
        connection.end("bye", code=4001)
        assert (connection.close_code, connection.close_reason) == (4001, "bye")
    assert ENDS.get() == (4001, "bye")


@WAYS
def test_leaving_the_block_closes_with_1000(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}"):
        pass
    assert ENDS.get()[0] == 1000


@WAYS
def test_the_application_may_close_with_its_own_code(app: Flask, way: str) -> None:
    with connect(app.test_client(), f"/{way}") as connection:
        connection.send("last")
        connection.send("end 4002")
        assert list(connection) == ["last"]
        assert (connection.close_code, connection.close_reason) == (4002, "as you like")
        with pytest.raises(ConnectionClosed):
            connection.send("too late")
    assert ENDS.get() == (4002, "as you like")


@pytest.mark.need(20)
def test_two_connections_work_at_once(app: Flask) -> None:
    client = app.test_client()
    with connect(client, "/blocking") as one, connect(client, "/async") as other:
        for connection, message in ((other, "b"), (one, "a"), (other, "d"), (one, "c")):
            connection.send(message)
            assert connection.receive() == message


@pytest.mark.need(20)
def test_cookies_are_shared_in_both_directions(app: Flask) -> None:
    client = app.test_client()
    with client.session_transaction() as kept:
        kept["visits"] = 41
    for expected in ("42 None", "43 sweet"):
        with connect(client, "/visits") as connection:
            assert connection.receive() == expected
    with client.session_transaction() as kept:
        assert kept["visits"] == 43
    taste = client.get_cookie("taste")
    assert taste is not None
    assert taste.value == "sweet"


@pytest.mark.need(20)
def test_query_string_and_headers_reach_the_application(app: Flask) -> None:
    with connect(app.test_client(), "/request?a=b&c=%20", headers=[("X-Asked", "yes")]) as connection:
        assert connection.receive() == "a=b&c=%20 yes localhost"


@pytest.mark.need(20)
def test_the_origin_is_checked_as_usual(app: Flask) -> None:
    with connect(app.test_client(), "/blocking", headers=[("Origin", "http://localhost")]) as connection:
        connection.send("hi")
        assert connection.receive() == "hi"
    assert refused(app.test_client(), "/blocking", headers=[("Origin", "http://elsewhere.example")]).status == 403


@pytest.mark.need(20)
def test_subprotocols_are_negotiated(app: Flask) -> None:
    with connect(app.test_client(), "/blocking", protocols=["other", "chat.v1"]) as connection:
        assert connection.protocol == "chat.v1"
    assert refused(app.test_client(), "/blocking", protocols=["other"]).status == 400
    with connect(app.test_client(), "/blocking") as connection:
        assert connection.protocol is None


@pytest.mark.need(20)
def test_a_refusal_carries_status_headers_and_body(app: Flask) -> None:
    denial = refused(app.test_client(), "/denied/json")
    fields = dict(denial.headers)
    assert (denial.status, fields["X-Why"], fields["WWW-Authenticate"]) == (401, "token", "Bearer")
    assert denial.body == b'{"error":"who are you?"}\n'
    assert "401" in str(denial)
    denial = refused(app.test_client(), "/denied/abort")
    assert (denial.status, b"not you" in denial.body) == (403, True)
    denial = refused(app.test_client(), "/denied/login")
    assert (denial.status, dict(denial.headers)["Location"]) == (302, "/login")
    assert refused(app.test_client(), "/nowhere").status == 404


@pytest.mark.need(20)
def test_a_missing_message_is_a_timeout(app: Flask) -> None:
    with connect(app.test_client(), "/blocking", timeout=0.05) as connection:
        receives: list[Callable[[], Any]] = [connection.receive, partial(connection.receive, 0.01)]
        receives.append(partial(next, connection))
        for receive in receives:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                receive()
            assert time.monotonic() - begun < LIMIT
        connection.send("late, and not lost")
        assert connection.receive(LIMIT) == "late, and not lost"


@pytest.mark.need(20)
def test_an_application_that_does_not_decide_is_a_timeout() -> None:
    gate = Gate[None]()

    def bare(environ: Environ, start_response: StartResponse) -> list[bytes]:
        gate.get()
        start_response("403 Forbidden", [])
        return []

    with (
        pytest.raises(TimeoutError),
        connect(Client(WatershedWSGI(bare)), "/", timeout=0.05),
    ):
        pass
    assert serving()
    gate.put(None)  # the fixture sees the thread end


@pytest.mark.need(20)
@pytest.mark.parametrize("left_by", ["end", "error"])
def test_a_handler_that_does_not_return_is_a_timeout(left_by: str) -> None:
    app, gate = Flask(__name__), Gate[None]()

    @Shed(app).route("/")
    def deaf(connection: ThreadConnection) -> None:
        gate.get()

    def converse() -> None:
        with connect(app.test_client(), "/", timeout=0.05):
            if left_by == "error":
                raise DeliberateError("in the test")

    begun = time.monotonic()
    # A failure in the test itself takes precedence.
    with pytest.raises(TimeoutError if left_by == "end" else DeliberateError):
        converse()
    assert time.monotonic() - begun < SOON  # and not the ten seconds of a closing handshake
    gate.put(None)


@pytest.mark.need(20)
@pytest.mark.parametrize("setting", ["TESTING", "PROPAGATE_EXCEPTIONS"])
@pytest.mark.parametrize("when", ["before", "at once", "later"])
def test_exceptions_of_a_flask_application_are_raised_in_the_test(setting: str, when: str) -> None:
    app = application()
    app.config[setting] = True
    with pytest.raises(DeliberateError, match=when):
        drain(app, f"/fails/{when}")


@pytest.mark.need(20)
def test_an_exception_is_logged_before_its_consequences() -> None:
    app = application()
    app.testing = True
    with pytest.raises(DeliberateError) as raised:
        ask(app, "/fails/later")
    cause = raised.value.__cause__
    assert isinstance(cause, ConnectionClosed)
    assert cause.code == 1011


@pytest.mark.need(20)
def test_without_testing_a_failure_looks_as_it_does_to_a_client(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(app.test_client(), "/fails/before").status == 500
    with pytest.raises(ConnectionClosed) as closed:
        ask(app, "/fails/later")
    assert closed.value.code == 1011
    assert len([record for record in caplog.records if record.exc_info]) == 2


@pytest.mark.need(20)
def test_exceptions_of_a_plain_application_are_raised_in_the_test() -> None:
    def bare(environ: Environ, start_response: StartResponse) -> list[bytes]:
        connection = environ["watershed"].accept()
        connection.receive()
        raise DeliberateError("in the application")

    def converse() -> None:
        with connect(Client(WatershedWSGI(bare)), "/") as connection:
            connection.send("go on")
            assert list(connection) == []
            assert connection.close_code == 1011

    with pytest.raises(DeliberateError, match="in the application"):
        converse()


@pytest.mark.need(20)
def test_a_plain_application_accepts_and_refuses() -> None:
    def bare(environ: Environ, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/refuse":
            return environ["watershed"].reject(429, b"later", [("Retry-After", "3")])(environ, start_response)
        with environ["watershed"].accept(headers=[("X-Own", "yes")]) as connection:
            connection.send(environ["QUERY_STRING"])
        return []

    client = Client(WatershedWSGI(bare))
    with connect(client, "/?q=1") as connection:
        assert connection.receive() == "q=1"
    denial = refused(client, "/refuse")
    assert (denial.status, denial.body, dict(denial.headers)["Retry-After"]) == (429, b"later", "3")


@pytest.mark.need(20)
def test_an_application_without_the_middleware_responds_as_usual() -> None:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "a page")
    denial = refused(app.test_client(), "/")
    assert (denial.status, "400" in str(denial)) == (400, True)  # Flask: a WebSocket was asked for where there is none


@pytest.mark.need(20)
@pytest.mark.parametrize("before", [False, True])
def test_a_client_may_preserve_its_last_context(app: Flask, before: bool) -> None:
    with app.test_client() as client:
        if before:
            client.get("/nowhere")
        with connect(client, "/blocking") as connection:
            connection.send("hi")
            assert connection.receive() == "hi"
        if before:
            assert request.path == "/nowhere"  # the test's own thread has asked for that
        assert client.get("/elsewhere").status_code == 404
        assert request.path == "/elsewhere"


@pytest.mark.need(20)
def test_a_custom_client_class_works() -> None:
    class Known(FlaskClient):
        def open(self, *args: Any, **options: Any) -> Any:
            options["headers"] = [*options["headers"], ("Authorization", "Bearer token")]
            return super().open(*args, **options)

    app = Flask(__name__)
    app.test_client_class = Known

    @Shed(app).route("/")
    def view(connection: ThreadConnection) -> None:
        connection.send(str(request.authorization))

    with connect(app.test_client(), "/") as connection:
        assert connection.receive() == "Bearer token"


@pytest.mark.need(20)
def test_a_test_may_run_inside_an_application_context(app: Flask) -> None:
    with app.app_context(), app.test_request_context("/outside"):
        g.mine = "the test's"
        with connect(app.test_client(), "/request?inside") as connection:
            assert str(connection.receive()).startswith("inside")
        assert (g.mine, request.path) == ("the test's", "/outside")


@pytest.mark.need(20)
@pytest.mark.parametrize("compression", [True, False])
def test_options_apply_to_the_clients_end(app: Flask, compression: Literal[True, False]) -> None:
    with connect(app.test_client(), "/blocking", compression=compression, max_message_size=10_000) as connection:
        connection.send("x" * 9_000)
        assert connection.receive() == "x" * 9_000
        assert (connection.stats.bytes_sent < 9_000) is compression
        connection.send("x" * 10_001)
        with pytest.raises(ConnectionClosed):
            connection.receive()
        assert connection.close_code == 1009
