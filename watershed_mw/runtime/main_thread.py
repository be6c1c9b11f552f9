"""Calls in the main thread, for what Python allows there alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["call_in_main_thread"]

# The C functions, which must exist for as long as the interpreter may call them.
_scheduled: list[Any] = []


def call_in_main_thread(call: Callable[[], object], timeout: float) -> bool:
    """Call ``call`` in the main thread, from another one, and wait for that.

    The main thread gets to it between two bytecodes, hence not while it waits in a system call or for a lock. What
    ``call`` raises is reported as an unraisable exception.

    Args:
        call: it must not wait for a lock, which the main thread may hold.
        timeout: seconds to wait.

    Returns:
        Whether it has been called. If not, it is called later; or never, where the interpreter cannot do that.
    """
    try:
        import ctypes

        api = ctypes.pythonapi
        schedule, here, main = api.Py_AddPendingCall, api.PyInterpreterState_Get, api.PyInterpreterState_Main
    except (ImportError, AttributeError):
        return False  # not CPython
    here.restype = main.restype = ctypes.c_void_p
    if here() != main():
        return False  # it would be called in another interpreter
    done = threading.Event()

    def run(_: object) -> int:
        try:
            call()
        finally:
            done.set()
        return 0

    _scheduled.append(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(run))
    return schedule(_scheduled[-1], None) == 0 and done.wait(timeout)
