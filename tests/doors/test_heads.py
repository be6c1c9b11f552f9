"""The head of an upgrade by every parser: h11; httptools; and uvicorn's own fields, where they match it exactly.

All must agree on every head, however hostile (RFC 9112, RFC 6455 section 4.2.1); h11 is the reference.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

import watershed_mw.http.parse
import watershed_mw.uvicorn.request
from tests.support import LIMIT
from tests.support.asgi import accept
from tests.support.threaded_servers import Uvicorn
from watershed_mw.core.handshake.negotiation import Request, check_request
from watershed_mw.errors import HandshakeError
from watershed_mw.http.parse import as_parsed, read_by_h11, read_request_head
from watershed_mw.uvicorn import WatershedProtocol
from watershed_mw.uvicorn.request import read_request

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    b"Host: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)
PLAIN = b"GET /chat?room=1 HTTP/1.1\r\n" + UPGRADE + b"Cookie: a=1; b=2\r\n\r\n"


def with_field(line: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + UPGRADE + line + b"\r\n\r\n"


def with_first_line(line: bytes) -> bytes:
    return line + b"\r\n" + UPGRADE + b"\r\n"


HEADS = (
    PLAIN,
    *(
        with_field(line)
        for line in (
            b"X:",
            b"X: ",
            b"X:\t",
            b"X:  two",
            b"X: behind ",
            b"X: behind\t",
            b"X: a  b:  c",
            b"X: a\r\n folded",
            b"X: a\r\n\tfolded",
            b"X : a",
            b" X: a",
            b": a",
            b"X",
            b"X: a\nY: b",
            b"X: a\rY: b",
            b"X: a\r\r\nY: b",
            b"X: \x00",
            b"X: \x0b",
            b"X: \x7f",
            b"X: \xff\x80",
            b"X\xff: a",
            b"X: gr\xc3\xbc\xc3\x9fe",
            b"X(: a",
            b"X: a\r\nx: b\r\nX: c",
            b"Host: b.example",
            b"host: a.example",
            b"Sec-WebSocket-Key: " + KEY,
            b"Sec-WebSocket-Version: 13",
            b"Upgrade: h2c",
            b"Connection: close",
            b"Origin: https://a.example\r\nOrigin: https://b.example",
            b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: a",
            b"Sec-WebSocket-Extensions: permessage-deflate; x=\"",
            b"Content-Length: 0",
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Content-Length: 0\r\nContent-Length: 0",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        )
    ),
    *(
        with_first_line(line)
        for line in (
            b"POST / HTTP/1.1",
            b"get / HTTP/1.1",
            b"GET / HTTP/1.0",
            b"GET / HTTP/2.0",
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"GET /a b HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET /\xff HTTP/1.1",
            b"GET /\ttab HTTP/1.1",
            b"GET /?a?b%20c#d HTTP/1.1",
            b"GET http://a.example/x HTTP/1.1",
            b"GET * HTTP/1.1",
            b"\r\nGET / HTTP/1.1",
        )
    ),
    PLAIN.replace(b"Host: a.example\r\n", b""),
    PLAIN.replace(b"\r\n", b"\n"),
    PLAIN.replace(b"Upgrade: websocket", b"Upgrade: \t websocket \t"),
)  # fmt: skip


def judged(reader: Any, *args: Any) -> tuple[Request, bytes] | int:
    """The result of a parser and of the handshake for a head: the request and the rest, or a status."""
    try:
        request, *_, rest = reader(*args)
        check_request(request, "*")
    except HandshakeError as error:
        return error.status
    return request, rest


class Comparing(WatershedProtocol):
    """The class under test, which gives each head from uvicorn to both parsers."""

    seen: list[tuple[Any, Any]] = []  # noqa: RUF012

    def data_received(self, data: bytes) -> None:
        """Compare the results, and continue."""
        http: Any = self._transport.get_protocol()
        by_h11 = judged(
            read_by_h11, data.replace(b" HTTP/1.1\r\n", b" HTTP/%b\r\n" % http.scope["http_version"].encode(), 1)
        )
        self.seen.append((judged(read_request, self._transport, data), by_h11))
        super().data_received(data)


async def accepting(scope: Any, receive: Any, send: Any) -> None:
    await accept(receive, send)
    await receive()


@pytest.fixture(scope="module", params=["h11", "httptools"])
def comparing(request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    with Uvicorn(accepting, http=request.param, ws=Comparing) as server:
        yield server


def answer_to(server: Uvicorn, head: bytes) -> bytes:
    """The first line of the response; empty if the server waits for more, which these heads may look like."""
    with socket.create_connection(("127.0.0.1", server.port), LIMIT) as sock:
        sock.sendall(head)
        sock.shutdown(socket.SHUT_WR)
        try:
            return sock.recv(4096).partition(b"\r\n")[0]
        except ConnectionError:
            return b""


def with_byte(place: str, byte: int) -> bytes:
    """A plain head with one more byte somewhere."""
    one = bytes([byte])
    place_of = {"method": b"E", "target": b"/", "version": b"1.", "name": b"X", "end of name": b"y", "value": b": a"}
    first, field = b"GET /a HTTP/1.1", b"Xy: ab"
    mark = place_of[place]
    if place in ("method", "target", "version"):
        first = first.replace(mark, mark + one)
    else:
        field = field.replace(mark, mark + one)
    return first + b"\r\n" + UPGRADE + field + b"\r\n\r\n"


PLACES = ("method", "target", "version", "name", "end of name", "value")


def test_both_parsers_agree_on_every_raw_head() -> None:
    for head in HEADS:
        for data in (head, head + b"\x81\x80", head[:-1], head[:-2], head + head):
            assert judged(read_request_head, data) == judged(read_by_h11, data), data


@pytest.mark.parametrize("place", PLACES)
def test_both_parsers_agree_on_every_byte_at_every_position(place: str) -> None:
    for byte in range(256):
        head = with_byte(place, byte)
        assert judged(read_request_head, head) == judged(read_by_h11, head), head


def test_a_plain_head_is_parsed_by_httptools_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    early = PLAIN + b"\x81\x80"
    by_h11 = read_by_h11(early)

    def never(data: bytes) -> Any:
        raise AssertionError(data)

    with monkeypatch.context() as patch:
        patch.setattr(watershed_mw.http.parse, "read_by_h11", never)
        assert read_request_head(early) == by_h11
    monkeypatch.setattr(watershed_mw.http.parse, "httptools", None)
    assert read_request_head(early) == by_h11


def test_uvicorns_fields_give_the_same_request_as_the_head(comparing: Uvicorn) -> None:
    Comparing.seen.clear()
    heads = [*HEADS, *(with_byte(place, byte) for place in PLACES for byte in range(0, 256, 5))]
    answers = {head: answer_to(comparing, head) for head in heads}
    assert answers[PLAIN] == b"HTTP/1.1 101 Switching Protocols"
    assert len(Comparing.seen) > 100, "hardly a head got past uvicorn's own parser"
    for taken, parsed in Comparing.seen:
        assert taken == parsed


class _Transport:
    """A transport with any protocol that uvicorn may use."""

    def __init__(self, protocol: object) -> None:
        self._protocol = protocol

    def get_protocol(self) -> object:
        return self._protocol


class _Layer:
    def __init__(self, headers: object) -> None:
        self.headers = headers


FIELDS = [(b"host", b"a.example"), (b"x", b"1")]
HEAD = b"GET / HTTP/1.1\r\nhost: a.example\r\nx: 1\r\n\r\n"


def read(headers: object, head: bytes = HEAD) -> tuple[Request, list[tuple[bytes, bytes]], bytes]:
    return read_request(_Transport(_Layer(headers)), head)  # type: ignore[arg-type]


def test_what_uvicorn_has_parsed_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = read_request_head(HEAD)

    def never(data: bytes) -> Any:
        raise AssertionError(data)

    monkeypatch.setattr(watershed_mw.uvicorn.request, "read_request_head", never)
    request, fields, rest = read(FIELDS)
    assert (request, fields, rest) == (expected, FIELDS, b"")


@pytest.mark.parametrize(
    "headers",
    [
        None,
        tuple(FIELDS),
        [],
        FIELDS[:1],
        [*FIELDS, (b"y", b"2")],
        FIELDS[::-1],
        [(b"host", b"a.example"), (b"x", b"2")],
        [(b"host", b"a.example\r\nx: 1")],
    ],
)
def test_fields_that_do_not_match_the_head_are_not_used(headers: object) -> None:
    request, fields, rest = read(headers)
    assert request == read_request_head(HEAD)[0]
    assert (fields, rest) == (FIELDS, b"")


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b" two"),
        (b"x", b"two "),
        (b"x", b""),
        (b"x ", b"two"),
        (b"x", b"t\two"),
        (b"x", b"tw\xf6"),
        (b"x", b"two\r\n folded"),
        (b"x", b"two\nthree"),
        (b"host", b"b.example"),
        (b"content-length", b"0"),
        (b"transfer-encoding", b"chunked"),
    ],
)
def test_headers_that_a_lenient_parser_may_accept_are_parsed_by_h11(field: tuple[bytes, bytes]) -> None:
    fields = [(b"host", b"a.example"), field]
    assert as_parsed(fields, b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % one for one in fields) + b"\r\n") is None


@pytest.mark.parametrize("line", [b"GET  / HTTP/1.1", b"GET / HTTP/1.0", b"GET /", b" / HTTP/1.1", b"GET / a HTTP/1.1"])
def test_unusual_request_lines_are_parsed_by_h11(line: bytes) -> None:
    assert as_parsed(FIELDS, HEAD.replace(b"GET / HTTP/1.1", line)) is None
    assert as_parsed(FIELDS, HEAD) is not None


def test_bytes_after_the_head_are_kept() -> None:
    assert read(FIELDS, HEAD + b"\x81\x80")[2] == b"\x81\x80"


def test_a_head_above_the_limit_is_refused_by_every_parser() -> None:
    fields = [(b"host", b"a.example"), *[(b"x-%d" % number, b"y" * 64) for number in range(1_000)]]
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    with pytest.raises(HandshakeError) as refusal:
        read(fields, head)
    assert refusal.value.status == 431


def test_ordinary_heads_are_parsed_in_linear_time() -> None:
    fields = [(b"host", b"a.example"), *[(b"x", b"y")] * 9_000]
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    begin = time.process_time()
    request = read(fields, head)[0]
    assert request.headers.get("x").count("y") == 9_000
    assert time.process_time() - begin < 0.5
