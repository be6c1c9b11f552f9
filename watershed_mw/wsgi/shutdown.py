"""The end of a WSGI worker process: every connection gets its Close, and nobody waits for long.

A server that stops knows nothing of sockets that it gave away, and of those in its threads only that they
are busy. So the process watches for its own end: gunicorn's worker says when it stops; others die of a
signal, unless that is caught here; and the interpreter's exit is the last moment for all of them.
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

__all__ = ["catch_signals", "drain", "watch_process"]

# Seconds that peers have to answer the Close: a replacement may be waiting for this process to go.
_GRACE = 0.5
# How often, in seconds, gunicorn's worker is asked whether it stops. Where it is to stop at once (SIGINT, SIGQUIT) it
# breaks off its handlers 0.1 seconds after it has said so.
_LOOK_EVERY = 0.05
# Seconds that those have whose stream has been broken: so long does it take to notice.
_NOTICE = 0.2


class _Process:
    """What is known of this process's connections; a fork begins anew, as what was here before is the parent's."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.watched = False
        self.draining = False


_processes = [_Process()]


def _this_process() -> _Process:
    if _processes[-1].pid != os.getpid():
        _processes[:] = [_Process()]
    return _processes[-1]


def watch_process(stopping: Callable[[], Callable[[], bool] | None]) -> None:
    """See to it that connections with a ``shutdown_code`` are ended when this process stops.

    Args:
        stopping: gives what tells whether the server is stopping, or None where a signal or the interpreter's exit
            will tell; asked once per process.
    """
    process = _this_process()
    with process.lock:
        first, process.watched = not process.watched, True
    if first:
        _at_exit(drain)
    if first and (stops := stopping()) is not None:
        threading.Thread(target=_watch, args=(stops,), name="watershed-drain", daemon=True).start()


def _at_exit(call: Callable[[], None]) -> None:
    # Before the interpreter waits for threads that are not daemons, which may be waiting for messages.
    register: Any = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(call)
    except RuntimeError:
        pass  # The interpreter is on its way out already.


def _watch(stops: Callable[[], bool]) -> None:
    while not stops():
        time.sleep(_LOOK_EVERY)
    drain()


def drain() -> None:
    """End every connection and relay of this process that has a ``shutdown_code``, within half a second."""
    connections = _to_be_ended()
    for connection in connections:
        connection.start_close("the server stops", code=connection.shutdown_code or 1001)
    _wait_until_gone(connections, _GRACE)
    for connection in connections:
        if not connection.gone:
            connection.abort()
    _wait_until_gone(connections, _NOTICE)


def _to_be_ended() -> list[WatershedConnection | Relay]:
    living: list[WatershedConnection | Relay] = [*live_connections(), *live_relays()]
    return [connection for connection in living if connection.shutdown_code is not None]


def _wait_until_gone(connections: list[WatershedConnection | Relay], timeout: float) -> None:
    until = time.monotonic() + timeout
    while not all(connection.gone for connection in connections) and time.monotonic() < until:
        time.sleep(0.01)


def catch_signals(*, interrupt: bool = True) -> None:
    """Drain before the process ends by a signal that nobody else has a handler for; from the main thread only.

    Args:
        interrupt: whether by SIGINT as well: a server that has the KeyboardInterrupt may wait for handlers in other
            threads before it ends. asyncio has a better handler, but only where it finds Python's own.
    """
    for name in ("SIGTERM", "SIGHUP", "SIGINT")[: 3 if interrupt else 2]:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            try:
                signal.signal(number, _on_signal)
            except ValueError:
                return  # not the main thread


def _on_signal(number: int, frame: Any) -> None:
    process = _this_process()
    if not process.draining and _to_be_ended():
        process.draining = True
        # Not in this thread: it may be the one that has to see its connection's end through.
        if threads_are_greenlets():
            # The hub may be waiting for sockets, and does not look at what is new until one of them wakes it.
            start_thread(partial(_drain_for, number))
        else:
            # Started without waiting for it to run: that may take a lock that this very thread holds.
            _thread.start_new_thread(_drain_for, (number,))
    elif number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)  # what the server and the application expect


def _drain_for(number: int) -> None:
    drain()
    if number == signal.SIGINT:
        _this_process().draining = False  # who has caught the KeyboardInterrupt may go on
    else:
        os.kill(os.getpid(), number)
