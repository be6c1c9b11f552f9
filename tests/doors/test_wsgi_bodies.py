"""Applications without a framework under WSGI: bodies of every kind (PEP 3333)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from werkzeug.debug import DebuggedApplication

from tests.support import LIMIT
from tests.support.peers import Peer, close, dial, head
from tests.support.threaded_servers import Werkzeug
from tests.support.waiting import Gate, Inbox
from tests.support.wsgi_apps import Environ, StartResponse, assert_quiet, bare, get
from watershed_mw import ConnectionClosed, HandshakeError, LocalProtocolError, WatershedWSGI

MIB = 2**20


def test_a_plain_wsgi_application_echoes(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(WatershedWSGI(bare)) as server:
        with dial(server.port) as client:
            client.send("bare")
            assert client.recv(LIMIT) == "bare"
        server.access_log(1)
        assert get(server.port, "/").body == b"plain"
        assert server.access_log(2) == ["GET / 101", "GET / 200"]
        assert_quiet(server, caplog)


def test_an_application_may_accept_and_still_call_start_response(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        connection = environ["watershed"].accept()
        connection.send("hi")
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"nothing of this")
        return [b"reaches the client"]

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "hi"
            assert peer.close() == (1000, "")
            peer.send(close())
            peer.end()
        assert server.access_log(1) == ["GET / 101"]
        assert_quiet(server, caplog)


def test_an_application_may_call_start_response_and_then_accept(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])  # it writes nothing before the first item
        environ["watershed"].accept().send("hi")
        return [b"nobody sees"]

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "hi"
            assert peer.close() == (1000, "")
            peer.send(close())
            peer.end()
        assert server.access_log(1) == ["GET / 101"]
        assert_quiet(server, caplog)


def test_an_application_may_be_a_generator(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        connection = environ["watershed"].accept()
        for message in connection:
            connection.send(message)
        yield b""

    with Werkzeug(WatershedWSGI(app)) as server:
        with dial(server.port) as client:
            client.send("lazy")
            assert client.recv(LIMIT) == "lazy"
        assert server.access_log(1) == ["GET / 101"]
        assert_quiet(server, caplog)


def test_a_discarded_large_body_does_not_block_the_server() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["watershed"].accept().send("hi")
        raise LookupError("x" * 4 * MIB)  # the debugger makes a page of it

    with Werkzeug(DebuggedApplication(WatershedWSGI(app), evalex=True), threaded=False) as server:
        for _ in range(2):
            with Peer(server.port) as peer:
                peer.open()
                assert peer.text() == "hi"
                assert peer.close()[0] == 1011


# --- the body's close() ------------------------------------------------------------------------------------


class Body:
    """A body that reports its close; an exception among its items is raised."""

    def __init__(self, *items: bytes | Exception) -> None:
        self.closed = Inbox[None]()
        self._items = list(items)

    def __iter__(self) -> Iterator[bytes]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self.closed.put(None)


def answering(body: Body, *, accept: bool) -> WatershedWSGI:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if accept:
            environ["watershed"].accept()
        start_response("200 OK", [("Content-Length", "4")])
        return body

    return WatershedWSGI(app)


@pytest.mark.parametrize("accept, status", [(True, 101), (False, 200)], ids=["accepted", "ignored"])
@pytest.mark.parametrize("items", [(), (b"body",), (b"bo", b"dy")], ids=len)
def test_a_body_with_close_is_closed_once(accept: bool, status: int, items: tuple[bytes, ...]) -> None:
    body = Body(*items)
    with Werkzeug(answering(body, accept=accept)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            if items or accept:
                assert peer.answer().status == status
            else:
                peer.rest()
        body.closed.get()
        server.access_log(1)
        assert body.closed.empty


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "ignored"])
@pytest.mark.parametrize("before", [(), (b"bo",)], ids=["at once", "in the middle"])
def test_a_body_that_raises_is_closed_too(accept: bool, before: tuple[bytes, ...]) -> None:
    """PEP 3333: a server calls it also when an error ended the iteration, and so does a middleware."""
    body = Body(*before, LookupError("a secret"))
    with Werkzeug(answering(body, accept=accept)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            if accept:
                assert peer.answer().status == 101
                assert peer.close() == (1011, "")
                peer.send(close(1011))
                peer.end()
            else:
                assert b"secret" not in peer.rest()
        body.closed.get()
        server.access_log(1)
        assert body.closed.empty


# --- generators --------------------------------------------------------------------------------------------


def test_a_generator_is_run_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    steps = Inbox[str]()

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        with environ["watershed"].accept() as connection:
            yield b"ignored"
            connection.send("after the first item")
            yield b"ignored"
            for message in connection:
                connection.send(message)
        steps.put("done")

    with Werkzeug(WatershedWSGI(app)) as server:
        with dial(server.port) as client:
            assert client.recv(LIMIT) == "after the first item"
            client.send("echo")
            assert client.recv(LIMIT) == "echo"
        assert steps.get() == "done"
        assert server.access_log(1) == ["GET / 101"]
        assert_quiet(server, caplog)


def test_a_generator_may_leave_its_connection_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        connection = environ["watershed"].accept()
        connection.on("text", connection.send)
        connection.run_in_background()
        yield b""

    with Werkzeug(WatershedWSGI(app), threaded=False) as server:
        with dial(server.port) as client:
            assert server.access_log(1) == ["GET / 101"]
            client.send("alive")
            assert client.recv(LIMIT) == "alive"
        assert_quiet(server, caplog)


def test_a_generator_may_reject(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield from environ["watershed"].reject(403, b"no")(environ, start_response)

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            answer = peer.refusal()
        assert (answer.status, answer.body) == (403, b"no")
        assert_quiet(server, caplog)


def test_a_generator_that_ignores_the_upgrade_streams_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate[None]()

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "11")])
        yield b"first "
        gate.get()
        yield b"later"

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head())
            first = b""
            while not first.endswith(b"first "):
                first += peer.sock.recv(1024)
            gate.put(None)
            assert peer.rest() == b"later"
        assert_quiet(server, caplog)


def test_a_bad_handshake_in_a_generator_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        environ["watershed"].accept()
        yield b"never"

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.send(head(Sec_WebSocket_Version="8"))
            assert peer.refusal().status == 426
        assert server.access_log(1) == ["GET / 426"]
        assert_quiet(server, caplog)


def test_a_generator_whose_client_left_ends_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    errors = Inbox[ConnectionClosed]()

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        connection = environ["watershed"].accept()
        try:
            while True:
                connection.send("tick")
        except ConnectionClosed as closed:
            errors.put(closed)
            raise
        yield b"never"

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            peer.vanish()
        assert errors.get().code == 1006
        assert server.access_log(1) == ["GET / 101"]
        assert_quiet(server, caplog)


def test_an_exception_in_a_generator_closes_with_1011() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        connection = environ["watershed"].accept()
        yield b""
        connection.send("hi")
        raise LookupError("a secret")

    with Werkzeug(WatershedWSGI(app)) as server:
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "hi"
            assert peer.close() == (1011, "")
            peer.send(close(1011))
            peer.end()
        assert len(server.access_log(1)) == 1


def test_an_accept_after_the_response_has_begun_is_a_clear_error() -> None:
    """With the first item of the body, the head of another response has been sent."""
    errors = Inbox[Exception | None]()

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "11")])
        yield b"first "
        try:
            environ["watershed"].accept()
        except Exception as error:  # noqa: BLE001  # whichever it is, the test looks at it
            errors.put(error)
        else:
            errors.put(None)
        yield b"later"

    with Werkzeug(WatershedWSGI(app)) as server, Peer(server.port) as peer:
        peer.send(head())
        error = errors.get()
        assert isinstance(error, LocalProtocolError)
        assert "accept" in str(error)
        assert peer.refusal().body == b"first later"


# --- other faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "generator"])
def test_a_handshake_error_after_the_accept_is_an_application_error(kind: str) -> None:
    """An application may be a client elsewhere, and be refused there."""

    def refused(environ: Environ) -> None:
        environ["watershed"].accept().send("hi")
        raise HandshakeError("the upstream server said no", status=502)

    def function(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        refused(environ)
        return []

    def generator(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        refused(environ)
        yield b""

    with Werkzeug(WatershedWSGI(function if kind == "function" else generator)) as server, Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "hi"
        assert peer.close() == (1011, "")
        peer.send(close(1011))
        peer.end()
