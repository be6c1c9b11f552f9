"""How much memory this process may have, and the one budget that all of its connections share."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Protocol
from weakref import ref

from ..core.memory_budget import Account, MemoryBudget
from ..runtime.greenlets import original, threads_are_greenlets

__all__ = ["Holder", "available_memory", "bytes_of", "cgroup_limit", "memory_budget", "open_account"]

# Assumed memory of a machine that does not report it.
_UNKNOWN = 4 * 2**30

logger = logging.getLogger("watershed_mw")
_made: dict[str, MemoryBudget] = {}
_known: dict[str, int] = {}


class Holder(Protocol):
    """An object with an account, such as a connection."""

    def _memory_changed(self) -> None: ...


def memory_budget() -> MemoryBudget:
    """The budget of this process, made at first use."""
    budget = _made.get("budget")
    # In one step: another thread may be making one as well.
    return _made.setdefault("budget", MemoryBudget(_new_lock(), _warn)) if budget is None else budget


def open_account(holder: Holder, max_memory: float) -> Account:
    """An account for a connection; it does not keep the connection alive. ``max_memory`` as in the options."""
    budget = memory_budget()
    reference: ref[Holder]

    def notify() -> None:
        found = reference()
        if found is not None:
            found._memory_changed()

    account = Account(budget, bytes_of(max_memory), notify)
    reference = ref(holder, lambda _: budget.lost(account))
    return account


def bytes_of(max_memory: float) -> int:
    """``max_memory`` in bytes: below 1 it is a share of the memory available to the process."""
    return min(int(max_memory), sys.maxsize) if max_memory >= 1 else max(1, int(max_memory * available_memory()))


def available_memory() -> int:
    """Memory available to this process, in bytes: the machine's, or the lower limit of a control group."""
    known = _known.get("available")
    if known is None:
        try:
            membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:
            membership = ""  # not Linux
        group = cgroup_limit(membership, Path("/sys/fs/cgroup"))
        physical = _physical_memory()
        known = _known["available"] = physical if group is None else min(group, physical)
    return known


def cgroup_limit(membership: str, root: Path) -> int | None:
    """The lowest limit of a process's control groups; None if they have none.

    Args:
        membership: contents of ``/proc/self/cgroup``; version 2 has one line that begins with ``0::``.
        root: their mount point. A container may see its own group there, whatever its path is.
    """
    found: list[int] = []
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        # The limits of parent groups apply as well.
        for place in (folder, *folder.parents):
            try:
                found.append(int((place / name).read_text(encoding="ascii")))
            except (OSError, ValueError):
                pass  # not there, or "max"
            if place == base:
                break
    return min(found, default=None)


def _physical_memory() -> int:
    if sys.platform == "win32":
        import ctypes  # here, as only this function needs it

        status = (ctypes.c_ulonglong * 8)()
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[1]) or _UNKNOWN
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _new_lock() -> Any:
    # A real lock even under gevent and eventlet, as the loop's thread is real: no greenlet switches while it is held.
    return original("_thread", "RLock")() if threads_are_greenlets() else threading.RLock()


def _warn(line: str) -> None:
    logger.warning("%s", line)


def _forget() -> None:
    for budget in _made.values():
        budget.forget(_new_lock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # the connections and their bytes belong to the parent
