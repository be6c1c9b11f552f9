"""The process's own event loop, in a thread of its own, for connections that no thread waits for.

It starts at first use, once per process id: after a fork the parent's loop must not be touched, as the
two share one epoll set. gevent and eventlet turn threads into greenlets; this one is real all the same.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["background_loop", "on_background_loop", "threads_are_greenlets"]

# Handlers that block hold one of these threads each; the others' messages wait in their bounded queues.
_POOL_SIZE = 32

_lock = threading.Lock()
_pid = 0
_loop: asyncio.AbstractEventLoop | None = None
_pool: ThreadPoolExecutor | None = None


def background_loop() -> tuple[asyncio.AbstractEventLoop, ThreadPoolExecutor]:
    """The process's event loop in its own daemon thread, and its pool for handlers."""
    global _pid, _loop, _pool
    with _lock:
        if _loop is None or _pool is None or _pid != os.getpid():
            _loop, _pool, _pid = _new_loop(), ThreadPoolExecutor(_POOL_SIZE, "watershed-pool"), os.getpid()
            _start_thread(_loop.run_forever)
        return _loop, _pool


def on_background_loop() -> bool:
    """Whether this is the loop's own thread, which must not wait."""
    return asyncio._get_running_loop() is _loop is not None


def threads_are_greenlets() -> bool:
    """Whether gevent or eventlet have patched this process: then a thread costs next to nothing, and may wait."""
    return not isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def _start_thread(run: Callable[[], None]) -> None:
    if not threads_are_greenlets():
        threading.Thread(target=run, name="watershed-loop", daemon=True).start()
        return
    _original("_thread", "start_new_thread")(run, ())


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        pass
    else:
        return uvloop.new_event_loop()
    if threads_are_greenlets():
        return asyncio.SelectorEventLoop(_original("selectors", "DefaultSelector")())
    return asyncio.new_event_loop()


def _original(module: str, name: str) -> Any:
    """What stood in ``module`` before gevent or eventlet patched it."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return gevent_monkey.get_original(module, name)
    eventlet_patcher: Any = sys.modules["eventlet.patcher"]
    return getattr(eventlet_patcher.original(module), name)
