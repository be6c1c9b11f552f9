"""The opening handshake (RFC 6455 section 4) on real streams: every refusal, and every form of request and response.

A refusal is answered by exactly one HTTP response, which h11 parses, or by no byte at all, as the caller chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any

import h11
import httpx
import pytest

from tests.support import LIMIT
from tests.support.waiting import in_thread
from tests.support.ways import CLIENT, SERVER, Link, Opener, Way
from tests.support.wire_peer import (
    BINARY,
    CONTINUATION,
    HANDSHAKE_KEY,
    TEXT,
    WirePeer,
    header,
    request_head,
    response_head,
    tcp_pair,
)
from watershed_mw import HandshakeError, ThreadConnection, Watershed
from watershed_mw.core.handshake.headers import Headers
from watershed_mw.core.handshake.negotiation import Request, Response

Fields = list[tuple[str, str]]

FIELDS: Fields = [
    ("Host", "127.0.0.1"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", HANDSHAKE_KEY),
    ("Sec-WebSocket-Version", "13"),
]
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def request(*more: tuple[str, str], line: str = "GET /chat HTTP/1.1", without: str = "") -> bytes:
    """A request head with ``more`` fields; ``without`` one of the usual ones, or with that field replaced."""
    fields = [field for field in FIELDS if field[0] != without] + list(more)
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields), "", ""]).encode("latin-1")


def replaced(name: str, value: str) -> bytes:
    return request((name, value), without=name)


# What is asked, with which options of ``accept``, and the status of the refusal.
REFUSALS: dict[str, tuple[bytes, dict[str, Any], int]] = {
    "POST": (request(line="POST /chat HTTP/1.1"), {}, 405),
    "lower-case get": (request(line="get /chat HTTP/1.1"), {}, 405),
    "HTTP/1.0": (request(line="GET /chat HTTP/1.0"), {}, 400),
    "no Host": (request(without="Host"), {}, 400),
    "two Hosts": (request(("Host", "other")), {}, 400),
    "no Upgrade": (request(without="Upgrade"), {}, 426),
    "Upgrade: h2c": (replaced("Upgrade", "h2c"), {}, 426),
    "Upgrade: websocket2": (replaced("Upgrade", "websocket2"), {}, 426),
    "no Connection": (request(without="Connection"), {}, 426),
    "Connection: notupgrade": (replaced("Connection", "notupgrade, keep-alive"), {}, 426),
    "no key": (request(without="Sec-WebSocket-Key"), {}, 400),
    "empty key": (replaced("Sec-WebSocket-Key", ""), {}, 400),
    "short key": (replaced("Sec-WebSocket-Key", "c2hvcnQ="), {}, 400),
    "key not base64": (replaced("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZ$=="), {}, 400),
    "key not ASCII": (replaced("Sec-WebSocket-Key", "\x80\xff" * 12), {}, 400),
    "two keys": (request(("Sec-WebSocket-Key", HANDSHAKE_KEY)), {}, 400),
    "no version": (request(without="Sec-WebSocket-Version"), {}, 426),
    "version 8": (replaced("Sec-WebSocket-Version", "8"), {}, 426),
    "version 13 and 8": (request(("Sec-WebSocket-Version", "8")), {}, 426),
    "other origin": (request(("Origin", "https://evil.example")), {}, 403),
    "origin null": (request(("Origin", "null")), {}, 403),
    "two origins": (request(("Origin", "http://127.0.0.1"), ("Origin", "http://127.0.0.1")), {}, 400),
    "no subprotocol supported": (request(("Sec-WebSocket-Protocol", "a")), {}, 400),
    "no subprotocol in common": (request(("Sec-WebSocket-Protocol", "a, B")), {"protocols": ["A", "b"]}, 400),
    "subprotocol twice": (request(("Sec-WebSocket-Protocol", "a, a")), {"protocols": ["a"]}, 400),
    "subprotocol of bytes": (request(("Sec-WebSocket-Protocol", "\x80\xff")), {"protocols": ["a"]}, 400),
    "subprotocol no token": (request(("Sec-WebSocket-Protocol", "a b")), {"protocols": ["a"]}, 400),
    "malformed extension": (request(("Sec-WebSocket-Extensions", "permessage-deflate; =")), {}, 400),
    "a body": (request(("Content-Length", "5")) + b"hello", {}, 400),
    "a chunked body": (request(("Transfer-Encoding", "chunked")), {}, 400),
    "a truncated head": (request()[:-2], {}, 400),
    "a truncated line": (b"GET /ch", {}, 400),
    "nothing": (b"", {}, 400),
    "a field without colon": (request().replace(b"Host:", b"Host"), {}, 400),
    "a field with NUL": (replaced("Host", "127\0"), {}, 400),
    "a field with a bare CR": (request(("X", "a\rEvil: b")), {}, 400),
    "every byte": (bytes(range(256)) + b"\r\n\r\n", {}, 400),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(range(200)), {}, 400),
    "a preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {}, 405),
    "a head of 65 KiB": (request(("X", "x" * 66_560)), {}, 431),
    "an endless line": (b"GET /" + b"x" * 100_000, {}, 431),
}
refusals = pytest.mark.parametrize("asked, options, status", REFUSALS.values(), ids=REFUSALS)


def attempt(opener: Opener, carrier: str, work: Callable[[Any], Any]) -> tuple[Any, bytes]:
    """Call ``work(carrier)``; return its result or exception, and every byte that the other end then reads."""
    ours, theirs = tcp_pair()
    with theirs:
        if carrier == "socket":
            with ours:
                outcome = _outcome(work, ours)
        else:
            outcome = opener.loop(carrier).call(_attempt_on_loop(ours, work))
        return outcome, read_all(theirs)


def _outcome(work: Callable[[Any], Any], carrier: Any) -> Any:
    try:
        return work(carrier)
    except Exception as error:  # noqa: BLE001  # the test looks at it
        return error


async def _attempt_on_loop(ours: socket.socket, work: Callable[[Any], Any]) -> Any:
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    outcome = _outcome(work, (reader, writer))
    writer.close()
    await writer.wait_closed()
    return outcome


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(2**16):
        pieces.append(piece)
    return b"".join(pieces)


def the_answer(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    """The single HTTP response in ``data``, and its body; h11 checks its validity."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "-")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = bytearray()
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return response, bytes(body)


@pytest.mark.parametrize("carrier", ["socket", "asyncio", "uvloop"])
@refusals
def test_a_refusal_is_one_valid_response(
    opener: Opener, carrier: str, asked: bytes, options: dict[str, Any], status: int
) -> None:
    error, written = attempt(opener, carrier, lambda stream: Watershed().accept(asked, stream, **options))
    assert isinstance(error, HandshakeError), error
    assert error.status == status
    answer, body = the_answer(written)
    assert answer.status_code == status
    assert body == error.body
    assert body.decode().startswith(("expected ", "no subprotocol in common"))
    fields = Headers([(name, value) for name, value in answer.headers])
    assert "close" in fields.get("connection")
    for name, value in error.headers:
        assert name == "Connection" or value == fields.get(name)
    if status == 426:
        # RFC 9110 section 15.5.22: "The server MUST send an Upgrade header field in a 426 response".
        assert fields.get("upgrade") == "websocket"
    if "version" in str(error).lower() and status == 426:
        assert fields.get("sec-websocket-version") == "13"


@pytest.mark.parametrize("carrier", ["socket", "asyncio"])
@refusals
def test_a_refusal_left_to_the_caller_writes_nothing(
    opener: Opener, carrier: str, asked: bytes, options: dict[str, Any], status: int
) -> None:
    def work(stream: Any) -> Any:
        return Watershed().accept(asked, stream, refuse=False, **options)

    error, written = attempt(opener, carrier, work)
    assert isinstance(error, HandshakeError)
    assert error.status == status
    assert written == b""


def test_a_426_lists_upgrade_in_connection(opener: Opener) -> None:
    """RFC 9110 section 7.8: a sender of Upgrade MUST also list it in Connection."""
    _, written = attempt(opener, "socket", lambda sock: Watershed().accept(REFUSALS["version 8"][0], sock))
    assert "upgrade" in (header(written, "connection") or "").lower()


def test_the_refusal_of_a_head_request_has_no_body(opener: Opener) -> None:
    """RFC 9110 section 9.3.2: a response to HEAD has no content."""
    asked = request(line="HEAD /chat HTTP/1.1")
    _, written = attempt(opener, "socket", lambda sock: Watershed().accept(asked, sock))
    answer, body = the_answer(written, "HEAD")
    assert answer.status_code == 405
    assert body == b""


def test_a_refusal_to_a_peer_that_has_left_still_raises() -> None:
    ours, theirs = tcp_pair()
    with ours:
        WirePeer(theirs, CLIENT).reset()
        with pytest.raises(HandshakeError):
            Watershed().accept(REFUSALS["POST"][0], ours)


# --- what a caller may not write --------------------------------------------------------------------------

INJECTIONS: dict[str, dict[str, Any]] = {
    "CRLF in a value": {"headers": [("X", "a\r\nSet-Cookie: b")]},
    "LF in a value": {"headers": [("X", "a\nb")]},
    "NUL in a value": {"headers": [("X", "a\0b")]},
    "CRLF in a name": {"headers": [("X: y\r\nZ", "a")]},
    "colon in a name": {"headers": [("X:", "a")]},
    "empty name": {"headers": [("", "a")]},
    "beyond ISO-8859-1": {"headers": [("X", "€")]},
    "CRLF in a subprotocol": {"protocols": ["a\r\nSet-Cookie: b"]},
    "comma in a subprotocol": {"protocols": ["a, b"]},
    "a string as subprotocols": {"protocols": "abc"},
}
injections = pytest.mark.parametrize("options", INJECTIONS.values(), ids=INJECTIONS)


@injections
@pytest.mark.parametrize("carrier", ["socket", "asyncio"])
def test_values_that_would_break_the_response_are_refused_first(
    opener: Opener, carrier: str, options: dict[str, Any]
) -> None:
    error, written = attempt(opener, carrier, lambda stream: Watershed().accept(request(), stream, **options))
    assert type(error) is ValueError
    assert written == b""


@injections
def test_values_that_would_break_the_request_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Watershed().request_head("ws://127.0.0.1/", HANDSHAKE_KEY, **options)


@pytest.mark.parametrize(
    "url, key",
    [
        ("ws://127.0.0.1/ HTTP/1.1\r\nX: y", HANDSHAKE_KEY),
        ("ws://127.0.0.1/a b", HANDSHAKE_KEY),
        ("ws://127.0.0.1/ä", HANDSHAKE_KEY),
        ("ws://127.0.0.1/\0", HANDSHAKE_KEY),
        ("ws://127.0.0.1/#part", HANDSHAKE_KEY),
        ("ws:///path", HANDSHAKE_KEY),
        ("ftp://127.0.0.1/", HANDSHAKE_KEY),
        ("ws://127.0.0.1/", "key\r\nX: y"),
    ],
)
def test_a_url_or_key_that_would_break_the_request_is_refused(url: str, key: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Watershed().request_head(url, key)


def test_additional_headers_are_in_the_response(opener: Opener) -> None:
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Name", "Käse")]
    conn, written = attempt(opener, "socket", lambda sock: Watershed().accept(request(), sock, headers=cookies))
    assert isinstance(conn, ThreadConnection)
    assert written.startswith(b"HTTP/1.1 101 ")
    assert header(written, "sec-websocket-accept") == ACCEPT
    for name, value in cookies:
        assert f"\r\n{name}: {value}\r\n".encode("latin-1") in written


# --- unusual, but right -----------------------------------------------------------------------------------

UNUSUAL: dict[str, bytes] = {
    "any case": replaced("Upgrade", "WebSocket"),
    "several tokens": replaced("Connection", "keep-alive,Upgrade , close"),
    "several Connections": request(("Connection", "keep-alive")),
    "empty list elements": replaced("Connection", ", ,Upgrade,,"),
    "own origin": request(("Origin", "http://127.0.0.1")),
    "an extension that nobody knows": request(("Sec-WebSocket-Extensions", "x-unknown; a=1")),
    "2,000 headers": request(*((f"X-{number}", "x") for number in range(2000))),
    "32,000 spaces before a value": replaced("Connection", " " * 32_000 + "Upgrade"),
    "32,000 spaces in a value": replaced("Connection", "keep-alive," + " " * 32_000 + "Upgrade"),
    "32,000 spaces in an offer": request(("Sec-WebSocket-Extensions", "x-unknown;" + " " * 32_000 + "a")),
}


@pytest.mark.parametrize("asked", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_request_is_accepted_quickly(opener: Opener, asked: bytes) -> None:
    began = time.monotonic()
    _, written = attempt(opener, "socket", lambda sock: Watershed(compression=False).accept(asked, sock))
    assert time.monotonic() - began < 1
    assert written.startswith(b"HTTP/1.1 101 ")
    assert header(written, "sec-websocket-accept") == ACCEPT
    assert header(written, "sec-websocket-extensions") is None


@pytest.mark.advisory("CVE-2021-32640")
def test_32_000_spaces_between_words_are_refused_quickly(opener: Opener) -> None:
    asked = replaced("Upgrade", "web" + " " * 32_000 + "socket")
    began = time.monotonic()
    error, _ = attempt(opener, "socket", lambda sock: Watershed().accept(asked, sock))
    assert time.monotonic() - began < 1
    assert error.status == 400


# --- byte by byte ------------------------------------------------------------------------------------------


def read_head(sock: socket.socket) -> bytes:
    """A program that reads a head from a socket."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            break
        data += piece
    return data


def test_a_head_may_reach_a_socket_byte_by_byte() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        peer = WirePeer(theirs, CLIENT)
        accepting = in_thread(lambda: Watershed().accept(read_head(ours), ours))
        for octet in request_head():
            peer.write(bytes([octet]))
        assert peer.read_head().startswith(b"HTTP/1.1 101 ")
        conn: ThreadConnection = accepting.result(LIMIT)
        conn.send("hello")
        peer.expect(TEXT, "hello")
        conn.destroy()


def test_a_head_may_reach_a_stream_reader_byte_by_byte(opener: Opener) -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)

    async def serve() -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        conn = Watershed().accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer))
        async with asyncio.timeout(LIMIT), conn:
            conn.send(await conn.receive())

    with theirs:
        peer = WirePeer(theirs, CLIENT)
        serving = asyncio.run_coroutine_threadsafe(serve(), opener.loop().loop)
        for octet in request_head():
            peer.write(bytes([octet]))
        peer.read_head()
        peer.send(TEXT, "hello")
        peer.expect(TEXT, "hello")
        peer.answer_close()
        serving.result(LIMIT)


def test_an_incomplete_head_is_refused_where_it_was_read() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        theirs.sendall(request()[:60])
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeError) as caught:
            Watershed().accept(read_head(ours), ours)
        assert caught.value.status == 400
        ours.close()
        assert the_answer(read_all(theirs))[0].status_code == 400


# --- forms of a request ------------------------------------------------------------------------------------

FIELD_BYTES = [(name.lower().encode(), value.encode()) for name, value in FIELDS]
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/chat",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in FIELDS},
}
SCOPE = {"http_version": "1.1", "path": "/chat", "query_string": b"", "headers": FIELD_BYTES}
FORMS: dict[str, Any] = {
    "bytes": request(),
    "bytearray": bytearray(request()),
    "memoryview": memoryview(request()),
    "environ": ENVIRON,
    "scope of websocket": {"type": "websocket", **SCOPE},
    "scope of http": {"type": "http", "method": "GET", **SCOPE},
    "httpx.Request": httpx.Request("GET", "http://127.0.0.1/chat", headers=FIELDS),
    "mapping": dict(FIELDS),
    "httpx.Headers": httpx.Headers(FIELDS),
    "Request": Request(Headers(FIELDS), target="/chat"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_request_is_accepted_in_any_form(form: Any) -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    with theirs, Watershed().accept(form, ours, headers=[("X", "y")]) as conn:
        head = peer.read_head()
        assert header(head, "sec-websocket-accept") == ACCEPT
        assert header(head, "x") == "y"
        peer.send(TEXT, "hello")
        assert conn.receive(LIMIT) == "hello"
        conn.destroy()


ENVIRON_FIELDS = {"Upgrade": "HTTP_UPGRADE", "Sec-WebSocket-Key": "HTTP_SEC_WEBSOCKET_KEY"}
BAD_FORMS: dict[str, tuple[Any, int]] = {
    "environ of POST": (ENVIRON | {"REQUEST_METHOD": "POST"}, 405),
    "environ of HTTP/1.0": (ENVIRON | {"SERVER_PROTOCOL": "HTTP/1.0"}, 400),
    "environ with a body": (ENVIRON | {"CONTENT_LENGTH": "5"}, 400),
    "environ without key": ({name: ENVIRON[name] for name in ENVIRON if name != "HTTP_SEC_WEBSOCKET_KEY"}, 400),
    "scope of HTTP/1.0": ({"type": "http", **SCOPE, "http_version": "1.0"}, 400),
    "scope of POST": ({"type": "http", **SCOPE, "method": "POST"}, 405),
    "scope with two keys": ({"type": "http", **SCOPE, "headers": [*FIELD_BYTES, FIELD_BYTES[3]]}, 400),
    "httpx.Request of PUT": (httpx.Request("PUT", "http://127.0.0.1/", headers=FIELDS), 405),
    "httpx.Request with two keys": (httpx.Request("GET", "http://127.0.0.1/", headers=[*FIELDS, FIELDS[3]]), 400),
    "empty mapping": ({}, 400),
}


@pytest.mark.parametrize("form, status", BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_request_is_validated_in_any_form(opener: Opener, form: Any, status: int) -> None:
    error, written = attempt(opener, "socket", lambda sock: Watershed().accept(form, sock))
    assert isinstance(error, HandshakeError)
    assert error.status == the_answer(written)[0].status_code == status


@pytest.mark.parametrize(
    "form", [None, 5, "GET / HTTP/1.1\r\n\r\n", object(), [1]], ids=lambda form: type(form).__name__
)
def test_a_request_of_another_type_is_a_type_error(opener: Opener, form: Any) -> None:
    error, written = attempt(opener, "socket", lambda sock: Watershed().accept(form, sock))
    assert type(error) is TypeError
    assert written == b""


@pytest.mark.parametrize("stream", [None, 5, b"", (), object()], ids=lambda stream: type(stream).__name__)
def test_a_stream_of_another_type_is_a_type_error(stream: Any) -> None:
    with pytest.raises(TypeError, match="expected a socket"):
        Watershed().accept(request(), stream)
    with pytest.raises(TypeError, match="expected a socket"):
        Watershed().connect(response_head(HANDSHAKE_KEY), stream, key=HANDSHAKE_KEY)


class Handler(BaseHTTPRequestHandler):
    """A program that upgrades connections of the standard library's server."""

    protocol_version = "HTTP/1.1"
    origins: str | None = None

    def do_GET(self) -> None:
        with contextlib.suppress(HandshakeError), Watershed().accept(self, self.connection) as conn:
            conn.on("text", conn.send)
            conn.run()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's own name for it
        pass


def test_a_request_handler_of_http_server_may_read_byte_by_byte() -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    with ours, theirs:
        handling = in_thread(lambda: Handler(ours, ours.getpeername(), None))  # type: ignore[arg-type]
        for octet in request_head():
            peer.write(bytes([octet]))
        assert header(peer.read_head(), "sec-websocket-accept") == ACCEPT
        peer.send(TEXT, "hello")
        peer.expect(TEXT, "hello")
        peer.begin_close()
        handling.result(LIMIT)


def test_a_request_handler_of_http_server_sends_the_refusal() -> None:
    ours, theirs = tcp_pair()
    with theirs:
        theirs.sendall(REFUSALS["version 8"][0])
        with ours:
            Handler(ours, ours.getpeername(), None)  # type: ignore[arg-type]
        assert the_answer(read_all(theirs))[0].status_code == 426


# --- connect -----------------------------------------------------------------------------------------------


def response(*more: tuple[str, str], without: str = "", line: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
    fields = [field for field in fields if field[0] != without] + list(more)
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields), "", ""]).encode("latin-1")


DEFLATE = ("Sec-WebSocket-Extensions", "permessage-deflate")
BAD_RESPONSES: dict[str, tuple[bytes, int]] = {
    "200": (response(("Content-Length", "2"), line="HTTP/1.1 200 OK") + b"hi", 200),
    "302": (response(("Location", "/"), line="HTTP/1.1 302 Found"), 302),
    "404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", 404),
    "503 without reason": (b"HTTP/1.1 503\r\n\r\n", 503),
    "no Upgrade": (response(without="Upgrade"), 101),
    "no Connection": (response(without="Connection"), 101),
    "Connection: close": (response(("Connection", "close"), without="Connection"), 101),
    "no Accept": (response(without="Sec-WebSocket-Accept"), 101),
    "wrong Accept": (response_head("AAAAAAAAAAAAAAAAAAAAAA=="), 101),
    "two Accepts": (response(("Sec-WebSocket-Accept", ACCEPT)), 101),
    "Accept not ASCII": (response(("Sec-WebSocket-Accept", "\x80\xff"), without="Sec-WebSocket-Accept"), 101),
    "subprotocol that was not offered": (response(("Sec-WebSocket-Protocol", "c")), 101),
    "subprotocol in other case": (response(("Sec-WebSocket-Protocol", "A")), 101),
    "two subprotocols": (response(("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "b")), 101),
    "list of subprotocols": (response(("Sec-WebSocket-Protocol", "a, b")), 101),
    "extension that was not offered": (response(("Sec-WebSocket-Extensions", "x-webkit-deflate-frame")), 101),
    "compression that was not offered": (response(DEFLATE), 101),
    "malformed extension": (response(("Sec-WebSocket-Extensions", ";")), 101),
    "a truncated head": (response()[:-2], 400),
    "nothing": (b"", 400),
    "every byte": (bytes(range(256)) + b"\r\n\r\n", 400),
    "a request": (request(), 400),
}


@pytest.mark.parametrize("carrier", ["socket", "asyncio"])
@pytest.mark.parametrize("answer, status", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_that_is_not_a_101_is_refused_and_nothing_is_written(
    opener: Opener, carrier: str, answer: bytes, status: int
) -> None:
    shed = Watershed(compression=False, protocols=["a", "b"])
    asked = shed.request_head("ws://127.0.0.1/chat", HANDSHAKE_KEY)

    def work(stream: Any) -> Any:
        return shed.connect(answer, stream, key=HANDSHAKE_KEY, request=asked)

    error, written = attempt(opener, carrier, work)
    assert isinstance(error, HandshakeError), error
    assert error.status == status
    assert str(error).startswith("expected ")
    assert written == b""


def httpx_response(asked: Iterable[tuple[str, str]] = FIELDS) -> httpx.Response:
    fields = Headers(_fields(response()))
    return httpx.Response(101, headers=list(fields), request=httpx.Request("GET", "http://-/", headers=list(asked)))


def _fields(head: bytes) -> Fields:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines) if name]


RESPONSE_FORMS: dict[str, Any] = {
    "bytes": response(),
    "bytearray": bytearray(response()),
    "httpx.Response": httpx_response(),
    "tuple of pairs": (101, _fields(response())),
    "tuple of mapping": (101, dict(_fields(response()))),
    "Response": Response(101, Headers(_fields(response()))),
}


@pytest.mark.parametrize("form", RESPONSE_FORMS.values(), ids=RESPONSE_FORMS)
def test_a_response_is_accepted_in_any_form(form: Any) -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, SERVER)
    with theirs, Watershed().connect(form, ours, key=HANDSHAKE_KEY) as conn:
        conn.send("hello")
        peer.expect(TEXT, "hello")
        peer.send(TEXT, "world")
        assert conn.receive(LIMIT) == "world"
        conn.destroy()


def test_the_offer_is_read_from_the_httpx_request() -> None:
    shed = Watershed(compression=False)
    fields = [*_fields(response()), ("Sec-WebSocket-Protocol", "chat")]
    asked = httpx.Request("GET", "http://-/", headers=shed.request_headers(HANDSHAKE_KEY, ["chat"]))
    ours, theirs = tcp_pair()
    with theirs, shed.connect(httpx.Response(101, headers=fields, request=asked), ours, key=HANDSHAKE_KEY) as conn:
        assert conn.protocol == "chat"
        conn.destroy()


@pytest.mark.parametrize("form", [None, 101, "HTTP/1.1 101", (101,), object()], ids=lambda form: type(form).__name__)
def test_a_response_of_another_type_is_a_type_error(opener: Opener, form: Any) -> None:
    error, written = attempt(opener, "socket", lambda sock: Watershed().connect(form, sock, key=HANDSHAKE_KEY))
    assert type(error) is TypeError
    assert written == b""


def test_without_the_key_no_response_is_accepted(opener: Opener) -> None:
    error, _ = attempt(opener, "socket", lambda sock: Watershed().connect(response(), sock))
    assert isinstance(error, HandshakeError)


# --- hostile frames -----------------------------------------------------------------------------------------

HOSTILE = (Way("asyncio", "streams", False, SERVER), Way("threads", "socket", False, CLIENT))
hostile = pytest.mark.parametrize("way", HOSTILE, ids=str)


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-44545")
@hostile
@pytest.mark.parametrize("size, code", [(2**62, 1009), (2**63 - 1, 1009), (2**63, 1002), (2**64 - 1, 1002)])
def test_a_frame_that_declares_too_much_is_refused_by_its_header(link: Link, way: Way, size: int, code: int) -> None:
    live, peer = link()
    over = live.run()
    masked = way.role is SERVER
    peer.write(bytes([0x82, 0x80 * masked | 127]), size.to_bytes(8, "big"), b"mask" * masked)
    peer.expect_close(code)
    peer.expect_end()
    peer.close()
    assert over.result(LIMIT)[0] == code


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-48779")
@hostile
def test_a_flood_of_empty_fragments_is_refused(link: Link) -> None:
    live, peer = link(max_fragments=10_000)
    over = live.run()
    peer.write(peer.frame(BINARY, fin=False), peer.frame(CONTINUATION, fin=False) * 10_000)
    peer.expect_close(1008)
    peer.expect_end()
    peer.close()
    assert over.result(LIMIT)[0] == 1008


@hostile
def test_empty_fragments_within_the_limit_are_one_empty_message(link: Link) -> None:
    live, peer = link()
    peer.write(peer.frame(BINARY, fin=False), peer.frame(CONTINUATION, fin=False) * 50_000, peer.frame(CONTINUATION))
    assert live.receive() == b""
