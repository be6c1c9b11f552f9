"""Targets for HTTP input: heads of requests and responses, and the fields of the opening handshake."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.fuzz.source import Source, mutated
from watershed_mw import HandshakeError
from watershed_mw.core.handshake.extensions import DeflateOptions, accept_offer, check_answer, make_offer
from watershed_mw.core.handshake.headers import Headers, is_token, parse_extensions
from watershed_mw.core.handshake.negotiation import (
    Request,
    Response,
    accept_key,
    check_request,
    check_response,
    negotiate,
    offered_subprotocols,
    select_subprotocol,
)
from watershed_mw.http.adapt import as_request
from watershed_mw.http.parse import read_by_h11, read_request_head, read_response_head
from watershed_mw.http.write import write_refusal, write_switch

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
REQUEST_HEAD = (
    b"GET /p/x?y=1 HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
RESPONSE_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12\r\n"
)
GOOD = {
    "Host": "a.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Accept": ACCEPT,
    "Sec-WebSocket-Version": "13",
}
NAMES = (*GOOD, "Origin", "Content-Length", "Transfer-Encoding", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions")
# From which values are put together that get past the first check.
PARTS = (
    "permessage-deflate", "server_max_window_bits", "client_max_window_bits", "server_no_context_takeover",
    "client_no_context_takeover", "=", "; ", ", ", '"', "8", "9", "12", "15", "16", "08", "\\", "chat", "superchat",
    "websocket", "Upgrade", "keep-alive", "http://a.example", "https://x.b.example", "null", "*", " ", "\t", "é",
)  # fmt: skip


def value(source: Source) -> str:
    """A field's value: meaningful parts, or anything."""
    if source.boolean():
        return source.text(30)
    return "".join([source.pick(PARTS) for _ in range(source.integer(0, 8))])


def headers(source: Source) -> Headers:
    """The headers of a valid handshake, some of them missing, and others added."""
    fields: list[tuple[str | bytes, str | bytes]] = [pair for pair in GOOD.items() if not source.rarely()]
    fields += [(source.pick(NAMES), value(source)) for _ in range(source.integer(0, 3))]
    return Headers(fields)


def options(source: Source) -> DeflateOptions:
    """One end's permessage-deflate options."""
    return DeflateOptions(window_bits=source.integer(9, 15), context_takeover=source.boolean())


def request_heads(source: Source) -> None:
    """Both parsers agree on a raw request head, and the response to it can be parsed again."""
    lines = b"".join(source.data(20) + b": " + source.data(30) + b"\r\n" for _ in range(source.integer(0, 2)))
    data = mutated(source, REQUEST_HEAD + lines + b"\r\n") + source.data(20)
    read = [_read(reader, data) for reader in (read_request_head, read_by_h11)]
    assert read[0] == read[1], read
    if read[0] is None:
        return
    request, rest = read[0]
    assert data.endswith(rest)
    for name, text in request.headers:
        assert is_token(name), name
        assert not set(text) & {"\r", "\n", "\0"}, text
    try:
        key = check_request(request)
        agreement, fields = negotiate(request, key, subprotocol=None, deflate=DeflateOptions())
    except HandshakeError as error:
        _check_refusal(write_refusal(error), error.status)
        return
    response, rest = read_response_head(write_switch(fields) + b"frames")
    assert rest == b"frames"
    again = check_response(response, key, offered=request.headers, deflate=DeflateOptions(window_bits=15))
    assert (again.deflate is None) is (agreement.deflate is None)


def _read(reader: Any, data: bytes) -> tuple[Request, bytes] | None:
    try:
        result: tuple[Request, bytes] = reader(data)
    except HandshakeError as error:
        assert 400 <= error.status < 500, error.status
        return None
    return result


def _check_refusal(answer: bytes, status: int) -> None:
    response, rest = read_response_head(answer)
    assert response.status == status
    assert int(response.headers.get("content-length")) == len(rest)


def requests_as_given(source: Source) -> None:
    """A WSGI environ or an ASGI scope is used as it is, and validated like any other request."""
    fields = [(source.pick(NAMES), value(source)) for _ in range(source.integer(0, 4))]
    if source.boolean():
        given: dict[str, Any] = {"REQUEST_METHOD": source.pick(("GET", "get", "POST", "")), "PATH_INFO": source.text(9)}
        given |= {f"HTTP_{name.upper().replace('-', '_')}": text for name, text in (*GOOD.items(), *fields)}
        given |= {"SERVER_PROTOCOL": source.pick(("HTTP/1.1", "HTTP/1.0", "HTTP/2", "", "x.y"))}
    else:
        given = {"type": "websocket", "path": source.text(9), "query_string": source.data(9)}
        given["http_version"] = source.pick(("1.1", "1.0", "2", "3", "", "1.", ".1"))
        raw = [(name, text.encode("utf-8", "replace")) for name, text in (*GOOD.items(), *fields)]
        given["headers"] = [(name.lower().encode(), text) for name, text in raw if not source.rarely()]
        given["subprotocols"] = [source.text(5) for _ in range(source.integer(0, 2))]
    request = as_request(given)
    with contextlib.suppress(HandshakeError):
        check_request(request, ["*.b.example", "localhost:*", "null"])


def handshakes(source: Source) -> None:
    """A request as a server checks it, then a response as a client does."""
    wanted = options(source)
    request = Request(headers(source), http_version=source.pick(("1.1", "1.0", "2", "", "1", "a.b", "9" * 50)))
    with contextlib.suppress(HandshakeError):
        key = check_request(request, ["*.b.example", "localhost:*", "null"])
        subprotocol = select_subprotocol(offered_subprotocols(request.headers), ["chat"])
        assert subprotocol in (None, "chat")
        negotiate(request, key, subprotocol=subprotocol, deflate=wanted)
    with contextlib.suppress(HandshakeError):
        offered = Headers([("Sec-WebSocket-Extensions", make_offer(wanted)), ("Sec-WebSocket-Protocol", "chat")])
        agreed = check_response(Response(101, headers(source)), KEY, offered=offered, deflate=wanted)
        assert agreed.subprotocol in (None, "chat")
        _check_deflate(agreed.deflate)


def _check_deflate(parameters: Any) -> None:
    if parameters is not None:
        assert 9 <= parameters.local_max_window_bits <= 15
        assert 8 <= parameters.remote_max_window_bits <= 15


def response_heads(source: Source) -> None:
    """A raw response head is accepted or refused, and never accepted with anything that was not offered."""
    data = mutated(source, RESPONSE_HEAD + b"\r\n") + source.data(20)
    offered = Headers([("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")])
    try:
        response, rest = read_response_head(data)
        agreed = check_response(response, KEY, offered=offered, deflate=DeflateOptions())
    except HandshakeError:
        return
    assert response.status == 101
    assert response.headers.get_one("sec-websocket-accept") == accept_key(KEY)
    assert data.endswith(rest)
    assert agreed.subprotocol is None
    _check_deflate(agreed.deflate)


def negotiation(source: Source) -> None:
    """Whatever a server negotiates, the client that offered it understands in the same way."""
    ours, theirs = options(source), options(source)
    if source.boolean():
        offer = make_offer(theirs)
    else:
        offer = value(source)
    try:
        offers = parse_extensions(Headers([("Sec-WebSocket-Extensions", offer)]))
    except HandshakeError:
        return
    agreed = accept_offer(offers, ours)
    if agreed is None:
        return
    parameters, answer = agreed
    _check_deflate(parameters)
    assert parameters.local_max_window_bits <= ours.window_bits
    answers = parse_extensions(Headers([("Sec-WebSocket-Extensions", answer)]))
    if any(name == "client_max_window_bits" and bits == "8" for _, pairs in answers for name, bits in pairs):
        return  # zlib cannot deflate with 2**8
    mirrored = check_answer(answers, offers, theirs)
    assert mirrored is not None
    assert mirrored.remote_max_window_bits >= parameters.local_max_window_bits
    assert mirrored.remote_no_context_takeover is parameters.local_no_context_takeover
    assert mirrored.local_max_window_bits <= max(9, parameters.remote_max_window_bits)
    assert mirrored.local_no_context_takeover or not parameters.remote_no_context_takeover


TARGETS = (request_heads, requests_as_given, handshakes, response_heads, negotiation)
