"""Flask under servers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.support.peers import Peer, close, text
from tests.support.programs import Program, free_port
from tests.support.waiting import eventually
from tests.support.wsgi_apps import get

pytestmark = pytest.mark.programs

BIN = Path(sys.executable).parent
APPLICATION = "tests.support.flask_app:application"


def serves(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def converse(port: int) -> None:
    """Three kinds of handler, with what Flask adds to each."""
    for path, came in (
        ("/blocking/7", "hi 7 ann /blocking/7 True /page"),
        ("/async/7", "hi 7 ann /async/7 True /page"),
        ("/background", "hi ann"),
    ):
        with Peer(port) as peer:
            answer = peer.open(f"{path}?user=ann")
            assert answer["x-after"] == "yes"
            assert answer["set-cookie"].startswith("session=")
            peer.send(text("hi"))
            assert peer.text() == came
            peer.send(close(4001))
            assert peer.close()[0] == 4001
            peer.end()


def fail(port: int) -> None:
    for path in ("/raise", "/raise-async"):
        with Peer(port) as peer:
            peer.open(path)
            assert peer.close()[0] == 1011
            peer.send(close(1011))
            peer.end()


TOLD_ONCE = re.compile(
    r"(?s)Exception on /raise \[WebSocket\].*Exception on /raise-async \[WebSocket\].*LookupError: secret"
)


@pytest.mark.need(2, 12, 13)
@pytest.mark.parametrize(
    "worker", [("sync",), ("gthread", "--threads", "1"), ("gevent",)], ids=lambda worker: worker[0]
)
def test_routes_work_under_gunicorn(worker: tuple[str, ...]) -> None:
    port = free_port()
    options = ["-k", *worker, "--access-logfile", "-", "--no-control-socket"]
    with Program(BIN / "gunicorn", f"{APPLICATION}()", "--bind", f"127.0.0.1:{port}", *options) as program:
        eventually(lambda: serves(port), "a gunicorn")
        converse(port)
        fail(port)
        program.wait_for_line(TOLD_ONCE)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(port)) for _ in range(10)]
            for number, peer in enumerate(peers):
                peer.open(("/async/7", "/background?user=x")[number % 2])
            assert get(port, "/page").body == b"page"  # the only thread is free
            assert program.stop(signal.SIGTERM) == 0
            for peer in peers:
                assert peer.close()[0] == 1001
    assert program.output.count("Traceback") == 2
    assert " 500 " not in program.output
    assert len(re.findall(r'"GET /blocking/7\?user=ann HTTP/1.1" 101 ', program.output)) == 1


@pytest.mark.need(13)
def test_routes_work_under_flasks_debug_server_with_its_reloader(tmp_path: Path) -> None:
    port, watched = free_port(), tmp_path / "watched"
    watched.write_text("as it was")
    options = ["--app", APPLICATION, "run", "--debug", "--port", str(port), "--extra-files", str(watched)]
    with Program(sys.executable, "-m", "flask", *options) as program:
        eventually(lambda: serves(port), "flask run")
        converse(port)
        fail(port)
        program.wait_for_line(TOLD_ONCE)
        with Peer(port) as old:
            old.open("/async/7")
            watched.write_text("changed")
            assert old.close()[0] == 1001
            old.send(close(1001))
            old.end()
        program.wait_for_line(re.compile("Restarting with.*Debugger is active.*Debugger is active", re.DOTALL))
        eventually(lambda: serves(port), "a server that has reloaded")
        with Peer(port) as new:
            new.open("/async/7?user=ann")
            new.send(text("hi"))
            assert new.text().startswith("hi 7 ann")
            os.killpg(program.pid, signal.SIGINT)  # as from a terminal
            assert new.close()[0] == 1001
        program.wait()
    assert program.output.count("Traceback") == 2, program.output
    lines = re.findall(r'"GET /blocking/7\?user=ann HTTP/1.1" 101 ', re.sub(r"\x1b\[\d+m", "", program.output))
    assert len(lines) == 1
