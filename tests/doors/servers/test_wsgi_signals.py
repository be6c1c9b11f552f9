"""WSGI and the signals of the process: handlers are installed with the first connection, or not at all.

``test_wsgi_process.py`` shows that servers close every connection when a signal stops them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import RunPython
from tests.support.peers import Peer, close, text
from tests.support.programs import Program
from tests.support.waiting import eventually
from tests.support.wsgi_servers import SERVERS, start
from watershed_mw import WatershedWSGI
from watershed_mw.proxy import WebSocketProxy
from watershed_mw.runtime.main_thread import call_in_main_thread

pytestmark = pytest.mark.programs

ALL = ["SIGTERM", "SIGHUP", "SIGINT"]


@contextmanager
def served(way: str) -> Iterator[tuple[Program, Callable[[], Peer]]]:
    with Program(sys.executable, "-m", "tests.support.signals_app", way) as program:
        port = program.port()
        yield program, lambda: Peer(port)


def ask(peer: Peer, question: str) -> Any:
    peer.send(text(question))
    return json.loads(peer.text())


def before(program: Program) -> Any:
    """The signals that have a handler once the application has been created."""
    return json.loads(program.wait_for_line(re.compile(r"before (.*)"))[1])


def test_no_constructor_installs_a_handler(run_python: Callable[..., str]) -> None:
    shown = run_python(
        "import signal\n"
        "numbers = signal.SIGTERM, signal.SIGHUP, signal.SIGINT\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "from flask import Flask\n"
        "from watershed_mw import WatershedWSGI\n"
        "from watershed_mw.flask import Shed\n"
        "from watershed_mw.proxy import WebSocketProxy\n"
        "things = WatershedWSGI(print), Shed(Flask('app')), WebSocketProxy('ws://127.0.0.1:9')\n"
        "print([signal.getsignal(number) for number in numbers] == before)"
    )
    assert shown == "True\n"


def test_the_first_connection_installs_handlers_from_any_thread() -> None:
    with served("plain") as (program, connect), connect() as peer:
        assert before(program) == []
        peer.open("/")
        assert ask(peer, "state") == ALL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_closes_the_connection_and_then_ends_the_process(number: signal.Signals) -> None:
    with served("plain") as (program, connect), connect() as peer:
        peer.open("/")
        assert ask(peer, "state") == ALL
        os.kill(program.pid, number)
        assert peer.close() == (1001, "the server stops")
        peer.send(close(1001))
        assert program.wait() == -number


def test_an_interrupt_closes_connections_and_the_program_may_continue() -> None:
    with served("plain") as (program, connect):
        with connect() as peer:
            peer.open("/")
            assert ask(peer, "state") == ALL
            os.kill(program.pid, signal.SIGINT)
            assert peer.close() == (1001, "the server stops")
            peer.send(close(1001))
            peer.end()
        program.wait_for_line(re.compile("KeyboardInterrupt"))
        with connect() as peer:
            peer.open("/")
            assert ask(peer, "state") == ALL


def test_the_option_leaves_signals_alone() -> None:
    with served("off") as (program, connect), connect() as peer:
        peer.open("/")
        assert ask(peer, "state") == before(program) == []
        os.kill(program.pid, signal.SIGTERM)
        assert program.wait() == -signal.SIGTERM
        assert peer.rest() == b"", "the process has ended without a Close"


def test_without_handlers_the_interpreters_exit_closes_connections() -> None:
    with start(SERVERS["werkzeug"], install_signal_handlers=False) as server:
        server.wait_until_it_serves()
        with server.peer() as peer:
            peer.open("/background")
            peer.send(text("here"))
            assert peer.text() == "here"
            os.kill(server.program.pid, signal.SIGINT)
            assert peer.close() == (1001, "the server stops")


def test_the_programs_own_handler_is_kept() -> None:
    with served("own") as (program, connect), connect() as peer:
        peer.open("/")
        assert before(program) == ["SIGTERM"]
        eventually(lambda: ask(peer, "state") == ALL, "the other handlers")
        os.kill(program.pid, signal.SIGTERM)
        program.wait_for_line(re.compile("own handler"))
        assert ask(peer, "state") == ALL, "the connection goes on"


def test_a_signal_to_a_child_ends_only_the_child() -> None:
    with served("plain") as (program, connect), connect() as peer:
        peer.open("/")
        assert ask(peer, "fork") == -signal.SIGTERM
        os.kill(program.pid, signal.SIGTERM)
        assert peer.close() == (1001, "the server stops")


def test_a_blocked_main_thread_does_not_delay_connections() -> None:
    with served("blocked") as (_, connect), connect() as peer:
        began = time.monotonic()
        peer.open("/")
        assert time.monotonic() - began < 5.0
        assert ask(peer, "state") == [], "it runs no code that could install them"


def test_a_program_may_install_handlers_before_its_main_thread_blocks() -> None:
    with served("explicit") as (program, connect), connect() as peer:
        peer.open("/")
        assert ask(peer, "state") == ALL
        os.kill(program.pid, signal.SIGTERM)
        assert peer.close() == (1001, "the server stops")


def test_a_server_with_handlers_in_c_keeps_them() -> None:
    """Python does not know about uWSGI's handlers, and would replace them."""
    with start(SERVERS["uwsgi"]) as server:
        server.wait_until_it_serves()
        with server.peer() as peer:
            peer.open("/background")
            peer.send(text("here"))
            assert peer.text() == "here"
            os.kill(server.program.pid, signal.SIGTERM)
            assert server.program.wait() == 30, "UWSGI_END_CODE"


def test_handlers_are_installed_only_in_the_main_thread(run_python: RunPython) -> None:
    """In a process of its own, because an earlier test may have installed them in this one."""
    program = """
import threading
from watershed_mw.wsgi import install_signal_handlers

def install():
    try:
        install_signal_handlers()
    except ValueError as error:
        print(type(error).__name__)

thread = threading.Thread(target=install)
thread.start()
thread.join()
"""
    assert run_python(program).strip() == "ValueError"


def test_call_in_main_thread_runs_there() -> None:
    seen: list[threading.Thread] = []
    results: list[bool] = []
    call = lambda: seen.append(threading.current_thread())  # noqa: E731
    thread = threading.Thread(target=lambda: results.append(call_in_main_thread(call, 10.0)))
    thread.start()
    eventually(lambda: results, "the call")
    thread.join()
    assert results == [True]
    assert seen == [threading.main_thread()]


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_the_option_must_be_a_bool(value: Any) -> None:
    for door in (lambda **options: WatershedWSGI(lambda *_: [], **options), lambda **o: WebSocketProxy("ws://a", **o)):
        with pytest.raises(ValueError, match="expected install_signal_handlers as True or False, got "):
            door(install_signal_handlers=value)
