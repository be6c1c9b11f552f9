"""One thread per process serves the connections of the threads flavour that no thread is waiting for.

While an application computes, queries or sleeps between two calls, it reads nothing. The watcher then answers PINGs,
sends keepalive PINGs, notices the end, and buffers messages up to the queue's bound, for all such connections
together. A message that a thread waits for does not pass through it. Ten times a second it checks which connections no
thread has read for a tenth of a second, and waits for their bytes; it leaves the others alone. It never waits for a
single connection, keeps none alive, and calls no handler.

It starts with the first connection, and again after a fork. Under gevent and eventlet it is a greenlet.
``WATERSHED_MW_WATCHER=0`` in the environment switches it off.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import Any, Protocol
from weakref import ref

__all__ = ["FORGET", "QUIET", "READ", "WRITE", "Watched", "watch"]

# Seconds after which a connection that no thread reads is served.
QUIET = 0.1
# Seconds between two checks of a connection, and so many more for each connection there is.
_LOOK_EVERY = 0.1
_LOOK_EVERY_EACH = 50e-6

READ, WRITE, FORGET = 1, 2, 4

logger = logging.getLogger("watershed_mw")


class Watched(Protocol):
    """A connection as the watcher sees it."""

    def _poll_state(self, now: float) -> tuple[int, int]:
        """Its descriptor, and what no thread waits for: READ, WRITE, both or neither; FORGET once it has ended."""

    def _serve(self) -> None:
        """Read and write what can be read and written without waiting."""


class _Poller:
    """``select.poll``, or ``select`` where there is none, as on Windows and under eventlet."""

    def __init__(self) -> None:
        self._poll: Any = select.poll() if hasattr(select, "poll") else None
        self.masks: dict[int, int] = {}

    def set(self, number: int, mask: int) -> None:
        """Wait for ``mask`` on a descriptor from now on; 0 stops waiting for it."""
        if self.masks.get(number, 0) == mask:
            return
        if self._poll is not None:
            if number in self.masks:
                self._poll.unregister(number)
            if mask:
                self._poll.register(
                    number, (select.POLLIN if mask & READ else 0) | (select.POLLOUT if mask & WRITE else 0)
                )
        if mask:
            self.masks[number] = mask
        else:
            self.masks.pop(number, None)

    def wait(self, seconds: float) -> list[int]:
        """The descriptors that are ready, after so many seconds at most."""
        if self._poll is not None:
            return [number for number, _ in self._poll.poll(seconds * 1000)]
        if not self.masks:
            time.sleep(seconds)
            return []
        try:
            readable, writable, _ = select.select(
                [number for number, mask in self.masks.items() if mask & READ],
                [number for number, mask in self.masks.items() if mask & WRITE],
                [],
                seconds,
            )
        except (OSError, ValueError):
            return list(self.masks)  # one has been closed: each is checked again
        return list({*readable, *writable})


class _Watcher:
    """The connections, and the thread that serves them."""

    def __init__(self) -> None:
        self._members: set[ref[Any]] = set()
        self._discard = self._members.discard  # one for all: each reference keeps its callback
        self._any = threading.Event()
        self._lock = threading.Lock()
        self._started = False
        self._poller: _Poller
        self._watched: dict[int, ref[Any]] = {}

    def add(self, connection: Watched) -> None:
        """Serve a connection until it has ended or is collected."""
        self._members.add(ref(connection, self._discard))
        if not self._any.is_set():
            self._any.set()
        if not self._started:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._started:
                return
            self._started = True
        try:
            threading.Thread(target=self._run, name="watershed-watcher", daemon=True).start()
        except RuntimeError:
            self._started = False  # the system has no thread now; the next connection tries again

    def _run(self) -> None:
        self._poller = _Poller()
        while True:
            self._any.wait()
            began = time.monotonic()
            count = self._look(began)
            if count == 0:
                self._any.clear()
                if self._members:
                    self._any.set()  # one was added in between
                continue
            until = began + max(_LOOK_EVERY, count * _LOOK_EVERY_EACH)
            while (left := until - time.monotonic()) > 0:
                for number in self._poller.wait(left):
                    self._serve(number)

    def _look(self, now: float) -> int:
        """Ask every connection what no thread waits for, and return how many there are."""
        found: dict[int, tuple[ref[Any], int]] = {}
        members = self._members.copy()
        for member in members:
            number, mask = self._ask(member, now)
            if mask & FORGET:
                self._members.discard(member)
            elif mask and number >= 0:  # its socket may have been closed in the meantime
                found[number] = member, mask
        for number in [number for number in self._watched if number not in found]:
            self._drop(number)
        for number, (member, mask) in found.items():
            self._watched[number] = member
            self._poller.set(number, mask)
        return len(members)

    def _ask(self, member: ref[Any], now: float) -> tuple[int, int]:
        connection: Watched | None = member()
        if connection is None:
            return -1, FORGET
        try:
            return connection._poll_state(now)
        except Exception:
            logger.exception("%r cannot be served while no thread waits for it", connection)
            return -1, FORGET

    def _serve(self, number: int) -> None:
        """Serve a connection whose descriptor is ready, unless a thread waits for it by now."""
        member = self._watched.get(number)
        connection: Watched | None = None if member is None else member()
        if member is None or connection is None:
            self._drop(number)
            return
        now = time.monotonic()
        try:
            if (known := self._ask(member, now))[1] and known[0] == number:
                connection._serve()
                known = self._ask(member, now)
        except Exception:
            logger.exception("%r cannot be served while no thread waits for it", connection)
            known = -1, FORGET
        if known[0] == number and known[1] and not known[1] & FORGET:
            self._poller.set(number, known[1])
        else:
            self._drop(number)

    def _drop(self, number: int) -> None:
        self._poller.set(number, 0)
        self._watched.pop(number, None)


_watchers = [_Watcher()]
_enabled = os.environ.get("WATERSHED_MW_WATCHER") != "0"


def _start_anew() -> None:
    _watchers[0] = _Watcher()  # threads and connections belong to the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def watch(connection: Watched) -> None:
    """Serve ``connection`` whenever no thread waits for it."""
    if _enabled:
        _watchers[0].add(connection)
