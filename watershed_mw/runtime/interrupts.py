"""Distinguishes exceptions that interrupt a handler from those that its own code raises.

A handler's own exception ends only its connection, whatever its class: ``sys.exit()`` in one handler must not stop the
others. An interruption is for the program to handle: a signal, a killed greenlet, a cancelled task.
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
    """Whether ``error`` was thrown into the running code, by a signal handler or by the hub of gevent or eventlet.

    False for every ``Exception``, and for ``asyncio.CancelledError``, which is thrown only into coroutines.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, BaseExceptionGroup):
        return any(is_interrupt(part) for part in error.exceptions)
    return _is_from_hub(error) or _is_from_signal(error)


def is_cancellation(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether ``error`` was thrown into a coroutine: as :func:`is_interrupt`, or because the coroutine must end.

    Args:
        error: the exception that the coroutine's ``await`` raised.
        task: the task that runs the coroutine; None if unknown.
    """
    if isinstance(error, asyncio.CancelledError):
        # Awaiting a cancelled future raises the same error, although nobody cancelled this task.
        return task is not None and task.cancelling() > 0
    if isinstance(error, GeneratorExit):
        return task is not None and _current_task() is not task  # close(), which is not a step of the task
    return is_interrupt(error)


def failure(error: BaseException) -> Exception:
    """``error`` as an ``Exception``, which servers log; any other exception would end their process or a thread."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(
        f"expected a WebSocket handler to return or to raise an Exception, got {error!r}: it ends only this connection"
    )
    wrapped.__cause__ = error
    return wrapped


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no running loop


def _is_from_hub(error: BaseException) -> bool:
    """Whether gevent or eventlet threw ``error`` into a greenlet, to kill it or for a timeout."""
    greenlet: Any = sys.modules.get("greenlet")
    if greenlet is None:
        return False
    timeouts = tuple(
        sys.modules[name].Timeout for name in ("gevent.timeout", "eventlet.timeout") if name in sys.modules
    )
    return isinstance(error, (greenlet.GreenletExit, *timeouts))


def _is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler raised ``error``: its code is then in the traceback."""
    codes = {_code_of(handler) for handler in map(signal.getsignal, signal.valid_signals()) if callable(handler)}
    if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        return True
    # Python's own SIGINT handler is written in C and leaves no frame.
    return (
        isinstance(error, KeyboardInterrupt)
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and _receives_signals()
    )


def _receives_signals() -> bool:
    """Whether Python runs signal handlers in this thread: the main thread, where greenlets run as well."""
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
