"""The server matrix: every server that the ASGI door runs on, started for real, and driven by real clients.

First our uvicorn class with each of uvicorn's parsers, loops, settings and versions, then the portable API on the
servers that keep their frames to themselves.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import socket
import ssl
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.support import LIMIT, PROJECT, Program

from .servers import PORTABLE, UVICORNS, Server, converse_on_all, ours, running
from .support import Answer, Peer, binary, close, dial, eventually, head, ping, text

SOON = LIMIT / 2
"""Less than any of the time-outs that would end a wait: what takes longer was not told."""


def saw(program: Program, **facts: object) -> None:
    """Wait until the application has seen this; names in the order of the alphabet."""
    told = (re.escape(f'"{name}": {json.dumps(value)}') for name, value in facts.items())
    program.wait_for_line(re.compile("SAW .*" + ".*".join(told)))


def refused(port: int, path: str, **fields: str) -> Answer:
    with Peer(port) as peer:
        peer.send(head(path, **fields))
        return peer.answer()


def read_close(port: int, path: str) -> tuple[str, int, str]:
    """What the server sends until it closes, and how it does."""
    with dial(port, path) as client:
        received = ""
        while True:
            try:
                received += str(client.recv(LIMIT))
            except ConnectionClosed:
                break
    closed = client.protocol.close_rcvd
    assert closed is not None, "no Close came"
    return received, closed.code, closed.reason


# --- our class: parsers and loops ----------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[(http, loop) for http in ("h11", "httptools", "zttp") for loop in ("asyncio", "uvloop")],
    ids="-".join,
)
def native(request: pytest.FixtureRequest) -> Iterator[tuple[Program, int, str]]:
    http, loop = request.param
    with running(*ours("--http", http, "--loop", loop)) as (program, port):
        yield program, port, http


@pytest.mark.parametrize("path", ["/plain/echo", "/echo", "/push"])
def test_our_class_carries_messages_and_closes(native: tuple[Program, int, str], path: str) -> None:
    program, port, _ = native
    with dial(port, path, protocols=["chat.v1", "chat.v2"], compression="deflate") as client:
        assert client.subprotocol == "chat.v1"
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70_000, b"y" * 70_000):
            client.send(message)
            assert client.recv(LIMIT) == message
        client.close(4005, "enough")
    saw(program, **({"end": 4005} if path == "/push" else {"code": 4005}))


@pytest.mark.parametrize("path", ["/plain/close", "/close"])
def test_our_class_lets_the_application_close(native: tuple[Program, int, str], path: str) -> None:
    assert read_close(native[1], path) == ("x" * 200_000, 4001, "bye")


@pytest.mark.parametrize("path", ["/plain/deny", "/reject"])
def test_our_class_denies_with_a_response(native: tuple[Program, int, str], path: str) -> None:
    answer = refused(native[1], path)
    assert (answer.status, answer["x-app"], answer.body) == (402, "yes", b"pay first")


def test_our_class_gives_the_frames_away(native: tuple[Program, int, str]) -> None:
    with Peer(native[1]) as peer:
        peer.open("/frames")
        assert peer.frame().opcode is Opcode.PING
        peer.send(Frame(Opcode.PONG, b"ours").serialize(mask=True) + ping(b"theirs"))
        came = {(frame.opcode, bytes(frame.data)) for frame in (peer.frame(), peer.frame(), peer.frame())}
        assert came == {(Opcode.TEXT, b"pong ours"), (Opcode.TEXT, b"ping theirs"), (Opcode.PONG, b"theirs")}


def test_our_class_hands_the_socket_over(native: tuple[Program, int, str]) -> None:
    with Peer(native[1]) as peer:
        peer.open("/detached")
        peer.send(b"bytes")
        assert peer.rest() == b"raw bytes"


@pytest.mark.parametrize("path", ["/plain/echo", "/echo"])
def test_early_bytes_are_kept_where_the_parser_has_them(native: tuple[Program, int, str], path: str) -> None:
    _, port, http = native
    with Peer(port) as peer:
        peer.open_with(head(path) + text("early"))
        if http == "zttp":  # it lets them go before any WebSocket class is made
            peer.send(text("early"))
        assert peer.text() == "early"


# --- our class: uvicorn's settings -----------------------------------------------------------------------------


def scope_of(port: int, path: str = "/plain/scope", **fields: str) -> dict[str, object]:
    with Peer(port) as peer:
        peer.open(path, **fields)
        facts: dict[str, object] = json.loads(peer.text())
        return facts


def test_root_path_state_and_proxy_headers() -> None:
    options = ("--root-path", "/api", "--lifespan", "on", "--proxy-headers", "--forwarded-allow-ips", "127.0.0.1")
    with running(*ours(*options)) as (program, port):
        facts = scope_of(port, X_Forwarded_For="192.0.2.7", X_Forwarded_Proto="https")
        assert facts == {
            "scheme": "wss",
            "client": ["192.0.2.7", 0],
            "root_path": "/api",
            "path": "/api/plain/scope",
            "state": {"started": "yes"},
        }
        assert scope_of(port)["scheme"] == "ws"
        assert program.stop() in (0, -signal.SIGTERM)
        saw(program, lifespan="ended")


def test_unix_sockets(tmp_path: Path) -> None:
    place = tmp_path / "socket"

    def answers(port: int) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(place))
            return True
        return False

    with running("uvicorn", *ours("--uds", str(place))[1:], ready=answers):
        for path in ("/plain/echo", "/echo"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT)
                sock.connect(str(place))
                sock.sendall(head(path) + text("hi"))
                data = b""
                while b"\x81\x02hi" not in data:
                    received = sock.recv(65536)
                    assert received, data
                    data += received


def test_tls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    file, client = certificate

    def answers(port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            client.wrap_socket(sock, server_hostname="127.0.0.1").close()
            return True
        return False

    with running(*ours("--ssl-certfile", str(file)), ready=answers) as (_, port):
        for path in ("/plain/echo", "/push"):
            with Peer(port, tls=client) as peer:
                peer.open(path)
                peer.send(text("hi"))
                assert peer.text() == "hi"
                peer.send(close(4000))
                assert peer.close()[0] == 4000
        with Peer(port, tls=client) as peer:
            peer.open("/plain/scope")
            assert json.loads(peer.text())["scheme"] == "wss"


def test_websocket_settings() -> None:
    options = ("--ws-max-size", "1000", "--ws-max-queue", "2", "--ws-ping-interval", "0.1", "--ws-ping-timeout", "0.3")
    with running(*ours(*options, "--ws-per-message-deflate", "false")) as (_, port):
        for path in ("/plain/echo", "/settings"):
            with Peer(port) as peer:
                answer = peer.open(path, Sec_WebSocket_Extensions="permessage-deflate")
                assert not answer.all("sec-websocket-extensions")
                peer.send(binary(bytes(1001)))
                frame = peer.frame()
                while frame.opcode is Opcode.PING:
                    frame = peer.frame()
                assert bytes(frame.data)[:2] == (1009).to_bytes(2, "big")
        with Peer(port) as peer:  # and one that never answers its PINGs
            peer.open("/plain/echo")
            assert peer.frame().opcode is Opcode.PING
            frame = peer.frame()
            while frame.opcode is Opcode.PING:
                frame = peer.frame()
            assert bytes(frame.data)[:2] == (1011).to_bytes(2, "big")


def test_limit_concurrency() -> None:
    def answers(port: int) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), LIMIT).close()
            return True
        return False

    command = ours("--limit-concurrency", "3")
    with running(*command, ready=answers) as (_, port), Peer(port) as first, Peer(port) as second:
        first.open("/plain/echo")
        second.open("/echo")
        assert refused(port, "/echo").status == 503
        first.send(text("hi"))
        assert first.text() == "hi"


def test_several_workers_all_serve_and_all_end() -> None:
    with running(*ours("--workers", "2")) as (program, port), contextlib.ExitStack() as stack:
        # Both are up when both have said so; uvicorn's supervisor says nothing about it elsewhere.
        eventually(lambda: program.output.count("Application startup complete") == 2, program.output)
        peers = [stack.enter_context(Peer(port)) for _ in range(8)]
        for number, peer in enumerate(peers):
            peer.open(("/plain/echo", "/echo")[number % 2])
            peer.send(text("hi"))
            assert peer.text() == "hi"
        begun = time.monotonic()
        program._process.send_signal(signal.SIGTERM)
        for peer in peers:
            assert peer.close()[0] == 1012
            peer.send(close(1012))
            peer.end()
            peer.sock.close()
        assert program.wait() in (0, -signal.SIGTERM)
        assert time.monotonic() - begun < SOON
        eventually(lambda: not program.group_is_alive(), "the end of every process")


def test_reload_does_not_hang_on_open_sockets(tmp_path: Path) -> None:
    module = tmp_path / "reloaded.py"
    source = "from tests.doors.servers_app import application\n"
    module.write_text(source)
    command = ours("--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path), app="reloaded:application")
    with running(*command) as (program, port), Peer(port) as first, Peer(port) as second:
        first.open("/plain/echo")
        second.open("/ticks")  # an application that does not wait for anything

        def reloads() -> bool:
            # Again and again, as uvicorn takes what it finds at its first look for the state of things.
            module.write_text(f"{source}VERSION = {time.monotonic_ns()}\n")
            return bool(select.select([first.sock], [], [], 0.2)[0])

        eventually(reloads, program.output)
        assert first.close()[0] == 1012
        first.send(close(1012))
        first.end()
        first.sock.close()
        second.sock.close()
        program.wait_for_line(re.compile(r"startup complete.*startup complete", re.DOTALL))
        with dial(port, "/echo") as client:
            client.send("after")
            assert client.recv(LIMIT) == "after"


def test_gunicorn_with_uvicorn_worker() -> None:
    command = (
        "gunicorn",
        ours()[1],
        "--worker-class",
        "tests.doors.servers_worker.Worker",
        "--bind",
        "127.0.0.1:{port}",
    )
    with running(*command, "--workers", "2") as (program, port), Peer(port) as held:
        for path in ("/plain/echo", "/push"):
            with dial(port, path, protocols=["chat.v2"]) as client:
                assert client.subprotocol == "chat.v2"
                client.send("hi")
                assert client.recv(LIMIT) == "hi"
        assert refused(port, "/reject").body == b"pay first"
        held.open("/frames")
        assert held.frame().opcode is Opcode.PING
        program._process.send_signal(signal.SIGTERM)
        assert held.close()[0] == 1012
        held.send(close(1012))
        held.end()
        held.sock.close()
        assert program.wait() == 0


# --- our class: uvicorn's versions -------------------------------------------------------------------------------


@pytest.mark.timeout(240)  # the first run installs them
def test_every_minor_version_of_uvicorn() -> None:
    results = converse_on_all()
    assert {version: said for version, said in results.items() if said != "all well"} == {}


def test_the_versions_are_those_that_the_package_claims() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [floor] = [one.partition(">=")[2] for one in extras["uvicorn"] if one.startswith("uvicorn>=")]
    minors = [tuple(map(int, version.split(".")[:2])) for version in UVICORNS]
    assert minors[0] == tuple(map(int, floor.split(".")[:2]))
    assert minors == [(0, minor) for minor in range(minors[0][1], minors[-1][1] + 1)]
    assert tuple(map(int, uvicorn.__version__.split(".")[:2])) >= minors[-1]


# --- the portable API ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PORTABLE, ids=lambda server: server.name)
def portable(request: pytest.FixtureRequest) -> Iterator[tuple[Program, int, Server]]:
    server: Server = request.param
    with running(*server.command) as (program, port):
        yield program, port, server


@pytest.mark.parametrize("path", ["/echo", "/push"])
def test_messages_travel_both_ways(portable: tuple[Program, int, Server], path: str) -> None:
    program, port, server = portable
    with dial(port, path, protocols=["other", "chat.v1"]) as client:
        assert client.subprotocol == "chat.v1"
        for message in ("Hello", "Grüße 🌊", b"\x00\xff", "x" * 70_000, b"y" * 70_000):
            client.send(message)
            assert client.recv(LIMIT) == message
        if server.empty:
            for empty in ("", b""):
                client.send(empty)
                assert client.recv(LIMIT) == empty
        client.close(4005, "enough")
    saw(program, code=4005 if server.codes else 1006, path=path.strip("/"))


def test_the_application_closes(portable: tuple[Program, int, Server]) -> None:
    _, port, server = portable
    assert read_close(port, "/close") == ("x" * 200_000, 4001, "bye" if server.reasons else "")


def test_a_handler_that_raises_is_1011(portable: tuple[Program, int, Server]) -> None:
    _, port, _ = portable
    assert read_close(port, "/raise")[:2] == ("so far", 1011)


def test_a_message_that_is_too_long_ends_the_connection(portable: tuple[Program, int, Server]) -> None:
    _, port, server = portable
    with dial(port, "/echo") as client:
        client.send(bytes(100_001))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(LIMIT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == server.too_long


def test_refusals(portable: tuple[Program, int, Server]) -> None:
    _, port, server = portable
    answer = refused(port, "/reject")
    if server.denial:
        assert (answer.status, answer["x-app"], answer.body) == (402, "yes", b"pay first")
    else:
        assert answer.status == 403
    foreign = refused(port, "/raise-before", Origin="http://elsewhere.example")  # never gets as far as to raise
    assert foreign.status == 403
    assert b"elsewhere.example" in foreign.body or not server.denial
    assert refused(port, "/echo", Sec_WebSocket_Protocol="other").status == (400 if server.denial else 403)
    assert refused(port, "/raise-before").status == server.before


def test_headers_of_the_accept(portable: tuple[Program, int, Server]) -> None:
    program, port, server = portable
    with Peer(port) as peer:
        answer = peer.open("/headers")
        assert answer.all("x-app") == (["yes"] if server.headers else [])
    if not server.headers:
        program.wait_for_line(re.compile(rf"SAW .*header fields with the 101, got {re.escape(server.named)}"))


def test_what_the_server_keeps_is_a_clear_error(portable: tuple[Program, int, Server]) -> None:
    program, port, server = portable
    with dial(port, "/frames") as client:
        error = str(client.recv(LIMIT))
        assert error.startswith("expected a server that gives its frames away to tell of PING frames, got ")
        assert server.named in error
        assert "--ws watershed_mw.uvicorn:WatershedProtocol" in error
    assert refused(port, "/detached").status == (501 if server.denial else 403)
    program.wait_for_line(re.compile(rf"SAW .*gives its socket away for detached=True, got {re.escape(server.named)}"))


def test_a_handler_that_only_sends_learns_of_the_end(portable: tuple[Program, int, Server]) -> None:
    program, port, _ = portable
    with Peer(port) as peer:
        peer.open("/ticks")
        assert peer.text() == "tick"
        before = program.output.count('"ticks": "ended"')
        peer.vanish()
        eventually(lambda: program.output.count('"ticks": "ended"') > before, "the end of the ticks")


def test_pages_pass_untouched(portable: tuple[Program, int, Server]) -> None:
    _, port, _ = portable
    with Peer(port) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = peer.answer()
        assert (answer.status, answer.body) == (200, b"an ordinary page")


def test_http_2() -> None:
    """RFC 8441: hypercorn offers the extended CONNECT; the application cannot tell the difference."""
    [server] = [server for server in PORTABLE if server.name == "hypercorn-asyncio"]
    with running(*server.command) as (program, port), socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        http.initiate_connection()
        sock.sendall(http.data_to_send())
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":authority": f"127.0.0.1:{port}",
            ":path": "/echo",
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "chat.v1",
        }
        status, protocol, data, sent = b"", b"", b"", False
        while b"\x81\x02hi" not in data:
            for event in http.receive_data(sock.recv(65536)):
                if isinstance(event, h2.events.RemoteSettingsChanged) and not sent:
                    sent = True
                    http.send_headers(1, list(fields.items()))
                elif isinstance(event, h2.events.ResponseReceived):
                    answer = dict(event.headers)
                    status, protocol = answer[b":status"], answer[b"sec-websocket-protocol"]
                    http.send_data(1, text("hi"))
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    raise AssertionError(f"{event} after {status!r}: {program.output}")
            sock.sendall(http.data_to_send())
        assert (status, protocol) == (b"200", b"chat.v1")
