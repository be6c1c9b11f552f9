"""Living in a WSGI worker process: its end, its forks, its threads, and thousands of connections.

The servers are those of ``wsgi_servers.py``. No test waits for a length of time; where one says how quick
something has to be, the limit is far above what it takes, and far below what it would take without.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import LIMIT, SOON
from tests.support.green_signals import COUNT
from tests.support.peers import Peer, binary, close, head, ping, text
from tests.support.waiting import eventually
from tests.support.wsgi_servers import SERVERS, Kind, Running, start, start_gunicorn
from watershed_mw.wsgi import shutdown

pytestmark = pytest.mark.programs

GTHREAD = ("-k", "gthread", "--threads", "4")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown with a longer grace period: on a busy machine a polite peer may take longer than the usual one."""
    monkeypatch.setenv("WATERSHED_MW_TEST_GRACE", str(LIMIT))


def open_connections(running: Running, stack: ExitStack, paths: list[str]) -> list[Peer]:
    """Open a connection for each path, and echo one message on it."""
    peers = []
    for path in paths:
        peer = stack.enter_context(running.peer())
        peer.open(path)
        peer.send(text("here"))
        assert peer.text() == "here"
        peers.append(peer)
    return peers


def is_readable(peer: Peer) -> bool:
    return bool(select.select([peer.sock], [], [], 0)[0])


def expect_the_close(peers: list[Peer], code: int, began: float) -> None:
    """Every peer gets this Close promptly, answers it, and sees the end of the stream."""
    for peer in peers:
        assert peer.close() == (code, "the server stops")
        peer.send(close(code))
    for peer in peers:
        peer.end()
        peer.sock.close()
    took = time.monotonic() - began
    assert took < SOON, f"the last connection ended after {took:.2f} s"


def process(running: Running) -> dict[str, Any]:
    """The report of one of the server's processes."""
    told: dict[str, Any] = json.loads(running.get("/process").body)
    return told


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_no_traceback(running: Running) -> None:
    assert "Traceback" not in running.program.output, running.program.output
    assert "Exception ignored" not in running.program.output, running.program.output


# --- the end of the process ------------------------------------------------------------------------------

WORKERS = ["gunicorn-sync", "gunicorn-gthread", "gunicorn-preload", "gunicorn-gevent", "gunicorn-gevent_pywsgi"]


def paths_of(kind: Kind) -> list[str]:
    """Every kind of handler, and more than one of each; the one that blocks the server comes last."""
    released = ["/background", "/async"] * 2
    return [*released, "/blocking"] if kind.single else ["/blocking", *released, "/blocking"]


def wait_for_workers(server: Running, kind: Kind) -> None:
    """Wait until each worker has answered: a signal that arrives while a worker starts delays gunicorn by 5 seconds."""
    options = kind.options or ()
    number = int(options[options.index("-w") + 1]) if "-w" in options else 1
    pids: set[int] = set()

    def all_have_answered() -> bool:
        pids.add(process(server)["pid"])
        return len(pids) == number

    eventually(all_have_answered, f"an answer of each of {number} workers")


@pytest.mark.usefixtures("patient")
@pytest.mark.need(2, 3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("name", WORKERS)
def test_stopping_gunicorn_closes_every_connection(name: str, number: signal.Signals) -> None:
    kind = SERVERS[name]
    with start(kind) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        wait_for_workers(server, kind)
        peers = open_connections(server, stack, paths_of(kind))
        began = time.monotonic()
        os.kill(server.program.pid, number)
        expect_the_close(peers, 1001, began)
        assert server.program.wait() == 0
        assert time.monotonic() - began < 2 * SOON, "the process stayed"
        # On a quick shutdown gunicorn interrupts a handler with SystemExit, and logs it as an error.
        assert server.program.output.count("Traceback") == server.program.output.count("SystemExit: 0")


@pytest.mark.usefixtures("patient")
@pytest.mark.need(2, 3)
@pytest.mark.parametrize("name", WORKERS)
def test_a_reload_closes_every_connection_and_starts_the_new_worker_immediately(name: str) -> None:
    kind = SERVERS[name]
    with start(kind) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        wait_for_workers(server, kind)
        old = {process(server)["pid"] for _ in range(20)}
        peers = open_connections(server, stack, paths_of(kind))
        began = time.monotonic()
        os.kill(server.program.pid, signal.SIGHUP)
        expect_the_close(peers, 1001, began)
        eventually(lambda: not any(map(is_alive, old)), "the end of the old workers")
        assert process(server)["pid"] not in old
        assert time.monotonic() - began < 2 * SOON, "the replacement came late"
        (peer,) = open_connections(server, stack, ["/background"])
        peer.send(close())
        assert peer.close() == (1000, "")
        assert_no_traceback(server)


@pytest.mark.usefixtures("patient")
@pytest.mark.need(2, 3)
@pytest.mark.parametrize("name", [name for name in WORKERS if "pywsgi" not in name])  # gevent's server does not count
def test_a_worker_that_reaches_max_requests_closes_every_connection(name: str) -> None:
    kind = SERVERS[name]
    assert kind.options is not None
    with start_gunicorn(*kind.options, "--max-requests", "30") as server, ExitStack() as stack:
        first = process(server)["pid"]
        # A handler that blocks the worker would keep it from serving its last request.
        peers = open_connections(
            server, stack, [path for path in paths_of(kind) if path == "/async" or not kind.single]
        )
        eventually(lambda: server.get().body == b"page" and all(map(is_readable, peers)), "the worker's last request")
        expect_the_close(peers, 1001, time.monotonic())
        eventually(lambda: not is_alive(first), "the end of the worker")
        assert server.get().body == b"page"
        assert_no_traceback(server)


@pytest.mark.usefixtures("patient")
@pytest.mark.need(2, 3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize(
    "name",
    [
        *("werkzeug", "werkzeug-single", "wsgiref", "django", "django-nothreading"),
        *("waitress", "cheroot", "pywsgi", "pywsgi-patched", "eventlet"),
    ],
)
def test_a_server_stopped_by_a_signal_closes_every_connection(name: str, number: signal.Signals) -> None:
    kind = SERVERS[name]
    with start(kind) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        # wsgiref treats a KeyboardInterrupt inside its application as the application's error, and continues.
        survives = name in ("wsgiref", "django-nothreading") and number == signal.SIGINT
        peers = open_connections(
            server, stack, [path for path in paths_of(kind) if path != "/blocking" or not survives]
        )
        began = time.monotonic()
        os.kill(server.program.pid, number)
        if name.startswith("pywsgi"):
            # A signal that comes when gevent's hub is about to wait is seen when it wakes: at the next connection.
            with socket.socket() as sock:
                sock.connect_ex(("127.0.0.1", int(server.address)))
        expect_the_close(peers, 1001, began)
        if survives and server.program.outlives(1.0):
            os.kill(server.program.pid, number)  # the first came while it still logged a request: Ctrl-C once more
        server.program.wait()
        assert time.monotonic() - began < 2 * SOON, "the process stayed"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", ["gunicorn-gthread", "werkzeug"])
def test_the_shutdown_code_is_an_option(name: str) -> None:
    with start(SERVERS[name], shutdown_code=1012) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        peers = open_connections(server, stack, ["/blocking", "/background", "/async"])
        began = time.monotonic()
        os.kill(server.program.pid, signal.SIGTERM)
        expect_the_close(peers, 1012, began)


def test_a_shutdown_can_be_left_to_the_application() -> None:
    with start(SERVERS["werkzeug"], shutdown_code=None) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        peers = open_connections(server, stack, ["/blocking", "/background", "/async"])
        assert server.program.stop(signal.SIGTERM) == -signal.SIGTERM
        for peer in peers:
            assert peer.rest() == b"", "nothing was installed, so nothing was said"


@pytest.mark.need(2)
@pytest.mark.parametrize("answer", [b"", close(1001)], ids=["silent", "lingering"])
@pytest.mark.parametrize("name", ["gunicorn-sync", "gunicorn-gthread", "werkzeug"])
def test_a_peer_that_does_not_close_does_not_delay_the_shutdown(name: str, answer: bytes) -> None:
    """Neither a peer that does not answer the Close, nor one that does but keeps its end of the TCP stream open."""
    assert shutdown._GRACE + shutdown._ABORT_GRACE < 1.0
    with start(SERVERS[name]) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        peers = open_connections(server, stack, ["/background", "/async", "/blocking"])
        began = time.monotonic()
        os.kill(server.program.pid, signal.SIGTERM)
        for peer in peers:
            assert peer.close()[0] == 1001
            peer.send(answer)
        server.program.wait()
        assert time.monotonic() - began < SOON, "the process stayed"


# --- forks -----------------------------------------------------------------------------------------------


def test_a_connection_of_the_process_that_forks_workers_is_left_alone() -> None:
    """`--preload`: a loop runs in the master already; its workers must not touch it, and work without it."""
    with start_gunicorn(*GTHREAD, "--preload", "-w", "2", factory="master_first") as server, ExitStack() as stack:
        master = int(server.program.wait_for_line(re.compile(r"master is (\d+)"))[1])
        workers = eventually(lambda: found if len(found := seen(server)) == 2 else None, "two workers")
        peers = open_connections(server, stack, ["/background", "/async"] * 6)
        for pid, told in workers.items():
            assert pid != master
            assert told["names"].count("watershed-loop") <= 1
        for told in eventually(lambda: found if len(found := seen(server)) == 2 else None, "two workers").values():
            assert told["names"].count("watershed-loop") == 1, "one for the process, and its own"
        # A worker ends, and with it everything that it has inherited.
        os.kill(min(workers), signal.SIGTERM)
        eventually(lambda: not is_alive(min(workers)), "the end of a worker")
        count = server.program.output.count("master got")
        eventually(lambda: server.program.output.count("master got") > count + 5, "more messages")
        assert "master ended" not in server.program.output
        heard_in = set(re.findall(r"master got \d+ in (\d+)", server.program.output))
        assert heard_in == {str(master)}
        # It does not affect the other worker's connections, either.
        alive = [peer for peer in peers if not is_readable(peer)]
        for peer in alive:
            peer.send(text("still"))
            assert peer.text() == "still"
        assert 0 < len(alive) < len(peers)


def seen(server: Running) -> dict[int, dict[str, Any]]:
    """Reports of the workers that answer several requests in a row, by process id."""
    return {told["pid"]: told for told in (process(server) for _ in range(10))}


@pytest.mark.parametrize("name", ["werkzeug", "gunicorn-gthread"])
@pytest.mark.parametrize("path", ["/forking", "/forking-background"])
def test_a_fork_in_a_handler_does_not_affect_connections(name: str, path: str) -> None:
    with start(SERVERS[name]) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        others = open_connections(server, stack, ["/blocking", "/background", "/async"])
        (peer,) = open_connections(server, stack, [path])
        for way, told in (("fork", "exit 3"), ("process", "exit 4"), ("fork", "exit 3"), ("after", "after")):
            peer.send(text(way))
            assert peer.text() == told
            for other in others:
                other.send(text(f"after {way}"))
                assert other.text() == f"after {way}"
        for one in [peer, *others]:
            one.send(close(4001))
            assert one.close()[0] == 4001
            one.end()
        assert process(server)["names"].count("watershed-loop") == 1
        assert_no_traceback(server)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_peer_sees_the_end_even_if_a_child_holds_the_socket(
    tls: bool, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    with start(SERVERS["gunicorn-gthread"], certificate if tls else None) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        others = open_connections(server, stack, ["/blocking", "/background", "/async"])
        (peer,) = open_connections(server, stack, ["/forking"])
        peer.send(text("stay"))
        child = int(peer.text().removeprefix("child "))
        for one in [peer, *others]:
            one.send(close())
            assert one.close()[0] == 1000
            one.end()
        os.kill(child, signal.SIGKILL)  # it was there all the time


# --- threads ---------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Raise the descriptor limit of this process and its children; return how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield (5000 if hard == resource.RLIM_INFINITY else min(5000, hard - 500))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_many(running: Running, stack: ExitStack, count: int) -> list[socket.socket]:
    """Bare sockets that have got their 101, opened fifty at a time."""
    socks: list[socket.socket] = []
    while len(socks) < count:
        batch = [socket.create_connection(("127.0.0.1", int(running.address)), LIMIT) for _ in range(50)]
        for number, sock in enumerate(batch):
            stack.callback(sock.close)
            sock.sendall(head(["/background", "/async"][number % 2]))
        for sock in batch:
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                data = sock.recv(1024)
                assert data, answer
                answer += data
            assert answer.startswith(b"HTTP/1.1 101 ")
        socks += batch
    return socks


def quickest_page(running: Running) -> float:
    """The best time for a page in seconds, because the machine does other work as well."""

    def measure() -> float:
        began = time.monotonic()
        assert running.get().body == b"page"
        return time.monotonic() - began

    return min(measure() for _ in range(30))


def assert_echoes(sock: socket.socket, word: str) -> None:
    sock.sendall(text(word))
    expected, data = bytes([0x81, len(word)]) + word.encode(), b""
    while len(data) < len(expected):
        more = sock.recv(1024)
        assert more
        data += more
    assert data == expected


@pytest.mark.need(12)
def test_thousands_of_connections_need_no_thread_each(many_descriptors: int) -> None:
    # Nothing answers PINGs here, and on a busy machine all of this may take longer than the usual interval.
    with start_gunicorn(*GTHREAD, compression=False, ping_interval=None) as server, ExitStack() as stack:
        before = quickest_page(server)
        open_many(server, stack, 50)
        threads = process(server)["threads"]
        socks: list[socket.socket] = []
        for count in (1500, many_descriptors):
            socks += open_many(server, stack, count - len(socks))
            assert process(server)["threads"] == threads
            after = quickest_page(server)
            assert after < 5 * before + 0.02, f"a page took {before:.4f} s, and takes {after:.4f} s"
        for number in range(0, len(socks), 97):
            assert_echoes(socks[number], f"word {number}")
        assert process(server)["threads"] <= threads + POOL
        assert_no_traceback(server)


POOL = 32
"""Threads that handlers of events share, whatever the number of connections; they come when there is work."""


def test_floods_do_not_add_threads() -> None:
    with start_gunicorn(*GTHREAD) as server, ExitStack() as stack:
        peers = open_connections(server, stack, ["/background", "/async", "/blocking"])
        threads = process(server)["threads"]
        pong = bytes([0x8A, 0x80]) + bytes(4)
        for peer in peers:
            for _ in range(20):
                peer.send(pong * 1000)
            peer.send(text("behind the flood"))
            assert peer.text() == "behind the flood"
        # Each reports its end once it has noticed it.
        for number in range(500):
            with server.peer() as peer:
                peer.open(f"/{['background', 'async'][number % 2]}?flood{number}")
                peer.vanish()
        eventually(lambda: len(re.findall(r"ended flood\d+ 1006", server.program.output)) == 500, "500 ends")
        assert process(server)["threads"] <= threads + POOL
        assert process(server)["names"].count("watershed-loop") == 1
        for peer in peers:
            peer.send(text("still here"))
            assert peer.text() == "still here"
        assert_no_traceback(server)


def test_waitress_works_with_more_sockets_than_select_supports(many_descriptors: int) -> None:
    """Waitress waits with select(), which fails on descriptors above 1,023."""
    with start(SERVERS["waitress"]) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        socks = open_many(server, stack, 1300)
        assert server.get().body == b"page"
        for number in range(0, len(socks), 97):
            assert_echoes(socks[number], f"word {number}")
        assert_no_traceback(server)


# --- limits of its own -----------------------------------------------------------------------------------


@pytest.mark.need(27)
@pytest.mark.parametrize("name", ["gunicorn-gthread", "gunicorn-gevent", "waitress", "eventlet"])
def test_max_connections_applies_per_process(name: str) -> None:
    with start(SERVERS[name], max_connections=3) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        for _ in range(2):  # every slot is released
            peers: list[Peer] = []
            for path in ("/blocking", "/background", "/async"):
                # A slot is free a moment after its client has seen the end.
                eventually(partial(takes, server, stack, path, peers), f"a place for {path}")
            for peer in peers:
                peer.send(text("here"))
                assert peer.text() == "here"
            with server.peer() as peer:
                peer.send(head("/background"))
                answer = peer.answer()
            assert (answer.status, answer["retry-after"]) == (503, "1")
            assert b"max_connections" in answer.body
            assert server.get().body == b"page"
            for peer in peers:
                peer.send(close())
                peer.close()
                peer.end()
                peer.sock.close()  # until then, or for close_timeout, there is a socket of the server's


@pytest.mark.parametrize("name", ["gunicorn-gevent", "gunicorn-gevent_pywsgi", "pywsgi-patched", "eventlet"])
def test_a_run_that_times_out_still_sees_the_end_and_releases_its_slot(name: str) -> None:
    with start(SERVERS[name], max_connections=2) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        for _ in range(4):
            word = server.word()
            peers: list[Peer] = []
            eventually(partial(takes, server, stack, f"/limited?{word}", peers), "a place")
            (peer,) = peers
            peer.send(text("here"))
            assert peer.text() == "here"
            assert peer.close() == (1000, "time is up")
            peer.send(close())
            peer.end()
            peer.sock.close()
            server.program.wait_for_line(re.compile(f"returned {word}"))
            assert server.program.output.count(f"ended {word} ") == 1
        assert_no_traceback(server)


def takes(server: Running, stack: ExitStack, path: str, peers: list[Peer]) -> bool:
    """Whether the server has a free slot; if so, the connection is added to the peers."""
    peer = stack.enter_context(server.peer())
    peer.send(head(path))
    if peer.answer().status != 101:
        return False
    peers.append(peer)
    return True


@pytest.mark.need(27)
@pytest.mark.parametrize("way", ["blocking", "background", "async"])
def test_max_message_rate_applies(way: str) -> None:
    with start(SERVERS["gunicorn-gthread"], max_message_rate=20) as server:
        server.wait_until_it_serves()
        for flood in (text("x"), ping(b"x")):
            with server.peer() as peer:
                peer.open(f"/{way}")
                peer.send(flood * 200)
                while (frame := peer.frame()).opcode != 8:
                    pass
                assert int.from_bytes(bytes(frame.data)[:2], "big") == 1008


# --- a released connection is looked after ---------------------------------------------------------------

RELEASED = [
    ("gunicorn-gthread", "background"),
    ("gunicorn-gthread", "async"),
    ("gunicorn-gthread+tls", "async"),
    ("gunicorn-gevent", "background"),
    ("gunicorn-gevent", "async"),
    ("waitress", "background"),
]


@contextlib.contextmanager
def started(name: str, certificate: tuple[Path, ssl.SSLContext], **options: Any) -> Iterator[Running]:
    name, _, tls = name.partition("+")
    with start(SERVERS[name], certificate if tls else None, **options) as server:
        server.wait_until_it_serves()
        yield server


@pytest.mark.need(16)
@pytest.mark.parametrize("name, way", RELEASED)
def test_keepalive_applies(name: str, way: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with started(name, certificate, ping_interval=0.1, ping_timeout=0.3, close_timeout=0.3) as server:
        with server.peer() as peer:
            peer.open(f"/{way}?alive")
            for _ in range(5):
                frame = peer.frame()
                assert frame.opcode == 9
                peer.send(bytes([0x8A, 0x80 | len(frame.data)]) + bytes(4) + bytes(frame.data))
            peer.send(text("still here"))
            while (frame := peer.frame()).opcode == 9:
                pass
            assert bytes(frame.data) == b"still here"
        with server.peer() as peer:
            word = server.word()
            peer.open(f"/{way}?{word}")
            while (frame := peer.frame()).opcode == 9:
                pass
            assert frame.opcode == 8, "a peer that answers no PING is given up"
            peer.end()
        assert server.program.wait_for_line(re.compile(rf"ended {word} (\d+)"))[1] in ("1006", "1011")


@pytest.mark.need(1)
@pytest.mark.parametrize("name, way", RELEASED)
def test_close_timeout_applies(name: str, way: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with started(name, certificate, close_timeout=0.3) as server, server.peer() as peer:
        word = server.word()
        peer.open(f"/{way}?{word}")
        peer.send(text("end 4001"))
        assert peer.close() == (4001, "that was all")
        began = time.monotonic()
        peer.end()  # although the Close was not answered
        assert time.monotonic() - began < SOON
        server.program.wait_for_line(re.compile(f"ended {word} "))


@pytest.mark.need(4)
@pytest.mark.parametrize("name", ["gunicorn-gthread", "gunicorn-gthread+tls", "gunicorn-gevent", "waitress"])
def test_a_peer_that_does_not_read_blocks_its_sender(name: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with started(name, certificate, compression=False) as server, server.peer(receive_buffer=65536) as peer:
        word = server.word()
        peer.open(f"/flooding?{word}")
        sent = int(server.program.wait_for_line(re.compile(rf"held {word} (\d+)"))[1])
        assert sent * 65536 < 16 * 2**20, "what it has sent is in the kernel, and a little in memory"
        for _ in range(sent + 1):
            assert len(peer.frame().data) == 65536
        assert peer.close() == (4001, "that was all")


@pytest.mark.need(5)
@pytest.mark.parametrize("name", ["gunicorn-gthread", "gunicorn-gthread+tls", "gunicorn-gevent", "waitress"])
def test_a_handler_that_does_not_receive_blocks_its_peer(name: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    frame = binary(bytes(65536))
    with started(name, certificate) as server, server.peer() as peer:
        word = server.word()
        peer.open(f"/busy?{word}")
        peer.sock.settimeout(0.5)
        sent = 0
        data = memoryview(frame * 800)
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += peer.sock.send(data[sent : sent + 65536])
        assert sent < 32 * 2**20, "what it has not taken is in the kernel, and a little in memory"
        peer.sock.settimeout(LIMIT)
        assert server.get("/resume").body == b"resumed"
        while sent < len(data):
            sent += peer.sock.send(data[sent : sent + 65536])
        peer.send(close())
        assert peer.close() == (1000, "")
        peer.sock.close()
        server.program.wait_for_line(re.compile(f"ended {word} 1000"))
        assert server.program.output.count(f"took {word} 65536") == 800


@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_a_signal_inside_a_green_socket_neither_duplicates_nor_loses_bytes(kind: str) -> None:
    """As with a KeyboardInterrupt: the kernel has moved bytes already, but the socket's method does not return."""
    command = [sys.executable, "-m", "tests.support.green_signals", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    peer, ours = (json.loads(line) for line in done.stdout.splitlines())
    assert ours["signals"] > 100
    assert (peer["messages"], peer["in order"]) == (COUNT, True)
    assert (ours["messages"], ours["in order"]) == (COUNT, True)
