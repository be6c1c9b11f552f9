"""Runs calls in the main thread, for operations that Python allows only there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["call_in_main_thread"]

# Keeps the C functions alive, as the interpreter may still call them.
_scheduled: list[Any] = []


def call_in_main_thread(call: Callable[[], object], timeout: float) -> bool:
    """Call ``call`` in the main thread, from another thread, and wait for it.

    The main thread runs it between two bytecodes, so not while it waits in a system call or for a lock. An exception
    from ``call`` is reported as unraisable.

    Args:
        call: must not wait for a lock that the main thread may hold.
        timeout: seconds to wait.

    Returns:
        Whether ``call`` has run. If not, it runs later; or never, if the interpreter does not support this.
    """
    try:
        import ctypes

        api = ctypes.pythonapi
        schedule, here, main = api.Py_AddPendingCall, api.PyInterpreterState_Get, api.PyInterpreterState_Main
    except (ImportError, AttributeError):
        return False  # not CPython
    here.restype = main.restype = ctypes.c_void_p
    if here() != main():
        return False  # the call would run in another interpreter
    done = threading.Event()

    def run(_: object) -> int:
        try:
            call()
        finally:
            done.set()
        return 0

    _scheduled.append(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(run))
    return schedule(_scheduled[-1], None) == 0 and done.wait(timeout)
