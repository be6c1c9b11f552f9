"""`WatershedProtocol` on real uvicorn servers with real clients: parsers, loops, settings and versions."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import time
import tomllib
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from websockets.frames import Frame, Opcode

from tests.support import LIMIT, PROJECT, SOON
from tests.support.asgi_servers import (
    ROOM,
    STOPPED,
    UVICORNS,
    Native,
    begin_stop,
    converse_within,
    is_served,
    ours,
    ours_of,
    ours_on_a_socket,
    read_close,
    refused,
    running,
    running_at,
    saw,
    told_to_go,
)
from tests.support.peers import Peer, binary, close, dial, head, ping, text
from tests.support.waiting import eventually

pytestmark = pytest.mark.programs

# --- our class: parsers and loops ----------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[(http, loop) for http in ("h11", "httptools", "zttp") for loop in ("asyncio", "uvloop")],
    ids="-".join,
)
def native(request: pytest.FixtureRequest) -> Iterator[Native]:
    http, loop = request.param
    with running(*ours("--http", http, "--loop", loop)) as server:
        yield server


@pytest.mark.parametrize("path", ["/plain/echo", "/echo", "/push", ROOM])
def test_watershed_protocol_carries_messages_and_closes(native: Native, path: str) -> None:
    program, port = native
    with dial(port, path, protocols=["chat.v1", "chat.v2"], compression="deflate") as client:
        assert client.subprotocol == "chat.v1"
        assert client.protocol.extensions, "compression was not agreed on"
        if path == ROOM:
            assert client.recv(LIMIT) == "blue"
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70_000, b"y" * 70_000):
            client.send(message)
            assert client.recv(LIMIT) == message
        client.close(4005, "enough")
    saw(program, path=path, code=4005, reason="enough")
    if path == "/push":
        saw(program, event="end", code=4005, reason="enough")


@pytest.mark.parametrize("path, message", [("/starlette/echo", "Grüße 🌊"), ("/starlette/bytes", b"\x00\xff")])
def test_watershed_protocol_runs_starlette_unchanged(native: Native, path: str, message: str | bytes) -> None:
    program, port = native
    with dial(port, path, protocols=["chat.v1"]) as client:
        assert client.subprotocol == "chat.v1"
        client.send(message)
        assert client.recv(LIMIT) == message
        client.close(4005, "enough")
    saw(program, path=path, code=4005, reason="enough")


@pytest.mark.need(1)
@pytest.mark.parametrize("path", ["/plain/close", "/starlette/close", "/close"])
def test_watershed_protocol_lets_the_application_close(native: Native, path: str) -> None:
    assert read_close(native[1], path) == ("x" * 200_000, 4001, "bye")


@pytest.mark.parametrize("path", ["/plain/echo", "/starlette/echo", "/echo"])
def test_watershed_protocol_reports_a_client_that_vanished(native: Native, path: str) -> None:
    program, port = native
    with Peer(port) as peer:
        peer.open(path)
        peer.send(text("hi"))
        assert peer.text() == "hi"
        peer.vanish()
    saw(program, path=path, code=1006)


@pytest.mark.need(14)
def test_watershed_protocol_stops_a_handler_that_only_sends(native: Native) -> None:
    program, port = native
    with Peer(port) as peer:
        peer.open("/ticks")
        assert peer.text() == "tick"
        peer.vanish()
    saw(program, ticks="ended")


@pytest.mark.need(9)
@pytest.mark.parametrize("path", ["/plain/deny", "/starlette/deny", "/reject"])
def test_watershed_protocol_denies_with_a_response(native: Native, path: str) -> None:
    answer = refused(native[1], path)
    assert (answer.status, answer["x-app"], answer.body) == (402, "yes", b"pay first")


@pytest.mark.parametrize("path", ["/plain/echo", "/starlette/echo", "/headers"])
def test_watershed_protocol_sends_the_headers_of_the_accept(native: Native, path: str) -> None:
    with Peer(native[1]) as peer:
        assert peer.open(path).all("x-app") == ["yes"]


@pytest.mark.need(8)
def test_watershed_protocol_checks_origins_on_request(native: Native) -> None:
    elsewhere = "http://elsewhere.example"
    for path in ("/raise-before", ROOM):  # the first would raise if it were called
        answer = refused(native[1], path, Origin=elsewhere)
        assert answer.status == 403
        assert b"elsewhere.example" in answer.body
    with Peer(native[1]) as peer:
        peer.open("/plain/echo", Origin=elsewhere)


def test_watershed_protocol_responds_for_applications_that_raise(native: Native) -> None:
    assert refused(native[1], "/raise-before").status == 500
    assert read_close(native[1], "/raise")[:2] == ("so far", 1011)


def test_watershed_protocol_provides_the_native_connection(native: Native) -> None:
    with Peer(native[1]) as peer:
        peer.open("/frames")
        assert peer.frame().opcode is Opcode.PING
        peer.send(Frame(Opcode.PONG, b"ours").serialize(mask=True) + ping(b"theirs"))
        came = {(frame.opcode, bytes(frame.data)) for frame in (peer.frame(), peer.frame(), peer.frame())}
        assert came == {(Opcode.TEXT, b"pong ours"), (Opcode.TEXT, b"ping theirs"), (Opcode.PONG, b"theirs")}


def test_watershed_protocol_hands_over_the_socket(native: Native) -> None:
    with Peer(native[1]) as peer:
        peer.open("/detached")
        peer.send(b"bytes")
        assert peer.rest() == b"raw bytes"


# zttp discards them before any WebSocket class is created.
@pytest.mark.parametrize(
    "native",
    [(http, loop) for http in ("h11", "httptools") for loop in ("asyncio", "uvloop")],
    indirect=True,
    ids="-".join,
)
@pytest.mark.parametrize("path", ["/plain/echo", "/starlette/echo", "/echo"])
def test_early_bytes_are_kept_if_the_parser_exposes_them(native: Native, path: str) -> None:
    with Peer(native[1]) as peer:
        peer.open_with(head(path) + text("early"))
        assert peer.text() == "early"


# --- our class: uvicorn's settings ---------------------------------------------------------------------------


def scope_of(port: int, path: str = "/plain/scope", **fields: str) -> dict[str, object]:
    with Peer(port) as peer:
        peer.open(path, **fields)
        facts: dict[str, object] = json.loads(peer.text())
        return facts


def test_root_path_state_and_proxy_headers_apply() -> None:
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
        is_served(port, "/echo")
        assert program.stop() in STOPPED
        saw(program, lifespan="ended")


def test_a_unix_socket_works(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with running_at(place) as program:
        for path in ("/plain/echo", "/echo", "/starlette/echo"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT)
                sock.connect(str(place))
                sock.sendall(head(path) + text("hi"))
                data = b""
                while b"\x81\x02hi" not in data:
                    received = sock.recv(65536)
                    assert received, data
                    data += received
        assert program.stop() in STOPPED


@pytest.mark.need(2)
def test_a_socket_opened_by_another_program_works() -> None:
    with running(*ours_on_a_socket()) as (program, port), Peer(port) as held:
        for path in ("/plain/echo", "/echo", "/starlette/echo"):
            is_served(port, path)
        held.open("/echo")
        begin_stop(program)
        told_to_go(held)
        assert program.wait() in STOPPED


def test_tls_works(certificate: tuple[Path, ssl.SSLContext]) -> None:
    file, client = certificate
    with running(*ours("--ssl-certfile", str(file), "--ssl-keyfile", str(file)), probe=False) as (_, port):
        for path in ("/plain/echo", "/push", "/starlette/echo"):
            with Peer(port, tls=client) as peer:
                peer.open(path)
                peer.send(text("hi"))
                assert peer.text() == "hi"
                peer.send(close(4000))
                assert peer.close()[0] == 4000
        with Peer(port, tls=client) as peer:
            peer.open("/plain/scope")
            assert json.loads(peer.text())["scheme"] == "wss"


@pytest.mark.need(6)
def test_ws_max_size_and_disabled_compression_apply() -> None:
    with running(*ours("--ws-max-size", "1000", "--ws-per-message-deflate", "false")) as (_, port):
        for path in ("/plain/echo", "/settings"):
            with Peer(port) as peer:
                answer = peer.open(path, Sec_WebSocket_Extensions="permessage-deflate")
                assert not answer.all("sec-websocket-extensions")
                peer.send(binary(bytes(1000)))
                assert bytes(peer.frame().data) == bytes(1000)
                peer.send(binary(bytes(1001)))
                assert peer.close()[0] == 1009


@pytest.mark.need(16)
def test_ws_ping_interval_and_timeout_apply() -> None:
    with running(*ours("--ws-ping-interval", "0.1", "--ws-ping-timeout", "0.3")) as (_, port):
        for path in ("/plain/echo", "/settings"):
            with Peer(port) as peer:  # it never answers
                peer.open(path)
                assert peer.frame().opcode is Opcode.PING
                while (frame := peer.frame()).opcode is Opcode.PING:
                    pass
                assert frame.opcode is Opcode.CLOSE
                assert bytes(frame.data)[:2] == (1011).to_bytes(2, "big")


@pytest.mark.need(5)
def test_ws_max_queue_applies() -> None:
    with running(*ours("--ws-max-queue", "2")) as (_, port), Peer(port) as peer:
        peer.open("/plain/stall")
        pongs = 0
        for number in range(8):
            peer.send(text(str(number)) + ping(b""))
            is_served(port, "/plain/echo")  # by then the server has read what it will read
            if select.select([peer.sock], [], [], 0)[0]:
                assert peer.frame().opcode is Opcode.PONG
                pongs += 1
        assert 1 <= pongs <= 3, "reading should pause above two messages"
        is_served(port, "/plain/go")
        came: list[bytes] = []
        while len(came) < 8:
            frame = peer.frame()
            if frame.opcode is Opcode.TEXT:
                came.append(bytes(frame.data))
        assert came == [b"%d" % number for number in range(8)]


@pytest.mark.need(27)
def test_limit_concurrency_applies() -> None:
    command = ours("--limit-concurrency", "3")
    with running(*command, probe=False) as (_, port), Peer(port) as first, Peer(port) as second:
        first.open("/plain/echo")
        second.open("/echo")
        assert refused(port, "/echo").status == 503
        first.send(text("hi"))
        assert first.text() == "hi"


@pytest.mark.need(2, 3)
def test_several_workers_serve_and_stop() -> None:
    with running(*ours("--workers", "2")) as (program, port), contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        served_by: set[str] = set()

        def opened(path: str) -> Peer:
            peers.append(stack.enter_context(Peer(port)))
            peers[-1].open(path)
            return peers[-1]

        def both_serve() -> bool:
            served_by.add(opened("/plain/process").text())
            return len(served_by) == 2

        eventually(both_serve, "an answer of the second worker")
        for path in ("/echo", "/starlette/echo"):
            opened(path)
        begun = time.monotonic()
        begin_stop(program)
        for peer in peers:
            told_to_go(peer)
        assert program.wait() in STOPPED
        assert time.monotonic() - begun < SOON
        eventually(lambda: not program.group_is_alive(), "the end of every process")


@pytest.mark.need(2)
def test_reload_does_not_hang_on_open_sockets(tmp_path: Path) -> None:
    module = tmp_path / "reloaded.py"
    source = "from tests.support.asgi_servers_app import application\n"
    module.write_text(source)
    command = ours("--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path), app="reloaded:application")
    with running(*command) as (program, port), Peer(port) as first, Peer(port) as second:
        first.open("/plain/process")
        before = first.text()
        second.open("/ticks")  # an application that does not wait for anything

        def reloads() -> bool:
            # Repeatedly, because uvicorn takes the first state that it sees as the unchanged one.
            module.write_text(f"{source}VERSION = {time.monotonic_ns()}\n")
            return bool(select.select([first.sock], [], [], 0.2)[0])

        eventually(reloads, "the reload")
        told_to_go(first)
        told_to_go(second)
        eventually(lambda: program.output.count("startup complete") >= 2, "the second process")
        with dial(port, "/plain/process") as client:
            assert client.recv(LIMIT) != before
        is_served(port, "/echo")


@pytest.mark.need(2)
def test_gunicorn_with_uvicorn_worker_works() -> None:
    command = (
        *("gunicorn", ours()[1], "--worker-class", "tests.support.gunicorn_worker.Worker", "--workers", "2"),
        *("--bind", "127.0.0.1:{port}", "--no-control-socket"),
    )
    with running(*command) as (program, port), Peer(port) as held:
        for path in ("/plain/echo", "/push", "/starlette/echo"):
            is_served(port, path)
        assert refused(port, "/reject").body == b"pay first"
        held.open("/frames")
        assert held.frame().opcode is Opcode.PING
        begin_stop(program)
        told_to_go(held)
        assert program.wait() == 0


# --- our class: uvicorn's versions ---------------------------------------------------------------------------


def converse_with(version: str) -> None:
    """A session from outside: the server is started as users start it, and stopped by a signal."""
    with running(*ours_of(version), probe=False) as (program, port):
        for path in ("/plain/echo", "/echo", "/push", "/starlette/echo"):
            is_served(port, path)
        for path in ("/plain/echo", "/headers"):
            with Peer(port) as peer:
                assert peer.open(path).all("x-app") == ["yes"]
        for path in ("/plain/deny", "/reject"):
            answer = refused(port, path)
            assert (answer.status, answer["x-app"], answer.body) == (402, "yes", b"pay first")
        for path in ("/plain/close", "/close"):
            assert read_close(port, path) == ("x" * 200_000, 4001, "bye")
        with Peer(port) as plain, Peer(port) as pushed:
            plain.open("/plain/echo")
            pushed.open("/push")
            begin_stop(program)
            told_to_go(plain)
            told_to_go(pushed)
        assert program.wait() in STOPPED
        saw(program, lifespan="ended")


@pytest.fixture(scope="module")
def troubles() -> dict[str, str]:
    """The failures of each version. A few versions are tested at once."""

    def trouble(version: str) -> str:
        try:
            converse_within(version)
            converse_with(version)
        except Exception:  # noqa: BLE001  # the test of this version reports it
            return traceback.format_exc()
        return ""

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(UVICORNS, pool.map(trouble, UVICORNS), strict=True))


@pytest.mark.timeout(240)  # the first run installs them
@pytest.mark.parametrize("version", UVICORNS)
def test_watershed_protocol_runs_on_every_minor_version_of_uvicorn(troubles: dict[str, str], version: str) -> None:
    assert troubles[version] == ""


def test_the_tested_versions_are_the_supported_ones() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [floor] = [one.partition(">=")[2] for one in extras["uvicorn"] if one.startswith("uvicorn>=")]
    minors = [tuple(map(int, version.split(".")[:2])) for version in UVICORNS]
    assert minors[0] == tuple(map(int, floor.split(".")[:2]))
    assert minors == [(0, minor) for minor in range(minors[0][1], minors[-1][1] + 1)]
    assert tuple(map(int, uvicorn.__version__.split(".")[:2])) >= minors[-1]
