"""The process's own event loop, in a thread of its own, for connections that no thread waits for.

It starts at first use, once per process id: after a fork the parent's loop must not be touched, as the
two share one epoll set. gevent and eventlet turn threads into greenlets; this one is real all the same.
"""

from __future__ import annotations

import _socket
import _thread
import asyncio
import contextlib
import importlib.util
import os
import select
import socket
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

__all__ = [
    "Workers",
    "background_loop",
    "new_poll",
    "on_background_loop",
    "run_on_background_loop",
    "start_thread",
    "threads_are_greenlets",
]

T = TypeVar("T")

# Handlers that block hold one of these threads each; the others' messages wait in their bounded queues.
_POOL_SIZE = 32


class Pool:
    """Handlers run in threads, of which there are few.

    Args:
        loop: whose thread asks for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(_POOL_SIZE, "watershed-pool")

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call``; its result on the loop.

        Raises:
            RuntimeError: the interpreter is on its way out, and takes no more work.
        """
        return self._loop.run_in_executor(self._pool, call)


class Greenlets:
    """Handlers run in greenlets, where all other greenlets of the server are: in the thread that this is made in.

    What a pool is made of, gevent and eventlet have turned into their own, which the loop's thread must not touch:
    it has no hub that anything would run in. So a byte through a socket pair asks for a greenlet.

    Args:
        loop: whose thread asks for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._door, bell = socket.socketpair()
        self._bell = _socket.socket(fileno=bell.detach())  # the C module's, as ringing it waits for nobody
        self._bell.setblocking(False)
        threading.Thread(target=self._serve, name="watershed-greenlets", daemon=True).start()

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call``; its result on the loop."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append((call, future))
        with contextlib.suppress(BlockingIOError):  # full of bytes that ask for the same
            self._bell.send(b"!")
        return future

    def _serve(self) -> None:
        while self._door.recv(4096):
            while self._calls:
                threading.Thread(target=self._run, args=self._calls.popleft(), daemon=True).start()

    def _run(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        try:
            done = call()
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is waited for
            self._loop.call_soon_threadsafe(_settle, future, None, error)
        else:
            self._loop.call_soon_threadsafe(_settle, future, done, None)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


Workers: TypeAlias = Pool | Greenlets

_lock = threading.Lock()
_pid = 0
_loop: asyncio.AbstractEventLoop | None = None
_workers: Workers | None = None


def background_loop() -> tuple[asyncio.AbstractEventLoop, Workers]:
    """The process's event loop in its own daemon thread, and those who run its handlers."""
    global _pid, _loop, _workers  # noqa: PLW0603  # one set of them per process
    with _lock:
        if _loop is None or _workers is None or _pid != os.getpid():
            _loop, _pid = _new_loop(), os.getpid()
            _workers = Greenlets(_loop) if threads_are_greenlets() else Pool(_loop)
            start_thread(_loop.run_forever)
        return _loop, _workers


def run_on_background_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on that loop, and wait for what it returns or raises, as the server's threads wait.

    Raises:
        RuntimeError: this is the loop's own thread, which must not wait.
    """
    loop, _ = background_loop()
    if on_background_loop():
        work.close()
        raise RuntimeError("expected a thread that may wait, got the one of the process's event loop")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        if threads_are_greenlets():
            # What a future waits with is gevent's or eventlet's here, which no other thread can wake; a socket is.
            ours, theirs = socket.socketpair()
            bell = _socket.socket(fileno=theirs.detach())
            future.add_done_callback(lambda _: bell.close())
            with ours:
                ours.recv(1)
        return future.result()
    finally:
        future.cancel()  # no effect, unless this thread or greenlet is not to wait any longer


def on_background_loop() -> bool:
    """Whether this is the loop's own thread, which must not wait."""
    return asyncio._get_running_loop() is _loop is not None


def threads_are_greenlets() -> bool:
    """Whether gevent or eventlet have patched this process: then a thread costs next to nothing, and may wait."""
    return not isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def start_thread(run: Callable[[], None]) -> None:
    """Run something in a thread that is one, under gevent and eventlet as well."""
    if not threads_are_greenlets():
        threading.Thread(target=run, name="watershed-loop", daemon=True).start()
        return
    _original("_thread", "start_new_thread")(run, ())


class _LoopBesideGreenlets(asyncio.SelectorEventLoop):
    """Looks names up in threads that are some: asyncio's own pool is one of greenlets, which nothing here would run."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """As ``socket.getaddrinfo``."""
        future = self.create_future()
        look_up = _original("socket", "getaddrinfo")

        def run() -> None:
            try:
                found = look_up(*args, **options)
            except Exception as error:  # noqa: BLE001  # it is raised where the result is waited for
                self.call_soon_threadsafe(_settle, future, None, error)
            else:
                self.call_soon_threadsafe(_settle, future, found, None)

        start_thread(run)
        return await future


def new_poll() -> Any:
    """A ``select.poll()`` that is one, under gevent and eventlet as well; None where the platform has none."""
    if threads_are_greenlets():
        return _original("select", "poll")()
    return select.poll() if hasattr(select, "poll") else None


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        pass
    else:
        return uvloop.new_event_loop()
    if threads_are_greenlets():
        return _LoopBesideGreenlets(_new_selector())
    return asyncio.new_event_loop()


def _new_selector() -> Any:
    """The platform's best, as ``selectors`` would have it where nobody had patched ``select``."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return _original("selectors", "DefaultSelector")()
    # Eventlet's copy of the original module is made with a patched one inside, which has nothing but a select().
    patcher: Any = sys.modules["eventlet.patcher"]
    spec: Any = importlib.util.find_spec("selectors")
    module = importlib.util.module_from_spec(spec)
    patched = sys.modules["select"]
    sys.modules["select"] = patcher.original("select")
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["select"] = patched
    return module.DefaultSelector()


def _original(module: str, name: str) -> Any:
    """What stood in ``module`` before gevent or eventlet patched it."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return gevent_monkey.get_original(module, name)
    eventlet_patcher: Any = sys.modules["eventlet.patcher"]
    return getattr(eventlet_patcher.original(module), name)
