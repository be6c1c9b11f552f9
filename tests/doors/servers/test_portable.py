"""The portable API on every ASGI server that handles frames itself, as a real process."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.support import LIMIT
from tests.support.asgi_servers import (
    HYPERCORNS,
    PORTABLE,
    ROOM,
    STOPPED,
    Portable,
    Server,
    begin_stop,
    read_close,
    refused,
    running,
    saw,
    seen,
)
from tests.support.http2_stream import Stream
from tests.support.peers import Peer, binary, close, dial, head, text
from tests.support.waiting import eventually

pytestmark = pytest.mark.programs

# --- the portable API ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PORTABLE, ids=lambda server: server.name)
def portable(request: pytest.FixtureRequest) -> Iterator[Portable]:
    server: Server = request.param
    with running(*server.command) as (program, port):
        yield program, port, server


@pytest.mark.parametrize("path", ["/echo", "/push", ROOM])
def test_messages_pass_in_both_directions(portable: Portable, path: str) -> None:
    program, port, server = portable
    with dial(port, path, protocols=["other", "chat.v1"]) as client:
        assert client.subprotocol == "chat.v1"
        if path == ROOM:
            assert client.recv(LIMIT) == "blue"
        empty: tuple[str | bytes, ...] = ("", b"") if server.empty else ()
        for message in ("Hello", "Grüße 🌊", b"\x00\xff", "x" * 70_000, b"y" * 70_000, *empty):
            client.send(message)
            assert client.recv(LIMIT) == message
        client.close(4005, "enough")
    code, reason = server.told
    saw(program, path=path, code=code, reason=reason)
    if path == "/push":
        saw(program, event="end", code=code, reason=reason)


@pytest.mark.need(1)
def test_the_applications_close_reaches_the_client(portable: Portable) -> None:
    _, port, server = portable
    assert read_close(port, "/close") == ("x" * 200_000, 4001, "bye" if server.reasons else "")


def test_unsupported_messages_and_close_codes_are_clear_errors(portable: Portable) -> None:
    _, port, server = portable
    told, code, _ = read_close(port, "/odd")
    assert ("to send an empty message), got" in told) is not server.empty
    assert ("to close with 1001), got" in told) is not server.low_codes
    assert told.count(server.named) == (not server.empty) + (not server.low_codes)
    assert code == (1001 if server.low_codes else 3001)


def test_a_handler_that_raises_closes_with_1011(portable: Portable) -> None:
    assert read_close(portable[1], "/raise")[:2] == ("so far", 1011)


def test_an_exception_in_a_handler_ends_only_its_connection(portable: Portable) -> None:
    """Of any class: sys.exit() ends neither the server nor other connections."""
    program, port, _ = portable
    with dial(port, "/echo") as other:
        for kind in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
            with dial(port, "/leave") as client:
                client.send(kind)
                with pytest.raises(ConnectionClosed):
                    client.recv(LIMIT)
                assert client.close_code == 1011
            program.wait_for_line(re.compile(rf"^{kind}\b", re.MULTILINE))
            other.send(kind)
            assert other.recv(LIMIT) == kind


@pytest.mark.need(6)
def test_a_message_that_is_too_long_ends_the_connection(portable: Portable) -> None:
    _, port, server = portable
    with dial(port, "/echo") as client:
        client.send(bytes(100_000))
        assert client.recv(LIMIT) == bytes(100_000)
        client.send(bytes(100_001))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(LIMIT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == server.too_long


@pytest.mark.need(8, 9)
def test_refusals_reach_the_client(portable: Portable) -> None:
    _, port, server = portable
    answer = refused(port, "/reject")
    told = (answer.status, answer["x-app"], answer.body == b"pay first")
    assert told == ((402, "yes", True) if server.denial else (403, "", False))
    foreign = refused(port, "/raise-before", Origin="http://elsewhere.example")  # never gets as far as to raise
    assert foreign.status == 403
    assert (b"elsewhere.example" in foreign.body) is server.denial
    assert refused(port, "/echo", Sec_WebSocket_Protocol="other").status == (400 if server.denial else 403)
    assert refused(port, "/raise-before").status == server.before


def test_absolute_form_targets_give_path_and_host(portable: Portable) -> None:
    """RFC 9112 section 3.2.2: path and host come from the target, whatever Host says."""
    _, port, server = portable
    first = "GET http://a.example{} HTTP/1.1"
    with Peer(port) as peer:
        own = "a.example" if server.absolute_hosts else "127.0.0.1"
        peer.open_with(head("/echo", first=first, Origin=f"http://{own}"))
        peer.send(text("hi"))
        assert peer.text() == "hi"
    assert refused(port, "/echo", first=first, Origin="http://elsewhere.example").status == 403


def test_an_http_1_0_upgrade_is_refused_if_the_server_exposes_the_version(portable: Portable) -> None:
    _, port, server = portable
    with Peer(port) as peer:
        peer.send(head("/echo", first="GET {} HTTP/1.0"))
        answer = peer.sock.recv(65536)
    assert (answer.split(b" ")[1] == b"101") is not server.versions, answer


@pytest.mark.parametrize("host", ["a evil", "evil/x?y#z", "a@evil"])
def test_an_invalid_host_is_refused(portable: Portable, host: str) -> None:
    _, port, server = portable
    assert refused(port, "/raise-before", Host=host).status == (400 if server.denial else 403)


def test_headers_of_the_accept_are_sent(portable: Portable) -> None:
    _, port, server = portable
    with Peer(port) as peer:
        answer = peer.open("/headers")
        assert answer.all("x-app") == (["yes"] if server.headers else [])
        frame = peer.frame()
        told = bytes(frame.data).decode() if frame.opcode is Opcode.TEXT else ""
        assert (f"header fields with the 101, got {server.named}" in told) is not server.headers
        assert ("leave out headers=" in told) is not server.headers


def test_unsupported_calls_are_clear_errors(portable: Portable) -> None:
    program, port, server = portable
    wanted = ("to send a PING", "to report PING frames", "to report PONG frames", "to drop the stream")
    with dial(port, "/kept") as client:
        for what in wanted:
            error = str(client.recv(LIMIT))
            assert error.startswith(f"expected a server that exposes its frames (needed {what}")
            assert server.named in error
            assert "run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol" in error
    assert refused(port, "/detached").status == (501 if server.denial else 403)
    error = eventually(lambda: next((str(one["unsupported"]) for one in seen(program) if "unsupported" in one), ""))
    assert f"hands over its socket (detached=True), got {server.named}" in error
    assert "run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol" in error


@pytest.mark.need(14)
def test_a_handler_that_only_sends_stops_at_the_end(portable: Portable) -> None:
    program, port, _ = portable
    with Peer(port) as peer:
        peer.open("/ticks")
        assert peer.text() == "tick"
        peer.vanish()
    saw(program, ticks="ended")


def page(port: int, path: str) -> bytes:
    with Peer(port) as peer:
        peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = peer.answer()
        assert answer.status == 200
        return answer.body


def test_pages_and_lifespan_are_unaffected(portable: Portable) -> None:
    _, port, server = portable
    assert page(port, "/page") == b"an ordinary page"
    assert json.loads(page(port, "/state")) == ({"started": "yes"} if server.lifespan else None)


@pytest.mark.need(2)
@pytest.mark.parametrize("server", PORTABLE, ids=lambda server: server.name)
def test_no_server_hangs_at_shutdown(server: Server) -> None:
    with running(*server.command) as (program, port), Peer(port) as peer:
        peer.open("/echo")
        peer.send(text("hi"))
        assert peer.text() == "hi"
        begin_stop(program)
        try:
            code = peer.close()[0]
            peer.send(close(code or 1000))
        except (EOFError, ConnectionResetError):
            code = None
        assert code == server.stopped
        peer.sock.close()
        assert program.wait() in STOPPED
        assert ({"lifespan": "ended"} in seen(program)) is server.patient


# --- HTTP/2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", HYPERCORNS, ids=lambda server: server.name)
def test_upgrades_over_http_2_work(server: Server) -> None:
    """Its extended CONNECT looks the same to the application."""
    with running(*server.command) as (program, port):
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            stream = Stream(sock, port, "/push")
            assert (stream.answer[b":status"], stream.answer[b"sec-websocket-protocol"]) == (b"200", b"chat.v1")
            stream.send(text("hi"))
            stream.receive(b"\x81\x02hi")
            stream.send(binary(b"\0\xff"))
            stream.receive(b"\x82\x02\0\xff")
            stream.send(close(4005))
            stream.receive(b"\x88\x02" + (4005).to_bytes(2, "big"))
        saw(program, path="/push")
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            stream = Stream(sock, port, "/reject")
            assert stream.answer[b":status"] == b"402"
            assert stream.end() == b"pay first"
