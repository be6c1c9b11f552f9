"""The process's own event loop, in a thread of its own, for connections that no thread waits for.

It starts at first use, once per process: a forked child must not touch the parent's loop, since the two share one
epoll set. gevent and eventlet turn threads into greenlets; this one is a real thread even then.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import importlib.util
import inspect
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar, cast

from .exhaustion import is_exhausted
from .greenlets import original, threads_are_greenlets

__all__ = [
    "LoopFailedError",
    "Serving",
    "Workers",
    "at_failure",
    "background_loop",
    "check_background_loop",
    "on_background_loop",
    "result_of",
    "run_on_background_loop",
    "start_thread",
    "submit",
]

T = TypeVar("T")
Outcome: TypeAlias = tuple[T | None, BaseException | None]

logger = logging.getLogger("watershed_mw")

# A handler that blocks occupies one of these threads; messages of other connections wait in their bounded queues.
_POOL_SIZE = 32

# Iterations of a loop that has failed, in which tasks are cancelled and transports close.
_LAST_TURNS = 10
# More than any event loop needs: uvloop takes 7, and other threads may take some at the same time.
_LOOP_DESCRIPTORS = 16
# Seconds until the system is asked again for a thread that it refused.
_TRY_AGAIN = 0.1


class Pool:
    """Runs handlers in a bounded number of threads.

    Args:
        loop: the event loop whose thread calls :meth:`run`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(_POOL_SIZE, "watershed-pool")
        self._complained = False

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call``; the future of the loop gets its result.

        Raises:
            RuntimeError: the interpreter is shutting down, and takes no more work.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._submit(deque([(call, future)]))
        return future

    def _submit(self, work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        try:
            self._pool.submit(self._run, work)
        except RuntimeError as error:
            if not is_exhausted(error):
                raise
            # A thread of the pool may still take it, if there is one: it is submitted again, and run once.
            if not self._complained:
                self._complained = True
                logger.warning("%s to run a handler: it has to wait", error)
            self._loop.call_soon_threadsafe(self._loop.call_later, _TRY_AGAIN, self._submit_again, work)

    def _submit_again(self, work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        if work:
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                self._submit(work)

    def _run(self, work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        with contextlib.suppress(IndexError):  # it has been run
            run_for(self._loop, *work.popleft())


def run_for(loop: asyncio.AbstractEventLoop, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    """Call ``call`` in this thread, and set what it returns or raises on ``future``, which belongs to ``loop``."""
    result, error = None, None
    try:
        result = call()
    except BaseException as raised:  # noqa: BLE001  # it is raised where the result is awaited
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop has failed, and nothing waits any more
        loop.call_soon_threadsafe(_set_outcome, future, result, error)


class Greenlets:
    """Runs handlers in greenlets, beside the server's other greenlets: in the thread that makes this object.

    gevent and eventlet have patched what a pool is made of, and the loop's thread must not touch that: it has no hub
    to run anything. So a byte through a socket pair requests a greenlet.

    Args:
        loop: the event loop whose thread calls :meth:`run`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._door, bell = socket.socketpair()
        self._bell = _socket.socket(fileno=bell.detach())  # the C module's, unpatched: ringing it never waits
        self._bell.setblocking(False)
        threading.Thread(target=self._serve, name="watershed-greenlets", daemon=True).start()

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call``; the future of the loop gets its result."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append((call, future))
        with contextlib.suppress(BlockingIOError):  # full of bytes that request the same
            self._bell.send(b"!")
        return future

    def _serve(self) -> None:
        while self._door.recv(4096):
            while self._calls:
                threading.Thread(target=run_for, args=(self._loop, *self._calls.popleft()), daemon=True).start()


def _set_outcome(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


Workers: TypeAlias = Pool | Greenlets


class Serving:
    """One event loop, the thread that runs it, and the threads or greenlets that run handlers for it.

    Attributes:
        loop: the event loop.
        workers: what runs handlers.
        usable: whether the loop runs in this process.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = _new_loop()
        try:
            self.workers: Workers = Greenlets(self.loop) if threads_are_greenlets() else Pool(self.loop)
            self._failed = False
            start_thread(self._run)
        except BaseException:
            self.loop.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether the loop runs in this process: a fork leaves its thread behind."""
        return not self._failed and self._pid == os.getpid()

    def _run(self) -> None:
        # What a task or a callback raises ends that alone, and loop.stop() is called only by _clear().
        try:
            while not self.loop.is_closed():
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:
                    logger.error("%r in a task or a callback on the process's event loop, which runs on", error)
        except BaseException:
            logger.critical("the process's event loop has failed, and its connections with it", exc_info=True)
        finally:
            self._failed = True
            for call in _at_failure:
                call(self)
            with contextlib.suppress(BaseException):  # it is broken
                self._clear()
            with contextlib.suppress(Exception):
                self.loop.close()
            for call in _at_failure:
                call(self)  # again, for what was handed over in the meantime
            _fail_awaited(self.loop)  # last: from here on nothing can be submitted to it

    def _clear(self) -> None:
        """Cancel the tasks on the loop that has failed, as far as it still works."""
        cancelled: set[asyncio.Task[Any]] = set()
        for _ in range(_LAST_TURNS):
            # In each iteration, since what other threads have submitted becomes a task only then; each task once.
            for task in asyncio.all_tasks(self.loop) - cancelled:
                task.cancel()
                cancelled.add(task)
            self.loop.call_soon(self.loop.stop)
            with contextlib.suppress(Exception):
                self.loop.run_forever()


_lock = threading.Lock()
_serving: Serving | None = None
_at_failure: list[Callable[[Serving], object]] = []


def at_failure(call: Callable[[Serving], object]) -> None:
    """Call ``call`` when the process's event loop has failed, in its thread: before it is closed, and again after."""
    _at_failure.append(call)


def background_loop() -> tuple[asyncio.AbstractEventLoop, Workers]:
    """The process's event loop in its own daemon thread, and what runs handlers; a new loop if the last has failed.

    Raises:
        OSError, RuntimeError: the process has no descriptor or thread for them.
    """
    global _serving  # noqa: PLW0603  # one per process
    with _lock:
        if _serving is None or not _serving.usable:
            _serving = Serving()
        return _serving.loop, _serving.workers


def check_background_loop() -> None:
    """Replace the process's event loop if it has failed; does nothing where none has been needed yet.

    Raises:
        as :func:`background_loop`.
    """
    if _serving is not None and not _serving.usable:
        background_loop()


class LoopFailedError(RuntimeError):
    """The process's event loop has failed, and does not run what was submitted."""


# What threads wait for: the loop that it runs on, and the coroutines.
_awaited: dict[Future[Any], tuple[asyncio.AbstractEventLoop, tuple[Coroutine[Any, Any, Any], ...]]] = {}


def _fail_awaited(failed: asyncio.AbstractEventLoop) -> None:
    for future, (loop, _) in _awaited.copy().items():
        if loop is failed:
            future.cancel()


def _forget_awaited(future: Future[Any]) -> None:
    _, coroutines = _awaited.pop(future)
    for coroutine in coroutines:
        # A task that is cancelled before its first step never starts them.
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            with contextlib.suppress(ValueError):  # it is starting at this moment
                coroutine.close()


async def _outcome(work: Coroutine[Any, Any, T]) -> Outcome[T]:
    """What ``work`` returns, and what it raises.

    An exception is passed on as a value: if the loop fails in the same iteration, it is never retrieved from the task,
    and asyncio would log that as an error.
    """
    try:
        return await work, None
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  # the thread that waits raises it
        return None, error


def submit(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[Outcome[T]]:
    """Run a coroutine on the process's event loop; the future is cancelled if the loop fails before it is done.

    Raises:
        LoopFailedError: it has failed.
    """
    carried = _outcome(work)
    try:
        future = asyncio.run_coroutine_threadsafe(carried, loop)
    except RuntimeError as error:
        carried.close()
        work.close()
        raise LoopFailedError("the process's event loop has failed") from error
    _awaited[future] = loop, (carried, work)
    future.add_done_callback(_forget_awaited)
    if loop.is_closed():
        future.cancel()  # it has failed in between
    return future


def result_of(future: Future[Outcome[T]]) -> T:
    """Block this thread until what :func:`submit` started is done. Raises LoopFailedError if the loop fails first."""
    try:
        result, error = future.result()
    except CancelledError as failed:
        raise LoopFailedError("the process's event loop has failed") from failed
    if error is not None:
        raise error
    return cast(T, result)


def run_on_background_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on that loop, and block this thread, or greenlet, until it returns or raises.

    Raises:
        RuntimeError: this is the loop's own thread, which must not wait.
        LoopFailedError: the loop has failed in the meantime.
        OSError, RuntimeError: as :func:`background_loop`.
    """
    try:
        loop, _ = background_loop()
        if on_background_loop():
            raise RuntimeError("expected a thread that may block, got the one of the process's event loop")
    except BaseException:
        work.close()
        raise
    future = submit(work, loop)
    try:
        if threads_are_greenlets():
            # A future waits with a patched lock here, which no other thread can release; a socket can be woken.
            ours, theirs = socket.socketpair()
            bell = _socket.socket(fileno=theirs.detach())
            future.add_done_callback(lambda _: bell.close())
            with ours:
                ours.recv(1)
        return result_of(future)
    finally:
        future.cancel()  # has an effect only where the wait was interrupted


def on_background_loop() -> bool:
    """Whether this is the loop's own thread, which must not block."""
    return _serving is not None and asyncio._get_running_loop() is _serving.loop


def start_thread(run: Callable[[], None]) -> None:
    """Run ``run`` in a real thread, under gevent and eventlet as well."""
    if not threads_are_greenlets():
        threading.Thread(target=run, name="watershed-loop", daemon=True).start()
        return
    original("_thread", "start_new_thread")(run, ())


class _LoopBesideGreenlets(asyncio.SelectorEventLoop):
    """Looks names up in real threads: asyncio's own pool would be of greenlets, which nothing here runs."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """As ``socket.getaddrinfo``."""
        future = self.create_future()
        look_up = original("socket", "getaddrinfo")

        def run() -> None:
            try:
                found = look_up(*args, **options)
            except Exception as error:  # noqa: BLE001  # it is raised where the result is waited for
                self.call_soon_threadsafe(_set_outcome, future, None, error)
            else:
                self.call_soon_threadsafe(_set_outcome, future, found, None)

        start_thread(run)
        return await future


def _new_loop() -> asyncio.AbstractEventLoop:
    _check_descriptors()
    try:
        import uvloop
    except ImportError:
        pass
    else:
        return uvloop.new_event_loop()
    if threads_are_greenlets():
        return _LoopBesideGreenlets(_new_selector())
    return asyncio.new_event_loop()


def _check_descriptors() -> None:
    """Check that there are descriptors for an event loop: without any, uvloop aborts the process instead of raising.

    Raises:
        OSError: there are too few.
    """
    pipes: list[int] = []
    try:
        while len(pipes) < _LOOP_DESCRIPTORS:
            pipes += os.pipe()
    finally:
        for number in pipes:
            os.close(number)


def _new_selector() -> Any:
    """The platform's default selector, as it is where ``select`` is not patched."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return original("selectors", "DefaultSelector")()
    # Eventlet's copy of the original module has a patched module inside, with nothing but select().
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
