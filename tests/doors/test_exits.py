"""An exception in a handler ends only its connection, whatever its class; an interrupt reaches the program.

Under the uvicorn class and on the WSGI servers; the tests of other ASGI servers are in ``servers/``, those of handlers
on their own in ``tests/connections/test_handlers.py``.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send, accept, echo
from tests.support.peers import Peer, close, head, text
from tests.support.programs import Program
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import eventually
from tests.support.wsgi_servers import SERVERS, start
from watershed_mw import AsyncConnection, WatershedASGI


class Odd(BaseException):
    pass


KINDS = {kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Odd)}
kinds = pytest.mark.parametrize("kind", KINDS)


def leave(kind: str) -> None:
    raise KINDS[kind]


# --- our uvicorn class -----------------------------------------------------------------------------------


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does not know about this package."""
    await accept(receive, send)
    leave((await receive())["text"])


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that raises before it accepts."""
    leave(scope["path"].removeprefix("/"))


async def pulling(connection: AsyncConnection) -> None:
    leave(str(await connection.receive()))


async def pushed(connection: AsyncConnection) -> None:
    connection.on("text", leave)
    await connection.run()


async def pushed_later(connection: AsyncConnection) -> None:
    async def leave_later(kind: str) -> None:
        await asyncio.sleep(0)
        leave(kind)

    connection.on("text", leave_later)
    await connection.run()


async def pushed_to_nobody(connection: AsyncConnection) -> None:
    connection.on("text", leave)
    await connection.wait_closed()


def native(handler: Callable[[AsyncConnection], Any]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(await scope["watershed"].accept())

    return WatershedASGI(app)


APPS = {"plain": plain} | {
    handler.__name__: native(handler) for handler in (pulling, pushed, pushed_later, pushed_to_nobody)
}


@kinds
@pytest.mark.parametrize("way", APPS)
def test_sys_exit_in_an_application_under_uvicorn_ends_only_its_connection(
    uvicorns: Uvicorn, way: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    uvicorns.run(echo)
    with Peer(uvicorns.port) as other:
        other.open()
        run = uvicorns.run(APPS[way])
        with Peer(uvicorns.port) as peer:
            peer.open()
            peer.send(text(kind))
            assert peer.close()[0] == 1011
            peer.send(close(1011))
            peer.end()
        run.outcome()
        eventually(
            lambda: [record for record in caplog.records if record.exc_info and record.exc_info[0] is KINDS[kind]]
        )
        other.send(text("still here"))
        assert other.text() == "still here"


@kinds
def test_sys_exit_before_the_accept_under_uvicorn_ends_only_its_request(uvicorns: Uvicorn, kind: str) -> None:
    uvicorns.run(refusing)
    with Peer(uvicorns.port) as peer:
        peer.send(head(f"/{kind}"))
        assert peer.refusal().status == 500


# --- the WSGI servers ------------------------------------------------------------------------------------


@pytest.mark.programs
@pytest.mark.parametrize("name", SERVERS)
def test_sys_exit_in_a_handler_under_wsgi_ends_only_its_connection(name: str) -> None:
    kind = SERVERS[name]
    paths = ["/blocking", "/background", "/async"] if kind.background else ["/blocking"]
    with start(kind) as server, ExitStack() as stack:
        server.wait_until_it_serves()
        others = []
        for path in paths if not kind.single else paths[1:]:
            others.append(stack.enter_context(server.peer()))
            others[-1].open(path)
        for path in paths:
            with server.peer() as peer:
                peer.open(f"{path}?{server.word()}")
                peer.send(text("exit"))
                assert peer.close()[0] == 1011
                peer.send(close(1011))
                peer.end()
            server.program.wait_for_line(
                re.compile(
                    rf"(?s)SystemExit: 3.*ended word{server.words:04} 1011|"
                    rf"ended word{server.words:04} 1011.*SystemExit: 3"
                )
            )
            for other in others:
                other.send(text(path))
                assert other.text() == path
            assert server.get().body == b"page"


# --- interrupts ------------------------------------------------------------------------------------------

INTERRUPTED = """
import asyncio, signal, socket, sys, time
from watershed_mw import Watershed

def stop(*_):
    {raising}

{set_up}

def handle(message):
    print("handling", flush=True)
    until = time.monotonic() + 30
    while time.monotonic() < until:  # interrupted by the signal
        time.sleep(0.01)

def threads(sock):
    connection = Watershed().accept({request!r}, sock)
    connection.on("text", handle)
    connection.run()

async def on_loop(sock):
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock)
    connection = Watershed().accept({request!r}, transport)
    connection.on("text", handle)
    await connection.run()

ours, theirs = socket.socketpair()
theirs.sendall({frame!r})
{run}
"""
RUNS = {
    "threads": "threads(ours)",
    "asyncio": "loop = asyncio.new_event_loop(); loop.run_until_complete(on_loop(ours))",
}
# SIGINT with Python's handler, and with a program's own: gunicorn's worker calls sys.exit().
SIGNALS = {
    "Python's own": ("pass", "", signal.SIGINT, (1, -signal.SIGINT)),
    "sys.exit": ("sys.exit(7)", "signal.signal(signal.SIGTERM, stop)", signal.SIGTERM, (7,)),
}


@pytest.mark.programs
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_during_a_handler_ends_the_program(run: str, how: str, tmp_path: Any) -> None:
    raising, set_up, number, codes = SIGNALS[how]
    program = tmp_path / "program.py"
    program.write_text(
        INTERRUPTED.format(raising=raising, set_up=set_up, request=head(), frame=text("go"), run=RUNS[run])
    )
    with Program(sys.executable, program) as running:
        running.wait_for_line(re.compile("handling"))
        assert running.stop(number, LIMIT) in codes
