"""Which thread reads and which one writes, and how the other threads wait for them.

This file is compiled as well as interpreted.
"""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["LONGEST_WAIT", "Turns"]

# Seconds after which a thread that waits looks for itself: an exception may have kept the others from waking it.
LONGEST_WAIT = 0.2


class Turns:
    """The two roles of one connection, each held by at most one thread.

    Attributes:
        lock: guards the roles, the protocol and the receive queue; never held while waiting or calling a handler.
        reader, writer: ident of the thread that holds the role, 0 for none. Claimed with the lock held, given back by
            one store. Negative while the thread waits in the kernel: then the handler of a signal, which runs in the
            same thread, may take its place.
        gates: a lock for each thread that waits, released by the first thread that has news.
    """

    __slots__ = ("gates", "lock", "reader", "writer")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reader = 0
        self.writer = 0
        self.gates: list[Any] | None = None

    def make_gate(self) -> Any:
        """What :meth:`wait_at` waits at; with the lock held."""
        gate = threading.Lock()
        gate.acquire()
        if self.gates is None:
            self.gates = []
        self.gates.append(gate)
        return gate

    def wait_at(self, gate: Any, deadline: float | None, longest: float = LONGEST_WAIT) -> None:
        """Wait until another thread calls :meth:`notify`, at most ``longest`` seconds; without the lock held."""
        if deadline is not None:
            longest = min(longest, max(0.0, deadline - time.monotonic()))
        if not gate.acquire(timeout=longest):
            with self.lock:
                if self.gates and gate in self.gates:
                    self.gates.remove(gate)

    def notify(self) -> None:
        """Wake the threads that wait."""
        with self.lock:
            while self.gates:
                self.gates.pop().release()
