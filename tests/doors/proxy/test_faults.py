"""The proxy when something goes wrong: killed upstreams, clients that leave, floods, and servers that stop.

Upstream and client are bare sockets driven by the test, and each test checks what is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import select
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from websockets.frames import Frame, Opcode

from tests.doors.conftest import Start
from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send
from tests.support.loops import use_once
from tests.support.peers import ACCEPT, Peer, binary, head, text
from tests.support.programs import Program
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn, Werkzeug
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw.options import ConnectionOptions
from watershed_mw.proxy import ProxyRequest, WebSocketProxy, live_relays
from watershed_mw.runtime.loop_thread import background_loop
from watershed_mw.uvicorn import WatershedProtocol

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

SWITCH = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
).encode()
APP = "tests.support.proxy_faults_app"
_BIN = Path(sys.executable).parent
ENDLESS = b"\x82\x7f" + (2**60).to_bytes(8, "big")
"""The header of a frame that is never over: what follows costs nobody more than bytes."""
SOON = 1.0  # seconds within which a side learns that the other has gone


def plain(message: bytes) -> bytes:
    """A server's BINARY frame."""
    return Frame(Opcode.BINARY, message).serialize(mask=False)


def closing(code: int) -> bytes:
    """A server's Close frame."""
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big")).serialize(mask=False)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the stream ended after {data!r}"
        data += piece
    return data


def to_the_end(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream, however it ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def nothing_comes(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0.05)[0]


class Upstream:
    """A hand-driven upstream."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.settimeout(LIMIT)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []

    def asked(self) -> socket.socket:
        """Accept the next connection, and read its request."""
        sock, _ = self._listener.accept()
        self._sockets.append(sock)
        sock.settimeout(LIMIT)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            piece = sock.recv(4096)
            assert piece, request
            request += piece
        return sock

    def open(self, port: int, *, early: bytes = b"") -> tuple[Peer, socket.socket]:
        """Return a client and the upstream's socket, connected through a proxy; ``early`` follows the 101."""
        peer = Peer(port)
        self._sockets.append(peer.sock)
        peer.send(head())
        sock = self.asked()
        sock.sendall(SWITCH + early)
        assert peer.answer().status == 101
        return peer, sock

    def close(self) -> None:
        for sock in [*self._sockets, self._listener]:
            sock.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


class Door:
    """A server in this process with a proxy as its application."""

    server: Uvicorn | Werkzeug
    app: Any

    def wsgi(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)

    @property
    def port(self) -> int:
        return self.server.port

    def serve(self, upstream: Any, **options: Any) -> None:
        """With max_connections=1, a slot that is not released shows immediately."""
        self.app = WebSocketProxy(upstream, **{"max_connections": 1, **options})
        if isinstance(self.server, Uvicorn):
            self.server.run(self.app)

    def is_settled(self) -> bool:
        if isinstance(self.server, Uvicorn):
            state = self.server.server.server_state
            if state.tasks or state.connections:
                return False
        return not live_relays()

    def wait_until_settled(self) -> None:
        eventually(self.is_settled, "the end of every relay and task")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["asyncio-h11", "uvloop-httptools", "werkzeug"])
def door(request: pytest.FixtureRequest, running: Start) -> Iterator[Door]:
    """Must be requested before `upstream`, which is then closed before the check for leftovers."""
    loop, _ = background_loop()
    asyncio.run_coroutine_threadsafe(use_once(), loop).result(LIMIT)
    door = Door()
    with contextlib.ExitStack() as stack:
        if request.param == "werkzeug":
            door.server = stack.enter_context(Werkzeug(door.wsgi))
        else:
            door.server = running(*request.param.split("-"))
        door.serve("ws://127.0.0.1:1")
        with Peer(door.port) as client:  # whatever a server opens at its first request
            client.send(head())
            assert client.refusal().status == 502
        door.wait_until_settled()
        before = descriptors()
        yield door
        door.wait_until_settled()
        eventually(lambda: descriptors() <= before, "as few descriptors as before")


# --- the upstream is killed --------------------------------------------------------------------------------------

_VICTIMS = f"""
import os, signal, socket, struct
SWITCH = {SWITCH!r}
listener = socket.create_server(("127.0.0.1", 0))
print("ws://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    sock, _ = listener.accept()
    if os.fork() == 0:
        listener.close()
        path = sock.recv(4096, socket.MSG_PEEK).split()[1].decode()
        stage = path.split("/")[1]
        if stage != "unread":
            sock.recv(4096)
        if stage == "head":
            sock.sendall(SWITCH[:40])
        elif stage not in ("unread", "asked"):
            sock.sendall(SWITCH)
        if stage == "frame":
            sock.sendall(bytes([0x82, 100]) + b"x" * 50)
        if stage == "idle":
            sock.sendall(bytes([0x82, 4]) + b"here")
        print("ready", path, os.getpid(), flush=True)
        signal.pause()
    sock.close()
"""


@pytest.fixture(scope="module")
def victims() -> Iterator[Program]:
    with Program(sys.executable, "-S", "-E", "-c", _VICTIMS) as program:
        yield program


_numbers = iter(range(10**6))


@pytest.mark.programs
@pytest.mark.parametrize("stage", ["unread", "asked", "head", "switched", "frame", "idle", "flood"])
def test_killing_the_upstream_immediately_ends_the_client(door: Door, victims: Program, stage: str) -> None:
    door.serve(f"ws://127.0.0.1:{victims.port()}")
    for _ in range(2):  # the server continues
        path = f"/{stage}/{next(_numbers)}"
        with Peer(door.port) as client:
            client.send(head(path))
            pid = int(victims.wait_for_line(re.compile(rf"ready {path} (\d+)"))[1])
            opened = stage not in ("unread", "asked", "head")
            if opened:
                assert client.answer().status == 101
            if stage == "idle":
                assert client.frame().data == b"here"
            if stage == "flood":
                client.send(ENDLESS)
                client.sock.setblocking(False)
                while select.select([], [client.sock], [], 0.05)[1]:
                    with contextlib.suppress(BlockingIOError):
                        client.sock.send(bytes(2**16))
                client.sock.settimeout(LIMIT)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            if opened:
                expected = bytes([0x82, 100]) + b"x" * 50 if stage == "frame" else b""
                assert client.rest() == expected
            else:
                assert client.refusal().status == 502
            assert time.monotonic() - killed < SOON
        door.wait_until_settled()


# --- the client leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_ends_the_handshake_with_the_upstream(
    door: Door, upstream: Upstream, leave: Callable[[socket.socket], None], caplog: pytest.LogCaptureFixture
) -> None:
    door.serve(upstream.url)
    client = Peer(door.port)
    client.send(head() + text("early"))
    asked = upstream.asked()
    left = time.monotonic()
    leave(client.sock)
    assert to_the_end(asked) == b""
    assert time.monotonic() - left < SOON
    door.wait_until_settled()
    if isinstance(door.server, Werkzeug):
        assert door.server.access_log(2)[-1] == "GET / 499"
        assert door.server.troubles == []
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("frame", [b"", binary(b"whole"), binary(b"cut")[:-2]], ids=["none", "whole", "cut"])
def test_a_client_that_leaves_immediately_ends_the_upstream(
    door: Door, upstream: Upstream, leave: Callable[[socket.socket], None], frame: bytes
) -> None:
    door.serve(upstream.url)
    client, server = upstream.open(door.port)
    client.send(frame)
    assert exactly(server, len(frame)) == frame
    left = time.monotonic()
    leave(client.sock)
    assert to_the_end(server) == b""
    assert time.monotonic() - left < SOON
    server.close()


def test_a_client_that_leaves_cancels_the_choice_of_upstream(door: Door, upstream: Upstream) -> None:
    told: Inbox[str] = Inbox()

    async def choose(request: ProxyRequest) -> str:
        told.put("asked")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.put("cancelled")
            raise
        return upstream.url

    door.serve(choose)
    with Peer(door.port) as client:
        client.send(head())
        assert told.get() == "asked"
    left = time.monotonic()
    assert told.get() == "cancelled"
    assert time.monotonic() - left < SOON


def test_a_failed_choice_releases_its_max_connections_slot(door: Door, upstream: Upstream) -> None:
    answers: Iterator[Any] = iter([RuntimeError("no"), 42, "http//", None, "", upstream.url])

    def choose(request: ProxyRequest) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    door.serve(choose)
    for status in (500, 500, 500, 404, 500):
        with Peer(door.port) as client:
            client.send(head())
            assert client.refusal().status == status
        door.wait_until_settled()
    upstream.open(door.port)[0].sock.close()


def test_an_upstream_that_closes_right_after_its_101_is_a_502(door: Door, upstream: Upstream) -> None:
    door.serve(upstream.url)
    with Peer(door.port) as client:
        client.send(head())
        asked = upstream.asked()
        asked.sendall(SWITCH + plain(b"bye"))
        reset(asked)
        # Either may be faster: the reset, or the 101 before it.
        if client.answer().status == 101:
            assert client.rest() in (b"", plain(b"bye"))


def test_messages_before_the_upstreams_end_arrive(door: Door, upstream: Upstream) -> None:
    door.serve(upstream.url)
    with Peer(door.port) as client:
        client.send(head())
        asked = upstream.asked()
        asked.sendall(SWITCH + plain(b"bye") + closing(4000))
        asked.close()
        assert client.answer().status == 101
        assert client.frame().data == b"bye"
        assert client.close() == (4000, "")
        client.end()


# --- early bytes -------------------------------------------------------------------------------------------------


def early_bytes(client: Peer, upstream: Upstream) -> None:
    """Both sides send before they know that the other one is there, and continue."""
    client.send(head() + binary(b"first") + binary(b"second"))
    server = upstream.asked()
    server.sendall(SWITCH + plain(b"third") + plain(b"fourth"))
    assert client.answer().status == 101
    expected = binary(b"first") + binary(b"second")
    got = exactly(server, len(expected))
    assert len(got) == len(expected)
    frames = [client.frame().data for _ in range(2)]
    assert frames == [b"third", b"fourth"]
    client.send(text("fifth"))
    server.sendall(plain(b"sixth"))
    assert client.frame().data == b"sixth"
    last = exactly(server, len(text("fifth")))
    key = last[2:6]
    assert bytes(byte ^ key[at % 4] for at, byte in enumerate(last[6:])) == b"fifth"
    # Closed by the upstream, so that nothing is in transit on either side.
    server.sendall(closing(1000))
    server.close()
    assert client.close() == (1000, "")
    client.sock.close()


def test_early_bytes_arrive_first_and_once(door: Door, upstream: Upstream) -> None:
    door.serve(upstream.url)
    with Peer(door.port) as client:
        early_bytes(client, upstream)


def test_early_bytes_arrive_first_and_once_under_uvicorn_over_tls(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, upstream: Upstream
) -> None:
    tls_uvicorns.run(WebSocketProxy(upstream.url))
    with Peer(tls_uvicorns.port, client_tls) as client:
        early_bytes(client, upstream)
    eventually(lambda: not live_relays())


def test_early_bytes_arrive_first_and_once_under_werkzeug_over_tls(
    certificate: tuple[Path, ssl.SSLContext], upstream: Upstream
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate[0])
    with (
        Werkzeug(WebSocketProxy(upstream.url), ssl_context=context) as server,
        Peer(server.port, certificate[1]) as client,
    ):
        early_bytes(client, upstream)
    eventually(lambda: not live_relays())


@pytest.mark.programs
def test_early_bytes_arrive_first_and_once_under_eventlet_over_tls(
    certificate: tuple[Path, ssl.SSLContext], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM", upstream.url)
    monkeypatch.setenv("WITHOUT", "uvloop trio")
    with (
        Program(sys.executable, "-W", "ignore", "-m", APP, certificate[0]) as program,
        Peer(program.port(), certificate[1]) as client,
    ):
        early_bytes(client, upstream)
        assert "Traceback" not in program.output


# --- peers that do not read, and floods ----------------------------------------------------------------------------


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("silent", ["client", "upstream"])
def test_a_peer_that_never_reads_costs_little_memory_and_ends(door: Door, upstream: Upstream, silent: str) -> None:
    door.serve(upstream.url, idle_timeout=0.1, close_timeout=0.1)
    client, server = upstream.open(door.port)
    talker = server if silent == "client" else client.sock
    before = resident()
    block = bytes(2**20)
    talker.sendall(ENDLESS)
    with contextlib.suppress(ConnectionError):
        while True:  # until the relay has had enough of it
            talker.send(block)
    assert resident() - before < 8 * 2**20
    door.wait_until_settled()


@pytest.mark.slow
def test_a_long_stream_takes_no_memory(door: Door, upstream: Upstream) -> None:
    door.serve(upstream.url)
    client, server = upstream.open(door.port)
    size, block, room = 256 * 2**20, memoryview(bytes(2**20)), bytearray(2**20)
    before = resident()

    def talk() -> None:
        server.sendall(b"\x82\x7f" + size.to_bytes(8, "big"))
        for _ in range(size // len(block)):
            server.sendall(block)

    talker = threading.Thread(target=talk)
    talker.start()
    left = size + 10
    while left:
        got = client.sock.recv_into(room)
        assert got
        left -= got
    talker.join(LIMIT)
    assert resident() - before < 8 * 2**20
    client.sock.close()


# --- the server stops ----------------------------------------------------------------------------------------------


def test_a_stopping_server_does_not_wait_for_the_upstreams_response(upstream: Upstream) -> None:
    with Uvicorn() as server:
        server.run(WebSocketProxy(upstream.url))
        with Peer(server.port) as client:
            client.send(head())
            asked = upstream.asked()
            began = time.monotonic()
            server.begin_stop()
            assert client.refusal().status == 503
            assert to_the_end(asked) == b""
            server.wait_stopped()
            assert time.monotonic() - began < 2 * SOON


class Hurried(WatershedProtocol):
    """A class whose applications get less time than the proxy's peers."""

    options: ClassVar[ConnectionOptions] = {"close_timeout": 0.05}


def test_peers_that_do_not_answer_a_close_are_dropped_after_close_timeout(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with Uvicorn(ws=Hurried) as server:
        server.run(WebSocketProxy(upstream.url, close_timeout=0.3))
        client, asked = upstream.open(server.port)
        began = time.monotonic()
        server.begin_stop()
        assert client.close() == (1012, "the server restarts")
        server.wait_stopped()
        assert time.monotonic() - began > 0.3
        assert "has not returned" not in caplog.text
        client.sock.close()
        asked.close()


def test_a_shutdown_between_the_101_and_the_relay_closes_both_sides(upstream: Upstream) -> None:
    proxy = WebSocketProxy(upstream.url, shutdown_code=4004)
    accepted, go_on = Gate[None](), Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def delaying(message: Any) -> None:
            await send(message)
            accepted.put(None)
            await go_on.wait()

        await proxy(scope, receive, delaying)

    with Uvicorn() as server:
        server.run(app)
        client, asked = upstream.open(server.port)
        accepted.get()
        server.begin_stop()
        eventually(lambda: server.server.server_state.connections and not server.server.servers[0].is_serving())
        go_on.put(None)
        assert client.close() == (4004, "the server restarts")
        assert asked.recv(1) == b"\x88"
        client.sock.close()
        asked.close()
        server.wait_stopped()


@contextlib.contextmanager
def served(kind: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Program, int]]:
    """Run a server with the application of proxy_faults_app.py; yield it and its port."""
    monkeypatch.setenv("UPSTREAM", upstream.url)
    name, _, worker = kind.partition("-")
    if worker == "gevent":
        # asyncio's own loop would look a name up in a pool of threads, which are greenlets that nothing runs.
        monkeypatch.setenv("WITHOUT", "uvloop")
        monkeypatch.setenv("UPSTREAM", upstream.url.replace("127.0.0.1", "localhost"))
    if name == "uvicorn":
        uvicorn = ("uvicorn", f"{APP}:asgi", "--factory", "--port", "0", "--ws", UVICORN_CLASS)
        with Program(_BIN / uvicorn[0], *uvicorn[1:]) as program:
            yield program, program.port()
    elif name == "werkzeug":
        with Program(sys.executable, "-m", APP) as program:
            yield program, program.port()
    else:
        # With preload nothing of the parent's loop may be used in the workers.
        options = ["--worker-class", worker, "--threads", "4", "--no-control-socket", "--graceful-timeout", "5"]
        application = f"{APP}:wsgi()"
        if worker == "preload":
            options[1], application = "gthread", f"{APP}:wsgi_after_a_loop()"
            options.append("--preload")
        with Program(_BIN / "gunicorn", application, "--bind", "127.0.0.1:0", *options) as program:
            port = int(program.wait_for_line(re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)"))[1])
            yield program, port


@pytest.mark.programs
@pytest.mark.parametrize(
    "kind, code",
    [("uvicorn", 1012), ("werkzeug", 1001), ("gunicorn-preload", 1001), ("gunicorn-gevent", 1001)],
)
def test_a_shutdown_closes_both_sides_between_two_frames(
    kind: str, code: int, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(kind, upstream, monkeypatch) as (program, port), Peer(port) as own:
        idle, idle_server = upstream.open(port)
        busy, busy_server = upstream.open(port)
        gone, gone_server = upstream.open(port)
        own.open("/own")
        own.send(text("hello"))
        assert own.frame().data == b"hello"
        up, down = binary(b"u" * 1000), plain(b"d" * 1000)
        busy.send(up[:500])
        busy_server.sendall(down[:500])
        assert exactly(busy_server, 500) == up[:500]
        assert exactly(busy.sock, 500) == down[:500]
        os.kill(program.pid, signal.SIGTERM)
        gone.sock.close()  # during the drain, perhaps
        # A side between two frames gets the Close immediately; one in the middle of a frame first gets the rest.
        assert idle.close() == (code, "the server restarts" if code == 1012 else "the server stops")
        assert nothing_comes(busy.sock)
        assert nothing_comes(busy_server)
        busy.send(up[500:] + text("too late"))
        busy_server.sendall(down[500:] + plain(b"too late"))
        assert exactly(busy.sock, len(down) - 500) == down[500:]
        assert exactly(busy_server, len(up) - 500) == up[500:]
        assert busy.close()[0] == code
        assert own.close()[0] == code
        for server in (idle_server, busy_server):
            first = exactly(server, 6)
            payload = exactly(server, first[1] & 0x7F)
            unmasked = bytes(byte ^ first[2 + at % 4] for at, byte in enumerate(payload))
            assert first[0] == 0x88
            assert int.from_bytes(unmasked[:2], "big") == code
            server.sendall(closing(code))
        to_the_end(gone_server)
        gone_server.close()
        for client in (idle, busy, own):
            client.send(Frame(Opcode.CLOSE, code.to_bytes(2, "big")).serialize(mask=True))
        for sock in (idle.sock, busy.sock, idle_server, busy_server, own.sock):
            assert to_the_end(sock) == b""
            sock.close()
        status = program.wait()
        assert status in ((0,) if kind.startswith("gunicorn") else (0, -signal.SIGTERM)), program.output
        assert "Traceback" not in program.output


@pytest.mark.programs
@pytest.mark.parametrize(
    "kind, number", [("uvicorn", signal.SIGINT), ("werkzeug", signal.SIGINT), ("werkzeug", signal.SIGTERM)]
)
def test_a_second_signal_stops_a_server_immediately(
    kind: str, number: signal.Signals, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(kind, upstream, monkeypatch) as (program, port):
        client, server = upstream.open(port)
        server.sendall(plain(b"the relay has begun"))
        assert client.frame().data == b"the relay has begun"
        began = time.monotonic()
        os.kill(program.pid, number)
        # Neither answers.
        assert client.close()[0] in (1001, 1012)
        assert exactly(server, 1) == b"\x88"
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGINT)
            os.kill(program.pid, number)
        program.wait()
        assert time.monotonic() - began < 2 * SOON
        assert client.rest() == b""
        to_the_end(server)


def test_a_relay_needs_one_task(upstream: Upstream) -> None:
    proxy = WebSocketProxy(upstream.url)
    loops: Inbox[asyncio.AbstractEventLoop] = Inbox()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loops.put(asyncio.get_running_loop())
        await proxy(scope, receive, send)

    with Uvicorn(app) as server:
        pairs = [upstream.open(server.port) for _ in range(5)]
        loop = loops.get()
        tasks = server.server.server_state.tasks
        # Uvicorn's own is the only other one; what has waited for the client meanwhile is not there any more.
        eventually(lambda: len(asyncio.all_tasks(loop)) == len(tasks) + 1 == 6, "one task for each relay")
        for client, asked in pairs:
            client.sock.close()
            asked.close()


# --- many ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.programs
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn-gthread"])
def test_a_thousand_connections_need_no_thread_each(
    kind: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> int:
        children = map(int, Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split())
        return len(os.listdir(f"/proc/{[*children, program.pid][0]}/task"))

    with served(kind, upstream, monkeypatch) as (program, port):
        pairs = [upstream.open(port) for _ in range(1000)]
        assert threads() < 16
        for number, (_, server) in enumerate(pairs):
            server.sendall(plain(b"%d" % number))
        for number, (client, _) in enumerate(pairs):
            assert client.frame().data == b"%d" % number
