"""Malicious servers and broken ones, including the published advisories that concern clients."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.support.clients import Client
from tests.support.memory import measured
from tests.support.scripted import Visit
from tests.support.wire_peer import BINARY, CONTINUATION, TEXT, close_payload, header, response_head
from watershed_mw import ConnectionClosed, HandshakeError
from watershed_mw.client import connect, worth_retrying

MIB = 2**20
DEFLATE = "permessage-deflate"
_deflater = zlib.compressobj(9, wbits=-12)
BOMB = _deflater.compress(bytes(30 * MIB)) + _deflater.flush(zlib.Z_SYNC_FLUSH)
GZIP_BOMB = gzip.compress(bytes(30 * MIB))[: 2**16]


def refused(client: Client, serve: Serve, script: Callable[[Visit], None], **options: Any) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        client.open(serve(script).url("/?hidden"), **options)
    assert len(str(caught.value)) < 400
    assert "hidden" not in str(caught.value)
    return caught.value


def raw(data: bytes) -> Callable[[Visit], None]:
    def script(visit: Visit) -> None:
        visit.request().write(data)
        visit.wait_until_gone()

    return script


# --- the opening handshake --------------------------------------------------------------------------------------


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: close\r\nSec-WebSocket-Accept: {accept}\r\n\r\n",
    ],
    ids=["bare", "no accept", "wrong accept", "other protocol", "no upgrade"],
)
def test_an_invalid_101_is_refused(client: Client, serve: Serve, head: bytes) -> None:
    def script(visit: Visit) -> None:
        visit.request()
        accept = header(response_head(visit.field("sec-websocket-key") or ""), "sec-websocket-accept") or ""
        visit.write(head.replace(b"{accept}", accept.encode()), b"\x81\x05hello")
        visit.wait_until_gone()

    error = refused(client, serve, script)
    assert error.status == 101
    assert not worth_retrying(error)


@pytest.mark.parametrize("name", ["never offered", "A", "a, b"])
def test_a_subprotocol_that_was_not_offered_is_refused(either: Client, serve: Serve, name: str) -> None:
    error = refused(
        either,
        serve,
        lambda visit: visit.switch(("Sec-WebSocket-Protocol", name)).wait_until_gone(),
        protocols=["a", "b"],
    )
    assert "expected an offered subprotocol (a, b), got" in str(error)


@pytest.mark.advisory("CVE-2026-1526")
@pytest.mark.parametrize("bits", ["0", "7", "16", "999", "", "-1", "08", "x"])
def test_window_bits_out_of_range_are_refused(either: Client, serve: Serve, bits: str) -> None:
    field = ("Sec-WebSocket-Extensions", f"{DEFLATE}; server_max_window_bits={bits}")
    error = refused(either, serve, lambda visit: visit.switch(field).wait_until_gone())
    assert error.status == 101


@pytest.mark.parametrize("extension", ["x-unknown", f"{DEFLATE}, {DEFLATE}", f"{DEFLATE}; x=1", ";;;", '"'])
def test_extensions_that_were_not_offered_are_refused(either: Client, serve: Serve, extension: str) -> None:
    refused(either, serve, lambda visit: visit.switch(("Sec-WebSocket-Extensions", extension)).wait_until_gone())


def test_compression_that_was_not_offered_is_refused(client: Client, serve: Serve) -> None:
    field = ("Sec-WebSocket-Extensions", DEFLATE)
    refused(client, serve, lambda visit: visit.switch(field).wait_until_gone(), compression=False)


def endless_head(visit: Visit) -> None:
    visit.request().write(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        visit.write(b"X: y\r\n" * 1000)


def endless_line(visit: Visit) -> None:
    visit.request().write(b"HTTP/1.1 200 ")
    while True:
        visit.write(b"x" * 2**16)


@pytest.mark.parametrize("script", [endless_head, endless_line])
def test_an_endless_head_is_refused(client: Client, serve: Serve, script: Callable[[Visit], None]) -> None:
    assert "expected an HTTP answer, got:" in str(refused(client, serve, script))


@pytest.mark.parametrize(
    "data", [b"\x00\x01\xff" * 9, b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 banana\r\n\r\n", b"\r\n" * 60_000]
)
def test_a_response_that_is_not_http_is_a_502(either: Client, serve: Serve, data: bytes) -> None:
    assert refused(either, serve, raw(data)).status == 502


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 101 Switching"])
def test_an_incomplete_head_is_a_502(either: Client, serve: Serve, data: bytes) -> None:
    assert refused(either, serve, lambda visit: visit.request().write(data)).status == 502


def test_a_reset_before_the_head_is_an_error(client: Client, serve: Serve) -> None:
    with pytest.raises(ConnectionResetError):
        client.open(serve(lambda visit: visit.request().reset()).url())


# --- refusals ---------------------------------------------------------------------------------------------------


def test_an_endless_body_of_a_refusal_is_cut(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.request().write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        while True:
            visit.write(b"x" * 2**16)

    error = refused(client, serve, script)
    assert (error.status, len(error.body), len(error.response.content)) == (403, 2**16, 2**16)


@pytest.mark.slow
def test_a_trickling_refusal_is_still_a_refusal(client: Client, serve: Serve) -> None:
    data = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\nsome"
    error = refused(client, serve, raw(data), open_timeout=1.0)
    assert (error.status, error.body) == (401, b"some")


@pytest.mark.parametrize(
    "broken", [b"Content-Length: 100\r\n\r\nsome", b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\nxx"]
)
def test_a_truncated_refusal_is_still_a_refusal(either: Client, serve: Serve, broken: bytes) -> None:
    error = refused(either, serve, lambda visit: visit.request().write(b"HTTP/1.1 404 No\r\n" + broken))
    assert (error.status, error.body) == (404, b"some")


@pytest.mark.parametrize("status", ["403 Forbidden", "302 Found", "401 Unauthorized"])
def test_a_compressed_body_is_not_inflated(either: Client, serve: Serve, status: str) -> None:
    def script(visit: Visit) -> None:
        visit.request()
        assert visit.field("accept-encoding") == "identity"
        if visit.target.endswith("there"):
            visit.answer("403 Forbidden")
        more = ("WWW-Authenticate", 'Digest realm="r", nonce="n"') if "401" in status else ("Location", "/there")
        visit.answer(status, ("Content-Encoding", "gzip"), more, body=GZIP_BOMB)

    with measured() as memory:
        error = refused(either, serve, script, auth=None)
    assert memory.peak < 4 * MIB
    assert error.body == (b"" if "302" in status else GZIP_BOMB)
    assert error.response.content == error.body


# --- frames -----------------------------------------------------------------------------------------------------


def fails_with(client: Client, serve: Serve, code: int, then: Callable[[Visit], None], **options: Any) -> None:
    """The server's behaviour after its 101 ends the connection with this code, on both sides."""
    fields = (
        [("Sec-WebSocket-Extensions", f"{DEFLATE}; server_max_window_bits=12")]
        if options.get("compression", True)
        else []
    )
    told: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.switch(*fields)
        try:
            then(visit)
            told.append(visit.read().payload)
            visit.send_close(code)
        except OSError:
            pass  # the client has stopped reading

    talk = client.open(serve(script).url(), close_timeout=0.5, **options)
    with pytest.raises(ConnectionClosed) as caught:
        talk.receive()
    assert caught.value.code == code
    assert all(payload[:2] == code.to_bytes(2) for payload in told)


@pytest.mark.advisory("CVE-2026-1526")
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_bomb_ends_the_connection(either: Client, serve: Serve, pieces: int) -> None:
    size = len(BOMB) // pieces + 1
    parts = [BOMB[start : start + size] for start in range(0, len(BOMB), size)]

    def then(visit: Visit) -> None:
        for number, part in enumerate(parts):
            last, first = number == len(parts) - 1, number == 0
            visit.send(BINARY if first else CONTINUATION, part, fin=last, rsv=4 if first else 0)

    with measured() as memory:
        fails_with(either, serve, 1009, then, max_message_size=MIB)
    assert memory.peak < 6 * MIB


@pytest.mark.advisory("CVE-2026-12151")
@pytest.mark.parametrize("payload, most", [(b"", None), (b"x", 1000)], ids=["default", "option"])
def test_a_flood_of_fragments_ends_the_connection(
    either: Client, serve: Serve, payload: bytes, most: int | None
) -> None:
    def then(visit: Visit) -> None:
        visit.send(TEXT, payload, fin=False)
        visit.write(visit.frame(CONTINUATION, payload, fin=False) * (most or 131_072))

    fails_with(either, serve, 1008, then, **({} if most is None else {"max_fragments": most}))


@pytest.mark.parametrize(
    "code, frames",
    [
        (1002, b"\x81\x85\x00\x00\x00\x00hello"),  # masked
        (1002, b"\xb1\x00"),  # RSV2, RSV3
        (1002, b"\x83\x00"),  # an opcode of nothing
        (1002, b"\x80\x00"),  # a continuation of nothing
        (1002, b"\x89\x7e\x00\x7e" + bytes(126)),  # a long PING
        (1007, b"\x81\x01\xff"),  # no UTF-8
        (1009, b"\x82\x7f" + (2**40).to_bytes(8)),  # 1 TiB
        (1002, b"\x88\x02" + close_payload(1005)),
    ],
)
def test_malformed_frames_end_the_connection(either: Client, serve: Serve, code: int, frames: bytes) -> None:
    fails_with(either, serve, code, lambda visit: visit.write(frames))


def test_a_vanished_server_ends_the_connection_with_1006(client: Client, serve: Serve) -> None:
    talk = client.open(serve(lambda visit: visit.switch().reset()).url())
    with pytest.raises(ConnectionClosed) as caught:
        talk.receive()
    assert caught.value.code == 1006


def test_a_server_that_does_not_close_is_dropped(client: Client, serve: Serve) -> None:
    talk = client.open(serve(lambda visit: visit.switch().wait_until_gone()).url(), close_timeout=0.05)
    assert talk.end() in (1000, 1006)


def test_errors_of_the_handshake_name_both_sides(serve: Serve) -> None:
    with pytest.raises(HandshakeError) as caught:
        connect(serve(raw(b"HTTP/1.1 101 X\r\nUpgrade: nothing\r\nConnection: Upgrade\r\n\r\n")).url()).open()
    assert re.search("expected .*websocket.*, got .*nothing", str(caught.value))
