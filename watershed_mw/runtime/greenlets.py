"""Where threads are greenlets, as gevent and eventlet make them by patching: what is real all the same."""

from __future__ import annotations

import _thread
import select
import sys
import types
from typing import Any

__all__ = ["new_poll", "original", "threads_are_greenlets"]


def threads_are_greenlets() -> bool:
    """Whether gevent or eventlet have patched this process: then a thread costs next to nothing, and may wait."""
    return not isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def new_poll() -> Any:
    """A ``select.poll()`` that is one, under gevent and eventlet as well; None where the platform has none."""
    if threads_are_greenlets():
        return original("select", "poll")()
    return select.poll() if hasattr(select, "poll") else None


def original(module: str, name: str) -> Any:
    """What stood in ``module`` before gevent or eventlet patched it."""
    gevent_monkey: Any = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("threading"):
        return gevent_monkey.get_original(module, name)
    eventlet_patcher: Any = sys.modules["eventlet.patcher"]
    return getattr(eventlet_patcher.original(module), name)
