"""Which exceptions reach a handler from outside, and which its own code has raised.

A handler's exception ends its connection alone, whatever its class: ``sys.exit()`` in one must not stop the others.
What interrupts a handler concerns the program: a signal, the end of its greenlet, the cancellation of its task.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import threading
import traceback
from types import CodeType
from typing import Any

from .greenlets import threads_are_greenlets
from .loop_thread import on_background_loop

__all__ = ["failure", "is_cancellation", "is_interrupt"]


def is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` reached the code that it passed through from outside: a signal, or gevent's or eventlet's hub.

    False for every ``Exception``, and for ``asyncio.CancelledError``, which only a coroutine receives from outside.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, BaseExceptionGroup):
        return any(is_interrupt(part) for part in error.exceptions)
    return _is_from_hub(error) or _is_from_signal(error)


def is_cancellation(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether ``error`` reached a coroutine from outside: as :func:`is_interrupt`, or because the coroutine has to end.

    Args:
        error: what was raised where the coroutine awaits.
        task: the task that runs the coroutine; None while it is not known.
    """
    if isinstance(error, asyncio.CancelledError):
        # Awaiting something that was cancelled raises the same, though this task was not asked to end.
        return task is not None and task.cancelling() > 0
    if isinstance(error, GeneratorExit):
        return task is not None and _current_task() is not task  # close(), which is not a step of the task
    return is_interrupt(error)


def failure(error: BaseException) -> Exception:
    """``error`` as an ``Exception``: servers log those, and any other ends their process or a thread of it."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(
        f"expected a WebSocket handler to return or to raise an Exception, got {error!r}: it ends this connection alone"
    )
    wrapped.__cause__ = error
    return wrapped


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no loop runs here


def _is_from_hub(error: BaseException) -> bool:
    """Whether gevent or eventlet has thrown it into a greenlet: to end it, or because of a timeout."""
    greenlet: Any = sys.modules.get("greenlet")
    if greenlet is None:
        return False
    timeouts = tuple(
        sys.modules[name].Timeout for name in ("gevent.timeout", "eventlet.timeout") if name in sys.modules
    )
    return isinstance(error, (greenlet.GreenletExit, *timeouts))


def _is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler has raised it: then that handler is in the traceback."""
    codes = {_code_of(handler) for handler in map(signal.getsignal, signal.valid_signals()) if callable(handler)}
    if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        return True
    # Python's own handler of SIGINT is C, and leaves no frame.
    return (
        isinstance(error, KeyboardInterrupt)
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and _receives_signals()
    )


def _receives_signals() -> bool:
    """Whether Python runs signal handlers in this thread: the main one, which greenlets run in."""
    if threads_are_greenlets():
        return not on_background_loop()
    return threading.current_thread() is threading.main_thread()


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = getattr(type(handler), "__call__", None)  # noqa: B004  # its code, not whether there is one
    return getattr(function, "__code__", None)
