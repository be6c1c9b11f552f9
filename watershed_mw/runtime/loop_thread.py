"""The process's background event loop, in its own thread, for connections that do not occupy a thread.

It starts at first use, once per process: a forked child must not touch the parent's loop, as both share one epoll set.
The thread is a real one even where gevent or eventlet turns threads into greenlets.
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

# Iterations of a failed loop, in which tasks are cancelled and transports close.
_LAST_TURNS = 10
# Free descriptors required: uvloop takes 7, and other threads may take some at the same time.
_LOOP_DESCRIPTORS = 16
# Seconds until the next attempt to start a thread that the system refused.
_RETRY_AFTER = 0.1


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
        """Run ``call`` in a pool thread; returns a future of the loop.

        Raises:
            RuntimeError: the interpreter is shutting down.
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
            # The executor has queued the work all the same, for any thread that it has. Submitting it again is safe:
            # whichever comes second finds the deque empty.
            if not self._complained:
                self._complained = True
                logger.warning("%s to run a handler: the handler waits", error)
            self._loop.call_soon_threadsafe(self._loop.call_later, _RETRY_AFTER, self._submit_again, work)

    def _submit_again(self, work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        if work:
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                self._submit(work)

    def _run(self, work: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        with contextlib.suppress(IndexError):  # already run
            run_for(self._loop, *work.popleft())


def run_for(loop: asyncio.AbstractEventLoop, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    """Call ``call`` in this thread, and set its result or exception on ``future``, which belongs to ``loop``."""
    result, error = None, None
    try:
        result = call()
    except BaseException as raised:  # noqa: BLE001  # raised where the future is awaited
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop has failed, and nothing awaits the future any more
        loop.call_soon_threadsafe(_set_outcome, future, result, error)


class Greenlets:
    """Runs handlers in greenlets, beside the server's own, in the thread that creates this object.

    The loop's thread has no hub, so it must not use the primitives of a thread pool, which gevent and eventlet have
    patched. Instead it requests a greenlet by sending a byte through a socket pair.

    Args:
        loop: the event loop whose thread calls :meth:`run`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._requests, sender = socket.socketpair()
        self._sender = _socket.socket(fileno=sender.detach())  # the C module's class, unpatched: sending never waits
        self._sender.setblocking(False)
        threading.Thread(target=self._serve, name="watershed-greenlets", daemon=True).start()

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call`` in a greenlet; returns a future of the loop."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append((call, future))
        with contextlib.suppress(BlockingIOError):  # full of bytes, each of which is a request
            self._sender.send(b"!")
        return future

    def _serve(self) -> None:
        while self._requests.recv(4096):
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
        workers: the threads or greenlets that run handlers.
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
        """Whether the loop runs in this process: a forked child does not inherit its thread."""
        return not self._failed and self._pid == os.getpid()

    def _run(self) -> None:
        # An exception in a task or a callback must not stop the loop; only _clear() calls loop.stop().
        try:
            while not self.loop.is_closed():
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:
                    logger.error("%r in a task or a callback on the background event loop, which keeps running", error)
        except BaseException:
            logger.critical("the background event loop has failed, and its connections with it", exc_info=True)
        finally:
            self._failed = True
            for call in _at_failure:
                call(self)
            with contextlib.suppress(BaseException):  # the loop is broken
                self._clear()
            with contextlib.suppress(Exception):
                self.loop.close()
            for call in _at_failure:
                call(self)  # again, for connections that were handed over in the meantime
            _fail_awaited(self.loop)  # last, as nothing can be submitted to a closed loop

    def _clear(self) -> None:
        """Cancel the tasks on the failed loop, as far as it still works."""
        cancelled: set[asyncio.Task[Any]] = set()
        for _ in range(_LAST_TURNS):
            # In each iteration, as work from other threads becomes a task only then; each task once.
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
    """Call ``call`` when the background loop has failed, in the loop's thread, before it is closed and again after."""
    _at_failure.append(call)


def background_loop() -> tuple[asyncio.AbstractEventLoop, Workers]:
    """The background loop, in its own daemon thread, and its workers; a new loop if the last one has failed.

    Raises:
        OSError, RuntimeError: the process is out of descriptors or threads.
    """
    global _serving  # noqa: PLW0603  # one per process
    with _lock:
        if _serving is None or not _serving.usable:
            _serving = Serving()
        return _serving.loop, _serving.workers


def check_background_loop() -> None:
    """Replace the background loop if it has failed; does nothing if none has started yet.

    Raises:
        as :func:`background_loop`.
    """
    if _serving is not None and not _serving.usable:
        background_loop()


class LoopFailedError(RuntimeError):
    """The background event loop has failed and does not run the submitted work."""


# Futures that threads wait for, each with its loop and its coroutines.
_awaited: dict[Future[Any], tuple[asyncio.AbstractEventLoop, tuple[Coroutine[Any, Any, Any], ...]]] = {}


def _fail_awaited(failed: asyncio.AbstractEventLoop) -> None:
    for future, (loop, _) in _awaited.copy().items():
        if loop is failed:
            future.cancel()


def _forget_awaited(future: Future[Any]) -> None:
    _, coroutines = _awaited.pop(future)
    for coroutine in coroutines:
        # A task that is cancelled before its first step never starts its coroutine.
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            with contextlib.suppress(ValueError):  # the coroutine is just starting
                coroutine.close()


async def _outcome(work: Coroutine[Any, Any, T]) -> Outcome[T]:
    """The result of ``work``, and its exception.

    The exception is returned as a value: if the loop fails in the same iteration, nothing retrieves it from the task,
    and asyncio would log that as an error.
    """
    try:
        return await work, None
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  # the waiting thread raises it
        return None, error


def submit(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[Outcome[T]]:
    """Run a coroutine on the background loop; the future is cancelled if the loop fails first.

    Raises:
        LoopFailedError: the loop has failed.
    """
    carried = _outcome(work)
    try:
        future = asyncio.run_coroutine_threadsafe(carried, loop)
    except RuntimeError as error:
        carried.close()
        work.close()
        raise LoopFailedError("the background event loop has failed") from error
    _awaited[future] = loop, (carried, work)
    future.add_done_callback(_forget_awaited)
    if loop.is_closed():
        future.cancel()  # the loop failed in between
    return future


def result_of(future: Future[Outcome[T]]) -> T:
    """Block this thread until a future of :func:`submit` is done. Raises LoopFailedError if the loop fails first."""
    try:
        result, error = future.result()
    except CancelledError as failed:
        raise LoopFailedError("the background event loop has failed") from failed
    if error is not None:
        raise error
    return cast(T, result)


def run_on_background_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop, and block this thread or greenlet until it returns or raises.

    Raises:
        RuntimeError: this is the loop's own thread, which must not block.
        LoopFailedError: the loop failed in the meantime.
        OSError, RuntimeError: as :func:`background_loop`.
    """
    try:
        loop, _ = background_loop()
        if on_background_loop():
            raise RuntimeError("expected a thread that may block, got that of the background event loop")
    except BaseException:
        work.close()
        raise
    future = submit(work, loop)
    try:
        if threads_are_greenlets():
            # future.result() would wait for a patched lock, which no other thread can release: wait for a socket.
            ours, theirs = socket.socketpair()
            sender = _socket.socket(fileno=theirs.detach())
            future.add_done_callback(lambda _: sender.close())
            with ours:
                ours.recv(1)
        return result_of(future)
    finally:
        future.cancel()  # only has an effect if the wait was interrupted


def on_background_loop() -> bool:
    """Whether this is the loop's own thread, which must not block."""
    return _serving is not None and asyncio._get_running_loop() is _serving.loop


def start_thread(run: Callable[[], None]) -> None:
    """Run ``run`` in a real thread, even under gevent and eventlet."""
    if not threads_are_greenlets():
        threading.Thread(target=run, name="watershed-loop", daemon=True).start()
        return
    original("_thread", "start_new_thread")(run, ())


class _LoopBesideGreenlets(asyncio.SelectorEventLoop):
    """Resolves names in real threads: asyncio's own pool would consist of greenlets, which no hub runs here."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """As ``socket.getaddrinfo``."""
        future = self.create_future()
        look_up = original("socket", "getaddrinfo")

        def run() -> None:
            try:
                found = look_up(*args, **options)
            except Exception as error:  # noqa: BLE001  # raised where the future is awaited
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
    """Check that enough descriptors are free for an event loop: uvloop would abort the process instead of raising.

    Raises:
        OSError: too few are free.
    """
    pipes: list[int] = []
    try:
        while len(pipes) < _LOOP_DESCRIPTORS:
            pipes += os.pipe()
    finally:
        for number in pipes:
            os.close(number)


def _new_selector() -> Any:
    """The platform's default selector, unpatched."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return original("selectors", "DefaultSelector")()
    # Eventlet's copy of the original module still uses the patched select module, which has only select().
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
