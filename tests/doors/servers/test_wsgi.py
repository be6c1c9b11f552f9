"""Every WSGI server that hands over its sockets, as a real process, and every "yes" of the matrix.

The servers and their abilities are data (``wsgi_servers.py``). Each is started once; its log must contain nothing but
requests, and the tracebacks that a test provokes.
"""

from __future__ import annotations

import io
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

from tests.support.peers import ACCEPT, KEY, Peer, binary, close, head, text
from tests.support.proxy_fronts import target_of
from tests.support.scripted import Server as Upstream
from tests.support.scripted import echoing
from tests.support.waiting import eventually
from tests.support.wsgi_servers import SERVERS, Kind, Running, start, start_gunicorn
from tests.support.wsgi_servers_app import create
from watershed_mw import UnsupportedServerError

pytestmark = pytest.mark.programs

MIB = 2**20

CELLS = [*SERVERS, *(f"{name}+tls" for name, kind in SERVERS.items() if kind.tls)]
WAYS = ["blocking", "background", "async"]

Fleet: TypeAlias = Callable[[str], Running]


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, certificate: tuple[Path, ssl.SSLContext]) -> Iterator[Fleet]:
    """The servers that the selected tests need, all started before the first one is waited for."""
    with ExitStack() as stack:

        @cache
        def running(cell: str) -> Running:
            name, _, tls = cell.partition("+")
            return stack.enter_context(start(SERVERS[name], certificate if tls else None))

        @cache
        def ready(cell: str) -> Running:
            server = running(cell)
            server.wait_until_it_serves()
            return server

        for item in request.session.items:
            if item.path == request.path and (spec := getattr(item, "callspec", None)) and "cell" in spec.params:
                running(spec.params["cell"])
        yield ready


@pytest.fixture(scope="module", params=CELLS)
def cell(fleet: Fleet, request: pytest.FixtureRequest) -> Running:
    """One server of the matrix."""
    return fleet(request.param)


@pytest.fixture
def server(cell: Running) -> Iterator[Running]:
    """The same, for one test, which must leave nothing unexpected in its log."""
    yield cell
    assert_quiet(cell)


def assert_quiet(running: Running) -> None:
    """Expect no traceback except those that the tests provoke, and nothing else that looks like a failure."""
    output = running.program.output
    before, *tracebacks = output.split("Traceback (most recent call last)")
    assert [found for found in tracebacks if not EXPECTED.search(found)] == [], output
    if not tracebacks:
        assert [line for line in before.splitlines() if TROUBLE.search(line)] == [], output


EXPECTED = re.compile(r"\b(DeliberateError|UnsupportedServerError)\b")
TROUBLE = re.compile(r"error|exception|critical|ResourceWarning|invalid|\b500\b", re.IGNORECASE)


def ways_of(running: Running) -> list[str]:
    return WAYS if running.kind.background else WAYS[:1]


# --- an open connection ----------------------------------------------------------------------------------


def test_messages_are_echoed(server: Running) -> None:
    for way in ways_of(server):
        with server.peer() as peer:
            assert peer.open(f"/{way}")["sec-websocket-accept"] == ACCEPT
            for message in ("Hello", "", "Grüße 🌊", "x" * 70000):
                peer.send(text(message))
                assert peer.text() == message
            for data in (b"\x00\xff", b"", bytes(range(256)) * (MIB // 256)):
                peer.send(binary(data))
                assert bytes(peer.frame().data) == data
            peer.send(close())
            assert peer.close() == (1000, "")
            peer.end()


def test_absolute_form_targets_give_path_and_host(server: Running) -> None:
    """RFC 9112 section 3.2.2: path and host come from the target, whatever Host says."""
    way = ways_of(server)[-1]
    request = head(f"/{way}", first="GET http://a.example{} HTTP/1.1", Host="b.example", Origin="http://a.example")
    with server.peer() as peer:
        if not server.kind.absolute:
            peer.send(request)
            assert peer.answer().status == 400
            return
        peer.open_with(request)
        peer.send(text("Hello") + close())
        assert peer.text() == "Hello"
        assert peer.close() == (1000, "")


def test_frames_in_the_segment_of_the_head_are_received(server: Running) -> None:
    messages = [f"{number} " + "x" * 90 for number in range(40)]
    for way in ways_of(server):
        with server.peer() as peer:
            peer.open_with(head(f"/{way}") + (b"".join(map(text, messages)) if server.kind.early else b""))
            if server.kind.early:
                assert [peer.text() for _ in messages] == messages
            peer.send(text("late") + close(4000, "in one go"))
            assert peer.text() == "late"
            assert peer.close() == (4000, "in one go")
            peer.end()


def test_bytes_in_the_segment_of_the_head_are_lost_where_the_table_says_so(server: Running) -> None:
    with server.peer() as peer:
        peer.open_with(head("/blocking") + text("early"))
        peer.send(text("late") + close())
        assert [peer.text() for _ in range(1 + server.kind.early)][-1] == "late"
        assert peer.close() == (1000, "")


def test_the_application_may_set_subprotocol_and_headers(server: Running) -> None:
    with server.peer() as peer:
        word = server.word()
        answer = peer.open(f"/choosing?{word}", Sec_WebSocket_Protocol="a, c, b")
        assert answer.status == 101
        assert answer["sec-websocket-protocol"] == "c"
        assert answer.all("set-cookie") == ["a=1", "b=2"]
        assert answer.all("x-own") == ["yes"]
        assert (
            answer["connection"].lower() == answer["upgrade"].lower() == "upgrade" or answer["upgrade"] == "websocket"
        )
        assert peer.text() == f"c {word}"
        assert peer.close() == (1000, "")


def test_close_codes_pass_in_both_directions(server: Running) -> None:
    for way in ways_of(server):
        with server.peer() as peer:
            word = server.word()
            peer.open(f"/{way}?{word}")
            peer.send(close(4001, "bye"))
            assert peer.close() == (4001, "bye")
            peer.end()
        server.program.wait_for_line(re.compile(f"ended {word} 4001 bye"))
        with server.peer() as peer:
            word = server.word()
            peer.open(f"/{way}?{word}")
            peer.send(text("end 4002"))
            assert peer.close() == (4002, "that was all")
            peer.send(close(4002))
            peer.end()
        server.program.wait_for_line(re.compile(f"ended {word} 4002"))
        with server.peer() as peer:
            word = server.word()
            peer.open(f"/{way}?{word}")
            peer.vanish()
        server.program.wait_for_line(re.compile(f"ended {word} 1006"))


def test_a_detached_socket_belongs_to_the_application(server: Running) -> None:
    with server.peer() as peer:
        word = server.word() if server.kind.background else f"here{server.word()}"
        peer.open_with(head(f"/detached?{word}") + (b"early" if server.kind.early else b""))
        expected = b""
        if server.kind.early:
            expected = b"raw:early"
            assert exactly(peer, len(expected)) == expected
        if server.kind.logs and server.kind.background:
            eventually(lambda: requests(server, word), f"the request of {word} in the log")
        assert server.get().body == b"page"
        peer.send(b"more")
        assert exactly(peer, 8) == b"raw:more"
    server.program.wait_for_line(re.compile(f"closed {word}"))


def exactly(peer: Peer, size: int) -> bytes:
    """This many bytes after the head."""
    data, peer._rest = peer._rest, b""
    while len(data) < size:
        more = peer.sock.recv(size - len(data))
        assert more, f"the stream ended behind {data!r}"
        data += more
    return data


@pytest.mark.need(13)
def test_the_access_log_has_one_line(server: Running) -> None:
    words = []
    for way in ways_of(server):
        with server.peer() as peer:
            words.append(server.word())
            peer.open(f"/{way}?{words[-1]}")
            peer.send(close())
            peer.close()
            peer.end()
    last = server.word()
    assert server.get(f"/page?{last}").status == 200
    if server.kind.logs:
        eventually(lambda: requests(server, last), "the last request in the log")
        for word in words:
            (line,) = eventually(lambda word=word: requests(server, word), f"the request of {word}")  # type: ignore[misc]
            assert re.search(r"\b101\b", line)
    else:
        assert [requests(server, word) for word in [*words, last]] == [[]] * (len(words) + 1)


def requests(running: Running, word: str) -> list[str]:
    """The lines of the access log for this connection's request."""
    return [line for line in running.program.output.splitlines() if f"?{word} " in line and "GET" in line]


@pytest.mark.need(12)
def test_pages_are_served_while_connections_are_open(server: Running) -> None:
    with ExitStack() as stack:
        peers = []
        for _ in range(6):
            for way in [way for way in ways_of(server) if way != "blocking"] or ["blocking"]:
                peers.append(stack.enter_context(server.peer()))
                peers[-1].open(f"/{way}")
        assert server.get().body == b"page"
        for number, peer in enumerate(peers):
            peer.send(text(str(number)))
        assert [peer.text() for peer in peers] == [str(number) for number in range(len(peers))]
        for peer in peers:
            peer.send(close())
            assert peer.close() == (1000, "")


def test_an_upgrade_may_be_a_later_request_of_its_connection(server: Running) -> None:
    for way in ways_of(server):
        with server.peer() as peer:
            peer.send(b"GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert peer.answer().body == b"page"
            if not server.kind.keeps_alive:
                assert peer.rest() == b""
                continue
            peer.send(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert peer.answer().status == 404
            peer.open_with(head(f"/{way}") + text("early"))
            peer.send(text("late") + close())
            assert [peer.text(), peer.text()] == ["early", "late"]
            assert peer.close() == (1000, "")
            peer.end()


def test_a_proxied_path_keeps_its_encoding(server: Running) -> None:
    with Upstream(echoing) as upstream:
        for path in ("/proxied/a%2Fb", "/%70roxied/%2f%252F%41%C3%A9/", "/proxied/%E9;a=b"):
            with server.peer() as peer:
                peer.open(f"{path}?{upstream.port}")
                peer.send(close())
                assert peer.close() == (1000, "")
                peer.end()
            assert target_of(upstream) == f"{path}?{upstream.port}"


# --- no connection ---------------------------------------------------------------------------------------


@pytest.mark.need(9)
def test_a_rejection_is_an_ordinary_response(server: Running) -> None:
    with server.peer() as peer:
        peer.send(head("/reject"))
        answer = peer.answer()
    assert (answer.status, answer.body, answer["www-authenticate"]) == (401, b"who are you?", "Basic")


def test_an_application_that_ignores_the_upgrade_responds_as_usual(server: Running) -> None:
    for path, status, body in (("/nowhere", 404, b"nothing here"), ("/page", 200, b"page"), ("/upgrade", 200, b"True")):
        with server.peer() as peer:
            peer.send(head(path))
            answer = peer.answer()
        assert (answer.status, answer.body) == (status, body)


def test_a_bad_handshake_is_answered_once(server: Running) -> None:
    for status, changes in (
        (426, {"Sec_WebSocket_Version": "8"}),
        (403, {"Origin": "http://evil.example"}),
        (400, {"Sec_WebSocket_Key": "short"}),
    ):
        with server.peer() as peer:
            peer.send(head("/blocking", **changes))
            answer = peer.answer()
        assert answer.status == status
        assert b"expected" in answer.body


@pytest.mark.parametrize(
    "fields, body",
    [({"Content_Length": "5"}, b"hello"), ({"Transfer_Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
def test_a_request_with_a_body_is_not_hijacked(server: Running, fields: dict[str, str], body: bytes) -> None:
    with server.peer() as peer:
        peer.send(head("/blocking", **fields) + body)
        assert peer.answer().status == 400
    assert server.get().body == b"page"


def test_plain_requests_are_unaffected(server: Running) -> None:
    for request in (head("/upgrade", Upgrade="h2c"), head("/upgrade", first="POST {} HTTP/1.1", Content_Length="0")):
        with server.peer() as peer:
            peer.send(request)
            assert peer.answer().body == b"False"
    with server.peer() as peer:
        peer.send(head("/upgrade", first="GET {} HTTP/1.0"))
        assert peer.answer().body == str(not server.kind.tells_versions).encode()


# --- applications that fail ------------------------------------------------------------------------------


def test_an_exception_in_the_handler_closes_with_1011(server: Running) -> None:
    for way in ways_of(server):
        told = server.program.output.count("DeliberateError")
        with server.peer() as peer:
            word = server.word()
            peer.open(f"/{way}?{word}")
            peer.send(text("before") + text("raise"))
            assert peer.text() == "before"
            code, reason = peer.close()
            assert code == 1011
            assert "Deliberate" not in reason
            peer.send(close(1011))
            peer.end()
        server.program.wait_for_line(re.compile(f"ended {word} 1011"))
        eventually(lambda told=told: server.program.output.count("DeliberateError") > told, "the exception in the log")  # type: ignore[misc]
    assert server.get().body == b"page"


def test_an_error_page_larger_than_a_socket_buffer_blocks_nothing(fleet: Fleet) -> None:
    server = fleet("werkzeug-debugger")
    with server.peer() as peer:
        peer.open(f"/blocking?{(word := server.word())}")
        peer.send(text("raise500000"))
        assert peer.close()[0] == 1011
        peer.send(close(1011))
        peer.end()
    assert eventually(lambda: [line for line in requests(server, word) if " 500 " in line], "the request in the log")
    # The debugger writes it after the page has been sent.
    server.program.wait_for_line(re.compile("DeliberateError: x{500000}"))


# --- what cannot work ------------------------------------------------------------------------------------


def refusal_of(running: Running, first: Any, **changes: Any) -> str:
    """The error that makes an accept respond with 500; the server continues."""
    with running.peer() as peer:
        peer.send(head("/blocking", **changes))
        assert peer.answer().status == first
    assert running.get().body == b"page"
    return running.program.wait_for_line(re.compile(r"^.*UnsupportedServerError: (.*)$", re.MULTILINE))[1]


def test_werkzeug_with_processes_cannot_run_in_the_background(fleet: Fleet) -> None:
    server = fleet("werkzeug-processes")
    for way in ("background", "async"):
        with server.peer() as peer:
            peer.open(f"/{way}")
            assert peer.close()[0] == 1011
            peer.send(close(1011))
            peer.end()
    error = server.program.wait_for_line(re.compile("UnsupportedServerError: (.*)"))[1]
    assert "werkzeug with processes=" in error, "it names the server"
    assert "threaded=True" in error, "it names a way out"
    assert "run()" in error, "and another one"
    assert server.get().body == b"page"


def test_gevents_own_server_needs_its_monkey_patching_for_tls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with start(SERVERS["pywsgi"], certificate) as server:
        server.wait_until_it_serves()
        error = refusal_of(server, 500)
    assert "gevent" in error
    assert "monkey.patch_all()" in error


def test_a_bridge_under_an_asgi_server_is_a_clear_error() -> None:
    with start(Kind("a2wsgi")) as server:
        server.wait_until_it_serves()
        error = refusal_of(server, 500)
    assert "a WSGI bridge of an ASGI server" in error
    assert "has no socket" in error
    assert "an ASGI application beside it" in error


def test_uvicorns_own_bridge_is_a_clear_error() -> None:
    with start(Kind("uvicorn-wsgi")) as server:
        server.wait_until_it_serves()
        error = refusal_of(server, 500)
    assert "a WSGI bridge of an ASGI server" in error
    assert "an ASGI application beside it" in error


def test_hypercorns_bridge_is_a_clear_error() -> None:
    with start(Kind("hypercorn-wsgi")) as server:
        server.wait_until_it_serves()
        with server.peer() as peer:
            peer.send(head("/blocking"))
            assert peer.answer().status == 403, "hypercorn itself knows that nobody will answer"
        # In this spelling hypercorn does not see that it is a WebSocket.
        error = refusal_of(server, 500, Upgrade="other, websocket")
    assert "hypercorn's WSGI bridge" in error
    assert "has no socket" in error
    assert "an ASGI application beside it" in error


@pytest.mark.parametrize(
    "name, environ",
    [("mod_wsgi", {"mod_wsgi.version": (6, 1, 1)}), ("bjoern", {"SERVER_SOFTWARE": "bjoern/3.2"}), ("other/1.0", {})],
)
def test_a_server_that_cannot_hand_over_its_socket_is_a_clear_error(name: str, environ: dict[str, Any]) -> None:
    """Neither can be started here: Apache is not installed, bjoern has no wheel. Only their environ matters."""
    environ = {"wsgi.input": io.BytesIO(), "SERVER_SOFTWARE": name, "wsgi.errors": io.StringIO(), **environ}
    environ |= {"REQUEST_METHOD": "GET", "PATH_INFO": "/blocking", "SERVER_PROTOCOL": "HTTP/1.1", "QUERY_STRING": ""}
    environ |= {"HTTP_HOST": "here", "HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
    environ |= {"HTTP_SEC_WEBSOCKET_KEY": KEY, "HTTP_SEC_WEBSOCKET_VERSION": "13"}
    answers: list[str] = []
    with pytest.raises(UnsupportedServerError) as error:
        create()(environ, lambda status, headers: answers.append(status))
    assert name.partition("/")[0] in str(error.value)
    assert "gunicorn" in str(error.value)
    assert answers == []


@pytest.fixture(scope="module")
def h2_server() -> Iterator[Running]:
    """A gunicorn that speaks HTTP/2 to clients that start with it, and to those that ask for it in an upgrade."""
    words = ("-k", "gthread", "--threads", "4", "--http-protocols", "h2,h1", "--http2-cleartext", "both")
    with start_gunicorn(*words) as running:
        yield running


def h2_headers(path: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [(":method", "GET"), (":scheme", "http"), (":authority", "127.0.0.1"), (":path", path), *more]


def h2_answer(peer: Peer, connection: H2Connection, stream: int) -> tuple[str, bytes]:
    """Status and body of one stream, or what happened to it instead."""
    status, body = "", b""
    while True:
        peer.send(connection.data_to_send())
        data, peer._rest = peer._rest or peer.sock.recv(65536), b""
        if not data:
            return "end of the TCP stream", body
        for event in connection.receive_data(data):
            if isinstance(event, StreamReset | ConnectionTerminated):
                return type(event).__name__, body
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, ResponseReceived):
                status = str(dict(event.headers)[b":status"], "ascii")
            elif isinstance(event, DataReceived):
                body += event.data
            elif isinstance(event, StreamEnded):
                return status, body


def test_an_http2_request_is_not_hijacked(h2_server: Running) -> None:
    words = [("sec-websocket-version", "13"), ("sec-websocket-key", KEY)]
    with h2_server.peer() as peer:
        connection = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        connection.initiate_connection()
        connection.send_headers(1, h2_headers("/upgrade", *words), end_stream=True)
        assert h2_answer(peer, connection, 1) == ("200", b"False")
        # The connection, which other requests share, is still the server's.
        connection.send_headers(3, h2_headers("/page"), end_stream=True)
        assert h2_answer(peer, connection, 3) == ("200", b"page")
        # RFC 9113 section 8.2.2 makes these malformed; however the server handles them, they are not an upgrade.
        malformed = [("upgrade", "websocket"), ("connection", "upgrade")]
        connection.send_headers(5, h2_headers("/upgrade", *words, *malformed), end_stream=True)
        assert h2_answer(peer, connection, 5) in (
            ("200", b"False"),
            ("StreamReset", b""),
            ("ConnectionTerminated", b""),
        )
    assert h2_server.get().body == b"page"


def test_a_request_upgraded_to_http2_is_not_hijacked(h2_server: Running) -> None:
    """RFC 7540 section 3.2: the HTTP/1.1 request that asks for HTTP/2 is answered on stream 1."""
    with h2_server.peer() as peer:
        connection = H2Connection(H2Configuration(client_side=True))
        settings = connection.initiate_upgrade_connection()
        assert settings is not None
        answer = peer.open_with(
            head(
                "/upgrade",
                Upgrade=["websocket", "h2c"],
                Connection="Upgrade, HTTP2-Settings",
                HTTP2_Settings=settings.decode(),
            )
        )
        assert answer["upgrade"] == "h2c"
        assert h2_answer(peer, connection, 1) == ("200", b"False")
    assert h2_server.get().body == b"page"
