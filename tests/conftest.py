"""Fixtures for every test: a check that it left nothing running, and helpers that many tests need.

Nothing here knows the package's modules except by file name. Every helper waits for a condition, up to a limit, and
none for a fixed time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import trustme

# Before anything imports them, so that pytest rewrites their assertions too.
pytest.register_assert_rewrite("tests.support")

from tests.support import LIMIT, programs  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SocketPair: TypeAlias = "tuple[socket.socket, socket.socket]"

# Threads that live as long as the process: they run the connections of `run_in_background()`.
PROCESS_WIDE_THREADS = ("watershed-loop", "watershed-pool", "watershed-watcher")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to run with extension modules older than their source; let the servers under test receive signals."""
    # A shell ignores SIGINT for what runs in its background, nohup SIGHUP, and whatever that starts inherits it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for built in (ROOT / "watershed_mw").rglob(f"*{suffix}"):
        name = built.name.removesuffix(suffix)
        for source in (built.with_name(f"{name}.py"), built.with_name(f"{name}.pxd")):
            if not source.exists() or source.stat().st_mtime > built.stat().st_mtime:
                raise pytest.UsageError(f"{built.name} is older than {source.name}: run `make build` first")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that start programs are marked, because `make test-quick` starts none."""
    programs.marked = item.get_closest_marker("programs") is not None


class LoopErrors(logging.Handler):
    """Records the reports of event loops about unhandled exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


def _left_running(before: set[threading.Thread]) -> list[threading.Thread]:
    deadline = time.monotonic() + LIMIT
    leaked = []
    for thread in set(threading.enumerate()) - before:
        ours = thread.name.startswith("watershed") and not thread.name.startswith(PROCESS_WIDE_THREADS)
        if ours or not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                leaked.append(thread)
    return leaked


@pytest.fixture(autouse=True)
def loop_errors() -> Iterator[LoopErrors]:
    """Fail a test that leaves threads behind, or exceptions that only an event loop saw.

    Unclosed sockets and transports need no check of their own: their ResourceWarning is an error. A test
    that makes a loop complain on purpose asks for this fixture and clears ``seen``.
    """
    errors = LoopErrors()
    logger = logging.getLogger("asyncio")
    logger.addHandler(errors)
    before = set(threading.enumerate())
    try:
        yield errors
    finally:
        logger.removeHandler(errors)
    if leaked := _left_running(before):
        pytest.fail(f"threads left running: {', '.join(thread.name for thread in leaked)}")
    if errors.seen:
        formatter = logging.Formatter()
        pytest.fail("\n".join(["an event loop reported:", *map(formatter.format, errors.seen)]))


@pytest.fixture
def socket_pair() -> Iterator[SocketPair]:
    """Two ends of one TCP connection on loopback (client, server), each with a time limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), LIMIT)
        server, _ = listener.accept()
    server.settimeout(LIMIT)
    with client, server:
        yield client, server


@pytest.fixture(scope="session")
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts (client, server) that trust each other, for 127.0.0.1 and localhost."""
    authority = trustme.CA()
    client = ssl.create_default_context()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(client)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    return client, server


RunPython: TypeAlias = "Callable[..., str]"


@pytest.fixture
def run_python() -> RunPython:
    """Run a program text in a fresh interpreter, with warnings as errors, and return what it printed.

    Keyword arguments are environment variables on top of this process's own; None takes one away.
    """

    def run(program: str, **environment: str | None) -> str:
        merged = os.environ | {name: value for name, value in environment.items() if value is not None}
        for name, value in environment.items():
            if value is None:
                merged.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=ROOT,
            env=merged,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
