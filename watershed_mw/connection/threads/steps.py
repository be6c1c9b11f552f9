"""The steps of the threads flavour that an exception from outside must not divide, and the way of most messages.

This file is compiled as well as interpreted. The handler of a signal may raise between any two bytecodes, but never
within a compiled function that calls compiled ones only: bytes that were read become messages in the queue, and
messages become bytes to write, in one go. Where the interpreter did come between, nobody knows how far a step went, and
the connection is ended rather than continued with a gap.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from ...core.events import Event
from ...core.payloads import Sendable
from ...core.protocol import Protocol
from ...core.states import State
from ...sockets.blocking import BlockingSocket
from ..base import ConnectionInfo, WatershedConnection

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

__all__ = ["ThreadsSteps", "receive_alone", "take_event"]

_OPEN = State.OPEN
_CLOSED = State.CLOSED


class ThreadsSteps(WatershedConnection):
    """What a connection of the threads flavour consists of, and its indivisible steps."""

    __slots__ = (
        "_closing",
        "_gates",
        "_heard",
        "_loaded",
        "_looked",
        "_reading",
        "_socket",
        "_state",
        "_watched",
        "_writing",
        "_written",
    )

    _core: Protocol

    def __init__(self, info: ConnectionInfo, protocol: Protocol, sock: socket.socket, head: bytes) -> None:
        self._socket = BlockingSocket(sock, head)
        # Guards the core and the queue, and is never held while waiting or while calling a handler.
        self._state = threading.RLock()
        # The ident of the one thread that reads, and of the one that writes; negative while it waits in the kernel,
        # when a signal's handler in the same thread may take its place. Claimed with the state locked.
        self._reading = 0
        self._writing = 0
        # A lock for each thread that waits for the others; whoever has news releases them all.
        self._gates: list[Any] | None = None
        # When bytes were last looked for, and when the watcher was the last to do so.
        self._looked = 0.0
        self._watched = -1.0
        # Positions in the stream of all bytes ever queued: how far the socket has been given them, and has written.
        self._loaded = 0
        self._written = 0
        # Control frames that no handler has been told of yet.
        self._heard: tuple[Event, ...] = ()
        self._closing = False
        WatershedConnection.__init__(self, info, protocol)

    def _reading_begins(self) -> None:
        """A thread is about to read, which may not have been so since the last look; with the state locked."""
        core = self._core
        core.read_paused = False
        if core.arriving and self._looked != self._watched:
            core.was_not_read(self._looked, time.monotonic())

    def _take_received(self) -> None:
        """Give the core what the socket has received, and queue what it means; with the state locked."""
        self._take_bytes()

    def _load_socket(self) -> None:
        """Have the socket write what is queued, as it has written all before; with the state locked."""
        self._load()

    # The same for this module: C functions where it is compiled, which no subclass has to be asked about.

    def _take_bytes(self) -> None:
        core, sock = self._core, self._socket
        now = self._looked = time.monotonic()
        data = sock.data
        try:
            events: list[Event] = []
            if data:
                events = core.receive_step(data, len(data), now)
            elif data is not None:
                core.receive_eof()
            elif core.backlog:
                events = core.receive_more(now)
            else:
                core.release_idle(now)
            sock.data = None
            # A few bytes may stand for megabytes: the rest waits until the application has taken what fills the queue.
            while core.backlog and (not self._queue.full or core.state is not _OPEN):
                self._queue_events(events)
                events = core.receive_more(now)
            due = core.handle_timeout(now, len(sock.write_buffer) - sock.sent)
            if due:
                events += due
            self._queue_events(events)
        except BaseException:
            sock.data = None
            core.abort()
            raise

    def _queue_events(self, events: list[Event]) -> None:
        if events:
            at_once = self._take(events)
            if at_once:
                self._heard = self._heard + at_once

    def _send_at_once(self, data: Sendable) -> int:
        """Send a message as most go: straight on, with nothing before it and nobody else writing.

        Returns:
            0 when it has left, and there is nothing else to see to. Otherwise its end among the bytes that are sent: it
            has been queued, or written in part.

        Raises:
            as ``ThreadConnection.send``.
        """
        core, sock = self._core, self._socket
        writing = False
        position = 0
        try:
            with self._state:
                self._queue_whole_message(data)
                position = core.bytes_sent
                if self._writing == 0 and not sock.write_buffer:
                    self._writing = threading.get_ident()
                    writing = True
                    self._load()
            if not writing:
                return position
            sock.send()
            if sock.write_buffer or sock.broken or sock.torn:
                return position
            self._written = self._loaded
        finally:
            if writing:
                self._writing = 0
        if not self._gates and core.unsent_size == 0 and not core.write_paused and core.state is not _CLOSED:
            return 0
        return position

    def _queue_whole_message(self, data: Sendable) -> None:
        core = self._core
        before = core.messages_sent
        try:
            self._queue_message(data)
        except BaseException:
            if not cython.compiled and core.messages_sent != before:
                core.abort()
            raise

    def _load(self) -> None:
        core, sock = self._core, self._socket
        try:
            sock.write_buffer = core.data_to_send()
            self._loaded = core.bytes_sent
        except BaseException:
            core.abort()
            raise


# The results of these two are taken from an iterator, map(take_event, (self,)): no exception from outside comes between
# its call and the store, as it may when a function is called.


def take_event(connection: ThreadsSteps) -> Event | None:
    """Take what is next in the queue; None when there is nothing."""
    queue = connection._queue
    try:
        with connection._state:
            return queue.take() if queue else None
    except BaseException:
        if not cython.compiled:
            connection._core.abort()
        raise


def receive_alone(connection: ThreadsSteps) -> Event | bool:
    """Wait for bytes where there is nothing else to see to, as mostly, and take them.

    Returns:
        the message where one came and nothing else; True where the queue or anything else is to be looked at again;
        False where this thread has to wait in another way.
    """
    core, sock, queue = connection._core, connection._socket, connection._queue
    reading = False
    try:
        with connection._state:
            if (
                connection._reading
                or queue
                or core.ended
                or core.unsent_size
                or core.write_paused
                or sock.write_buffer
                or core.backlog
                or connection._trace is not None
                or connection._account is not None
                or sock.torn
            ):
                return False
            core.read_paused = False
            if core.arriving:
                connection._reading_begins()
            deadline = core.next_deadline()
            release_due = core.release_due
            if release_due is not None and (deadline is None or release_due < deadline):
                deadline = release_due
            connection._reading = -threading.get_ident()
            reading = True
        sock.receive(deadline)
        with connection._state:
            connection._take_bytes()
            connection._reading = 0
            reading = False
            others = connection._gates or connection._heard or core.unsent_size
            if cython.compiled and queue and not others:
                return queue.take()
    finally:
        if reading:
            connection._reading = 0
    return True
