"""The end of a WSGI worker process: every connection gets its Close, within a bounded time.

A stopping server does not know the sockets that were taken from it, and sees its handler threads only as busy. So the
first connection starts to watch for the end of the process: gunicorn's worker has a flag, which is polled; other
servers are terminated by a signal, which is caught; and the interpreter's exit is the last resort.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..connection.base import WatershedConnection, live_connections
from ..relay.api import Relay, live_relays
from ..runtime.greenlets import threads_are_greenlets
from ..runtime.loop_thread import start_thread
from ..runtime.main_thread import call_in_main_thread
from .servers import WSGIServer

__all__ = ["install_signal_handlers", "watch_process"]

# Seconds for peers to answer the Close: a replacement may be waiting for this process to exit.
_GRACE = 0.5
# Seconds between two polls of gunicorn's worker. On a quick shutdown (SIGINT, SIGQUIT) it interrupts its handlers 0.1
# seconds after setting its flag.
_POLL_INTERVAL = 0.05
# Grace period in seconds after aborting a stream.
_ABORT_GRACE = 0.2
# Seconds that the first connection waits for the main thread to install the handlers. Servers whose main thread accepts
# connections wake it at least this often.
_MAIN_THREAD_TIMEOUT = 1.0

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


class _Process:
    """The state of the watch in this process; a child process starts with a new one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.watched = False
        self.catches_signals = False
        self.draining = False


_processes = [_Process()]


def _this_process() -> _Process:
    if _processes[-1].pid != os.getpid():
        _processes[:] = [_Process()]
    return _processes[-1]


def watch_process(server: WSGIServer, *, handle_signals: bool) -> None:
    """End connections and relays that have a ``shutdown_code`` when this process stops.

    Called for each connection, from any thread, before its 101 goes out; only the first call in a process does work.

    Args:
        server: the server that runs here.
        handle_signals: whether to catch the signals that would end the process.
    """
    process = _this_process()
    with process.lock:
        first, process.watched = not process.watched, True
        catch = handle_signals and not server.handles_signals and not process.catches_signals
        process.catches_signals |= catch
    if first:
        _at_exit(drain)
    if first and (stops := server.stopping()) is not None:
        threading.Thread(target=_watch, args=(stops,), name="watershed-drain", daemon=True).start()
    if catch:
        _install_from_any_thread()


def install_signal_handlers() -> None:
    """End connections before SIGTERM, SIGHUP or SIGINT ends the process, where no other handler is installed.

    The first connection calls it in the main thread. Call it yourself, in the main thread, if that thread blocks in
    ``thread.join()`` or another call while the server runs: it then runs no Python code for the first connection.

    Raises:
        ValueError: this is not the main thread.
    """
    for number in filter(_is_unhandled, _SIGNALS):
        signal.signal(number, _on_signal)


def _install_from_any_thread() -> None:
    try:
        install_signal_handlers()
    except ValueError:  # this is a thread of the server
        timeout = _MAIN_THREAD_TIMEOUT if _is_unhandled(signal.SIGTERM) else 0.0
        call_in_main_thread(install_signal_handlers, timeout)


def _is_unhandled(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _at_exit(call: Callable[[], None]) -> None:
    # Runs before the interpreter joins the non-daemon threads, which may be waiting for messages.
    register: Any = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(call)
    except RuntimeError:
        pass  # the interpreter is already shutting down


def _watch(stops: Callable[[], bool]) -> None:
    while not stops():
        time.sleep(_POLL_INTERVAL)
    drain()


def drain() -> None:
    """End every connection and relay of this process that has a ``shutdown_code``, within half a second."""
    connections = _affected()
    for connection in connections:
        connection.start_close("the server stops", code=connection.shutdown_code or 1001)
    _wait_until_gone(connections, _GRACE)
    for connection in connections:
        if not connection.gone:
            connection.abort()
    _wait_until_gone(connections, _ABORT_GRACE)


def _affected() -> list[WatershedConnection | Relay]:
    living: list[WatershedConnection | Relay] = [*live_connections(), *live_relays()]
    return [connection for connection in living if connection.shutdown_code is not None]


def _wait_until_gone(connections: list[WatershedConnection | Relay], timeout: float) -> None:
    until = time.monotonic() + timeout
    while not all(connection.gone for connection in connections) and time.monotonic() < until:
        time.sleep(0.01)


def _on_signal(number: int, frame: Any) -> None:
    process = _this_process()
    if not process.draining and _affected():
        process.draining = True
        # In another thread: this one may be needed for the closing handshake of its own connection.
        if threads_are_greenlets():
            # A real thread: the hub may be waiting for sockets, and starts a greenlet only once one of them is ready.
            start_thread(partial(_drain_for, number))
        else:
            # threading.Thread.start() waits for the thread, and this handler may have interrupted it holding a lock.
            _thread.start_new_thread(_drain_for, (number,))
    elif number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)  # what the server and the application expect


def _drain_for(number: int) -> None:
    drain()
    if number == signal.SIGINT:
        _this_process().draining = False  # the process continues if something catches the KeyboardInterrupt
    else:
        os.kill(os.getpid(), number)
