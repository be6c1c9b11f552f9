"""The resources that a process holds, according to /proc and to its own page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

__all__ = [
    "MOST_BLOCKS",
    "MOST_GROWTH",
    "Holdings",
    "complaints",
    "of_server",
    "of_this_process",
    "settled",
]

MOST_GROWTH = 8.0
"""MiB by which a process may grow after its warm-up, however long the soak is. Every page that is free has gone back to
the kernel by then; what may still grow are the heap's fragments, as large messages and connections come and go in
another order each time: servers grew by at most 5.3 MiB in soaks of 20 to 60 seconds, the clients'
process, whose threads share one heap, by 2.5."""
MOST_BLOCKS = 0.5
"""Blocks of Python's memory that the clients' process may hold more after each life: 0.17, where one object that is
left of every connection would be 1."""
ANSWER = 20.0
"""Seconds for a server's answer."""


class Holdings(NamedTuple):
    """The resources held at one moment."""

    memory: float
    """Resident set in MiB."""
    descriptors: int
    threads: int
    tasks: int
    connections: int
    """Objects, ended or not."""


def of_server(port: int) -> Holdings:
    """The resources of the process behind a port."""
    with urlopen(f"http://127.0.0.1:{port}/holdings", timeout=ANSWER) as answer:
        told = json.load(answer)
    return _of(told["pid"], told["tasks"], told["connections"])


def of_this_process(tasks: int, connections: int) -> Holdings:
    """The resources of this process, which runs the clients."""
    return _of(os.getpid(), tasks, connections)


def _of(pid: int, tasks: int, connections: int) -> Holdings:
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Holdings(memory, len(os.listdir(place / "fd")), len(os.listdir(place / "task")), tasks, connections)


def settled(look: Callable[[], Holdings], good: Callable[[Holdings], object], seconds: float) -> Holdings:
    """The first acceptable holdings, or the last ones within the time limit."""
    until = time.monotonic() + seconds
    while not good(found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def complaints(before: Holdings, after: Holdings, more_threads: int) -> list[str]:
    """What has grown, in words, or nothing."""
    found = []
    if after.memory > before.memory + MOST_GROWTH:
        found.append(f"memory grew from {before.memory:.1f} to {after.memory:.1f} MiB")
    if after.descriptors > before.descriptors:
        found.append(f"descriptors grew from {before.descriptors} to {after.descriptors}")
    if after.threads > before.threads + more_threads:
        found.append(f"threads grew from {before.threads} to {after.threads}")
    if after.tasks > before.tasks:
        found.append(f"tasks grew from {before.tasks} to {after.tasks}")
    if after.connections:
        found.append(f"{after.connections} connections are still there after their end")
    return found
