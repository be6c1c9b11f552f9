"""Real threads and system calls in a process where gevent or eventlet has replaced threads with greenlets."""

from __future__ import annotations

import _thread
import select
import sys
import types
from typing import Any

__all__ = ["new_poll", "original", "threads_are_greenlets"]


def threads_are_greenlets() -> bool:
    """Whether gevent or eventlet has patched this process: a thread is then a greenlet, cheap and allowed to block."""
    return not isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def new_poll() -> Any:
    """An unpatched ``select.poll()``, under gevent and eventlet as well; None where the platform has none."""
    if threads_are_greenlets():
        return original("select", "poll")()
    return select.poll() if hasattr(select, "poll") else None


def original(module: str, name: str) -> Any:
    """The attribute of ``module`` as it was before gevent or eventlet patched it."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return gevent_monkey.get_original(module, name)
    eventlet_patcher: Any = sys.modules["eventlet.patcher"]
    return getattr(eventlet_patcher.original(module), name)
