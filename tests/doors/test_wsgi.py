"""The WSGI middleware on werkzeug, under Flask and under plain WSGI."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flask import abort
from flask.typing import ResponseReturnValue
from werkzeug.debug import DebuggedApplication
from werkzeug.serving import WSGIRequestHandler

from tests.support import LIMIT
from tests.support.peers import ACCEPT, Peer, binary, close, dial, head, text
from tests.support.threaded_servers import Werkzeug, errors_in
from tests.support.waiting import Gate, Inbox
from tests.support.wsgi_apps import (
    Environ,
    StartResponse,
    View,
    WSGIApp,
    assert_quiet,
    background,
    bare,
    echo,
    flask_app,
    get,
    upgrade,
)
from watershed_mw import ConnectionClosed, HandshakeError, ThreadConnection, WatershedWSGI
from watershed_mw.sockets.tls_views import DetachedSocket

MIB = 2**20


# --- an open connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "single"])
def test_a_blocking_handler_echoes(caplog: pytest.LogCaptureFixture, threaded: bool) -> None:
    with Werkzeug(flask_app(echo), threaded=threaded) as server:
        with dial(server.port, "/ws") as client:
            for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70000, b"y" * MIB):
                client.send(message)
                assert client.recv(LIMIT) == message
        assert server.access_log(1) == ["GET /ws 101"]
        assert_quiet(server, caplog)


@pytest.mark.need(13)
@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "single"])
@pytest.mark.parametrize("wrap", ["plain", "debug", "debugger"])
def test_the_access_log_has_one_line_and_nothing_else_is_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], threaded: bool, wrap: str
) -> None:
    app = flask_app(echo, debug=wrap == "debug")
    wrapped = DebuggedApplication(app, evalex=True) if wrap == "debugger" else app
    with Werkzeug(wrapped, threaded=threaded) as server:
        with dial(server.port, "/ws?token=1") as client:
            client.send("hi")
            assert client.recv(LIMIT) == "hi"
        server.access_log(1)
        assert get(server.port).status == 200
        assert server.access_log(2) == ["GET /ws?token=1 101", "GET /page 200"]
        assert_quiet(server, caplog)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


def test_a_view_may_receive_send_and_close() -> None:
    def view() -> ResponseReturnValue:
        connection = upgrade().accept(protocols=["b", "c"], headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        first = connection.receive(timeout=LIMIT)
        connection.send(f"{first} over {connection.protocol} from {connection.remote}")
        connection.end("that was all", code=4001)
        return "ignored"

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        answer = peer.open("/ws", Sec_WebSocket_Protocol="a, c, b")
        assert answer["sec-websocket-accept"] == ACCEPT
        assert answer["sec-websocket-protocol"] == "c"
        assert answer.all("set-cookie") == ["a=1", "b=2"]
        peer.send(text("hello"))
        assert peer.text() == "hello over c from {}:{}".format(*peer.sock.getsockname())
        assert peer.close() == (4001, "that was all")
        peer.send(close(4001))
        peer.end()


def test_a_view_may_run_with_events(caplog: pytest.LogCaptureFixture) -> None:
    ends = Inbox[tuple[int, str]]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        connection.on("text", lambda message: connection.send(message.upper()))
        connection.on("binary", lambda data: connection.send(data[::-1]))
        connection.on("ping", lambda data: connection.send(f"ping {data.decode()}"))
        ends.put(connection.run())
        return ""

    with Werkzeug(flask_app(view)) as server:
        with dial(server.port, "/ws") as client:
            client.send("text")
            assert client.recv(LIMIT) == "TEXT"
            client.send(b"abc")
            assert client.recv(LIMIT) == b"cba"
            pong = client.ping("p1")
            assert client.recv(LIMIT) == "ping p1"
            assert pong.wait(LIMIT)
            client.close(4000, "bye")
        assert ends.get() == (4000, "bye")
        server.access_log(1)
        assert_quiet(server, caplog)


@pytest.mark.need(13)
def test_returning_from_a_view_closes_with_1000() -> None:
    def view() -> ResponseReturnValue:
        upgrade().accept().send("bye")
        return "a body that nobody sees", 404, {"X-Nobody": "sees"}

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            assert peer.text() == "bye"
            assert peer.close() == (1000, "")
            peer.send(close())
            peer.end()
        assert server.access_log(1) == ["GET /ws 101"]


@pytest.mark.need(13)
def test_a_client_that_vanishes_ends_a_waiting_view(caplog: pytest.LogCaptureFixture) -> None:
    errors = Inbox[int]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        with pytest.raises(ConnectionClosed) as closed:
            connection.receive()
        errors.put(closed.value.code)
        return ""

    with Werkzeug(flask_app(view)) as server:
        for leave in (Peer.vanish, lambda peer: peer.sock.close()):
            with Peer(server.port) as peer:
                peer.open("/ws")
                leave(peer)
            assert errors.get() == 1006
        server.access_log(2)
        assert_quiet(server, caplog)


@pytest.mark.need(13)
@pytest.mark.parametrize("kind", ["threaded", "single", "debug"])
@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(Peer.vanish, id="RST"),
        pytest.param(lambda peer: peer.sock.close(), id="FIN"),
        pytest.param(lambda peer: peer.send(close(1001)), id="Close"),
        pytest.param(lambda peer: peer.send(text("cut off")[:5]), id="within a frame"),
    ],
)
def test_a_view_that_iterates_ends_without_a_traceback_when_its_client_leaves(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    leave: Callable[[Peer], None],
) -> None:
    codes = Inbox[int | None]()

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        for message in connection:
            connection.send(message)
        codes.put(connection.close_code)
        return "and goes on"

    with Werkzeug(flask_app(view, debug=kind == "debug"), threaded=kind != "single") as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            peer.send(text("hi"))
            assert peer.text() == "hi"
            leave(peer)
        assert codes.get() in (1001, 1006)
        assert server.access_log(1) == ["GET /ws 101"]
        assert get(server.port).body == b"page"
        assert_quiet(server, caplog)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.need(14)
def test_a_view_that_only_sends_stops_when_the_client_leaves() -> None:
    errors = Inbox[BaseException]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        try:
            while True:
                connection.send("tick")
        except ConnectionClosed as closed:
            errors.put(closed)
        return ""

    with Werkzeug(flask_app(view)) as server:
        for leave in (Peer.vanish, lambda peer: peer.sock.close(), lambda peer: peer.send(close())):
            with Peer(server.port) as peer:
                peer.open("/ws")
                assert peer.text() == "tick"
                leave(peer)
                assert isinstance(errors.get(), OSError)


# --- early bytes and detached sockets --------------------------------------------------------------------


@pytest.mark.parametrize("view", [echo, background], ids=["blocking", "background"])
@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "single"])
def test_frames_in_the_segment_of_the_head_are_received(view: View, threaded: bool) -> None:
    messages = [f"{number} " + "x" * 900 for number in range(40)]
    with Werkzeug(flask_app(view), threaded=threaded) as server, Peer(server.port) as peer:
        peer.open_with(head("/ws") + b"".join(map(text, messages)) + close(4000, "in one go"))
        assert [peer.text() for _ in messages] == messages
        assert peer.close() == (4000, "in one go")
        peer.end()


def test_a_client_that_floods_before_the_accept_does_not_fill_memory() -> None:
    sizes, gate = Inbox[int](), Gate[None]()

    def view() -> ResponseReturnValue:
        with upgrade().accept(detached=True) as sock:
            sizes.put(len(sock.head))
            gate.get()
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        flood = threading.Thread(target=lambda: _flood(peer.sock, head("/ws")))
        flood.start()
        try:
            # Whatever the server had buffered past the head belongs here; the rest waits in the kernel.
            assert sizes.get() <= 128 * 1024
        finally:
            gate.put(None)
            flood.join(LIMIT)
        assert not flood.is_alive()


def _flood(sock: socket.socket, first: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(first + bytes(64 * MIB))


def test_a_detached_socket_belongs_to_the_application(caplog: pytest.LogCaptureFixture) -> None:
    sockets = Inbox[Any]()

    def view() -> ResponseReturnValue:
        sockets.put(upgrade().accept(detached=True, headers=[("X-Detached", "1")]))
        return ""

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws") + b"early bytes")
            answer = peer.answer()
            assert (answer.status, answer["x-detached"]) == (101, "1")
            with sockets.get() as taken:
                # The server is done with the request, and has neither written nor closed anything.
                assert server.access_log(1) == ["GET /ws 101"]
                assert isinstance(taken, DetachedSocket)
                assert taken.head == b"early bytes"
                taken.settimeout(LIMIT)
                assert taken.recv(5) + taken.recv(100) == b"early bytes"
                taken.sendall(b"raw")
                assert peer.sock.recv(100) == b"raw"
                peer.send(b"raw too")
                assert taken.recv(100) == b"raw too"
            assert peer.rest() == b""
        assert_quiet(server, caplog)


def test_an_upgrade_may_follow_other_requests_on_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Inbox[None]()

    class KeepAlive(WSGIRequestHandler):
        """Werkzeug closes after every response; a handler that does not takes four lines."""

        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            waiting.put(None)
            super().handle_one_request()

        def send_header(self, keyword: str, value: str) -> None:
            if (keyword, value) != ("Connection", "close"):
                super().send_header(keyword, value)

    with Werkzeug(flask_app(echo), handler=KeepAlive) as server:
        with Peer(server.port) as peer:
            # Werkzeug discards data right after a response, so the next request has to wait.
            for _ in range(2):
                waiting.get()
                peer.send(b"GET /page HTTP/1.1\r\nHost: here\r\n\r\n")
                assert peer.answer().body == b"page"
            waiting.get()
            peer.open_with(head("/ws") + text("early"))
            assert peer.text() == "early"
            peer.send(text("late") + close())
            assert peer.text() == "late"
            assert peer.close() == (1000, "")
            peer.end()
        assert server.access_log(3) == ["GET /page 200"] * 2 + ["GET /ws 101"]
        assert_quiet(server, caplog)


# --- no connection ---------------------------------------------------------------------------------------


@pytest.mark.need(9)
def test_a_flask_view_may_reject(caplog: pytest.LogCaptureFixture) -> None:
    def view() -> ResponseReturnValue:
        answer: ResponseReturnValue = upgrade().reject(
            402, b"pay first", [("Retry-After", "5"), ("Content-Type", "a/b")]
        )
        return answer

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws"))
            answer = peer.refusal()
        assert (answer.status, answer.body, answer["retry-after"]) == (402, b"pay first", "5")
        assert answer.all("content-type") == ["a/b"]
        assert server.access_log(1) == ["GET /ws 402"]
        assert_quiet(server, caplog)


@pytest.mark.need(9)
def test_a_plain_wsgi_application_may_reject(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        rejection: WSGIApp = environ["watershed"].reject(403, b"no")
        return rejection(environ, start_response)

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            answer = peer.refusal()
        assert (answer.status, answer.body) == (403, b"no")
        assert server.access_log(1) == ["GET / 403"]
        assert_quiet(server, caplog)


@pytest.mark.parametrize("kind", ["flask", "bare"])
@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("body", [b"", b"that nobody may see"], ids=["empty", "body"])
def test_a_rejection_without_a_body_has_no_body_headers(
    caplog: pytest.LogCaptureFixture, kind: str, status: int, body: bytes
) -> None:
    """RFC 9110 sections 8.6, 15.3.5 and 15.4.5."""

    def view() -> ResponseReturnValue:
        answer: ResponseReturnValue = upgrade().reject(status, body, [("ETag", '"1"')])
        return answer

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        rejection: WSGIApp = environ["watershed"].reject(status, body, [("ETag", '"1"')])
        return rejection(environ, start_response)

    with Werkzeug(flask_app(view) if kind == "flask" else WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws"))
            answer = peer.refusal()
        assert (answer.status, answer.body, answer["etag"]) == (status, b"", '"1"')
        assert answer.all("content-length") == []
        assert server.access_log(1) == [f"GET /ws {status}"]
        assert_quiet(server, caplog)


def test_a_rejection_has_one_content_length(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        rejection: WSGIApp = environ["watershed"].reject(403, b"no", [("content-length", "2")])
        return rejection(environ, start_response)

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            answer = peer.refusal()
        assert (answer.body, answer.all("content-length")) == (b"no", ["2"])
        assert_quiet(server, caplog)


def test_flasks_own_refusals_work(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(flask_app(lambda: abort(401))) as server, Peer(server.port) as peer:
        peer.send(head("/ws"))
        assert peer.refusal().status == 401
        assert_quiet(server, caplog)


def test_an_application_that_ignores_the_upgrade_responds_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(flask_app(lambda: "ignored")) as server:
        for path, status in (("/ws", 200), ("/nowhere", 404)):
            with Peer(server.port) as peer:
                peer.send(head(path))
                assert peer.refusal().status == status
        # An invalid handshake, too, is only refused when it is accepted.
        with Peer(server.port) as peer:
            peer.send(head("/nowhere", Sec_WebSocket_Key=None, Origin="http://evil.example"))
            assert peer.refusal().status == 404
        assert_quiet(server, caplog)


@pytest.mark.parametrize(
    "request_head",
    [
        pytest.param(head(Upgrade=None), id="no upgrade"),
        pytest.param(head(Upgrade="h2c"), id="h2c"),
        pytest.param(head(first="POST {} HTTP/1.1", Content_Length="0"), id="POST"),
        pytest.param(head(first="GET {} HTTP/1.0"), id="HTTP/1.0"),
    ],
)
def test_plain_requests_are_unaffected(request_head: bytes) -> None:
    environs = Inbox[Environ]()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environs.put(environ)
        seen.put(start_response)
        start_response("200 OK", [("Content-Length", "5")])
        return [b"plain"]

    seen = Inbox[StartResponse]()
    with Werkzeug(WatershedWSGI(app)) as server, Peer(server.port) as peer:
        peer.send(request_head)
        assert peer.refusal().body == b"plain"
    assert "watershed" not in environs.get()
    assert "run_wsgi" in seen.get().__qualname__, "the server's own start_response was expected"


@pytest.mark.parametrize("app", ["flask", "flask debug", "bare"])
@pytest.mark.parametrize(
    "status, changes",
    [
        pytest.param(400, {"Sec_WebSocket_Key": None}, id="no key"),
        pytest.param(400, {"Sec_WebSocket_Key": "dG9vIHNob3J0"}, id="short key"),
        pytest.param(400, {"Sec_WebSocket_Key": ["dGhlIHNhbXBsZSBub25jZQ=="] * 2}, id="two keys"),
        pytest.param(426, {"Sec_WebSocket_Version": None}, id="no version"),
        pytest.param(426, {"Sec_WebSocket_Version": "8"}, id="version 8"),
        pytest.param(403, {"Origin": "http://evil.example"}, id="foreign origin"),
        pytest.param(403, {"Origin": "null"}, id="null origin"),
        pytest.param(400, {"Content_Length": "5"}, id="body"),
        pytest.param(400, {"Host": None}, id="no host"),
        pytest.param(400, {"Sec_WebSocket_Protocol": "other"}, id="no subprotocol in common"),
        pytest.param(400, {"Sec_WebSocket_Extensions": "permessage-deflate; =1"}, id="malformed extension"),
    ],
)
def test_a_bad_handshake_is_answered_once_and_not_logged_as_an_error(
    caplog: pytest.LogCaptureFixture, app: str, status: int, changes: dict[str, Any]
) -> None:
    if app == "bare":
        application: Any = WatershedWSGI(bare, protocols=["chat"])
        path = "/"
    else:
        application = flask_app(echo, debug=app == "flask debug", protocols=["chat"])
        path = "/ws"
    with Werkzeug(application) as server:
        with Peer(server.port) as peer:
            peer.send(head(path, **changes))
            answer = peer.refusal()
        assert answer.status == status
        assert b"expected" in answer.body or b"no subprotocol in common" in answer.body
        assert answer["content-type"].startswith("text/plain")
        if status == 426:
            assert answer["sec-websocket-version"] == "13"
        assert server.access_log(1) == [f"GET {path} {status}"]
        assert_quiet(server, caplog)


def test_a_connection_header_without_upgrade_is_refused() -> None:
    with Werkzeug(WatershedWSGI(bare)) as server, Peer(server.port) as peer:
        peer.send(head(Connection="keep-alive"))
        answer = peer.refusal()
    assert answer.status == 426
    assert b"'upgrade'" in answer.body


def test_an_application_may_respond_to_a_handshake_error_itself(caplog: pytest.LogCaptureFixture) -> None:
    def view() -> ResponseReturnValue:
        try:
            upgrade().accept()
        except HandshakeError as error:
            return f"my own words: {error.status}", 418
        return ""

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws", Sec_WebSocket_Version="7"))
            answer = peer.refusal()
        assert (answer.status, answer.body) == (418, b"my own words: 426")
        assert_quiet(server, caplog)


@pytest.mark.need(8)
@pytest.mark.parametrize(
    "origins, origin, status",
    [
        (None, "http://127.0.0.1", 101),
        (None, "http://127.0.0.1:81", 403),
        (["https://a.example"], "https://a.example", 101),
        (["https://a.example"], "http://a.example", 403),
        ("*", "http://evil.example", 101),
    ],
)
def test_the_origins_option_allows_origins(origins: Any, origin: str, status: int) -> None:
    with Werkzeug(flask_app(echo, origins=origins)) as server, Peer(server.port) as peer:
        peer.send(head("/ws", Origin=origin))
        assert peer.answer().status == status


def test_limits_and_compression_options_apply() -> None:
    with Werkzeug(flask_app(echo, max_message_size=1000, compression=False)) as server, Peer(server.port) as peer:
        answer = peer.open("/ws", Sec_WebSocket_Extensions="permessage-deflate")
        assert answer.all("sec-websocket-extensions") == []
        peer.send(binary(bytes(1001)))
        assert peer.close()[0] == 1009
    with Werkzeug(flask_app(echo)) as server, dial(server.port, "/ws", compression="deflate") as client:
        client.send("compress me " * 1000)
        assert client.recv(LIMIT) == "compress me " * 1000
        assert client.protocol.extensions


# --- applications that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
def test_an_exception_before_the_accept_is_a_500(debug: bool) -> None:
    def view() -> ResponseReturnValue:
        raise LookupError("a secret")

    with Werkzeug(flask_app(view, debug=debug)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws"))
            answer = peer.refusal()
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert server.access_log(1) == ["GET /ws 500"]


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@pytest.mark.parametrize("kind", ["flask", "bare"])
def test_an_exception_after_the_accept_closes_with_1011(debug: bool, kind: str) -> None:
    def view() -> ResponseReturnValue:
        upgrade().accept().send("hi")
        raise LookupError("a secret")

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["watershed"].accept().send("hi")
        raise LookupError("a secret")

    application: Any = flask_app(view, debug=debug) if kind == "flask" else WatershedWSGI(app)
    if kind == "bare" and debug:
        application = DebuggedApplication(application, evalex=True)
    with Werkzeug(application) as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            assert peer.text() == "hi"
            code, reason = peer.close()
            assert code == 1011
            assert "secret" not in reason
            peer.send(close(1011))
            peer.end()
        assert len(server.access_log(1)) == 1


def test_a_client_may_vanish_before_the_accept(caplog: pytest.LogCaptureFixture) -> None:
    started, gate, outcomes = Gate[None](), Gate[None](), Inbox[object]()

    def view() -> ResponseReturnValue:
        started.put(None)
        gate.get()
        try:
            connection = upgrade().accept()
            outcomes.put(connection.receive())
        except ConnectionClosed as error:
            outcomes.put(error.code)
            raise
        return ""

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.send(head("/ws"))
            started.get()
            peer.vanish()
        gate.put(None)
        assert outcomes.get() == 1006
        assert get(server.port).body == b"page"


def test_a_second_accept_is_a_clear_error() -> None:
    errors = Inbox[BaseException | None]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        try:
            upgrade().accept()
        except Exception as error:  # noqa: BLE001  # whichever it is, the test looks at it
            errors.put(error)
        else:
            errors.put(None)
        connection.send("still mine")
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        assert peer.text() == "still mine"
        error = errors.get()
        assert isinstance(error, RuntimeError | ValueError)
        assert "accept" in str(error)


def test_garbage_instead_of_frames_closes_with_1002(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(flask_app(echo)) as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            peer.send(text("before") + b"GET / HTTP/1.1\r\n\r\n")
            assert peer.text() == "before"
            assert peer.close()[0] == 1002
        server.access_log(1)
        assert_quiet(server, caplog)


# --- other sockets and another server -----------------------------------------------------------------------


@pytest.mark.parametrize("view", [echo, background], ids=["blocking", "background"])
def test_tls_works(
    caplog: pytest.LogCaptureFixture, tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], view: View
) -> None:
    client, context = tls_contexts
    with Werkzeug(flask_app(view), ssl_context=context) as server:
        with Peer(server.port, tls=client, clean=True) as peer:
            peer.open_with(head("/ws") + text("early"))
            peer.send(binary(bytes(MIB)))
            assert peer.text() == "early"
            assert bytes(peer.frame().data) == bytes(MIB)
            peer.send(close(4000, "bye"))
            assert peer.close() == (4000, "bye")
            peer.end()
        assert server.access_log(1) == ["GET /ws 101"]
        with Peer(server.port, tls=client) as peer:
            peer.send(b"GET /page HTTP/1.1\r\nHost: here\r\n\r\n")
            assert peer.answer().body == b"page"
        assert_quiet(server, caplog)


@pytest.mark.parametrize("view", [echo, background], ids=["blocking", "background"])
def test_wsgiref_works(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, view: View) -> None:
    from wsgiref.simple_server import make_server

    with make_server("127.0.0.1", 0, flask_app(view)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with Peer(server.server_port) as peer:
                peer.open_with(head("/ws") + text("early"))
                assert peer.text() == "early"
                peer.send(close(4000, "bye"))
                assert peer.close() == (4000, "bye")
                peer.end()
            assert get(server.server_port).body == b"page"
        finally:
            server.shutdown()
            thread.join(LIMIT)
    assert errors_in(caplog.records) == []
    printed = capsys.readouterr().err
    assert printed.count('"GET /ws HTTP/1.1" 101') == 1
    assert "Traceback" not in printed
