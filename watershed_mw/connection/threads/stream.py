"""The steps of the threads flavour that an exception from outside must not divide, and the path of most messages.

This file is compiled as well as interpreted. The handler of a signal may raise between any two bytecodes, but never
within a compiled function that calls compiled ones only: received bytes become messages in the queue, and messages
become bytes to write, in one go. Where the interpreter was interrupted in between, nobody knows how far the step went,
and the connection is ended rather than continued with a gap.
"""

from __future__ import annotations

import socket
import threading
import time

from ...core.events import Event
from ...core.payloads import Sendable
from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...sockets.blocking import BlockingSocket
from ..base import WatershedConnection
from ..tracer import Tracer
from .turns import Turns

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

__all__ = ["SharedStream", "receive_alone", "take_event"]

_OPEN = State.OPEN
_CLOSED = State.CLOSED


class SharedStream:
    """The socket, the protocol and the receive queue of one connection, as its threads share them.

    The connection is an argument of the methods: it owns this object, and the two do not keep each other alive.

    Args:
        core: the connection's protocol.
        queue: its receive queue.
        sock: plain or TLS socket, which belongs to this object from now on.
        head: bytes that were read already.

    Attributes:
        socket: the socket.
        tracer: the connection's tracer; None where it has none.
        turns: which thread reads and which one writes.
        looked: when the socket was last read, in seconds of ``time.monotonic()``.
        watched: the same, for the watcher's last read.
        loaded, written: positions in the stream of all bytes ever queued: how far they were given to the socket, and
            how far the kernel has taken them.
        heard: control frames whose handlers have yet to be called.
    """

    __slots__ = (
        "core",
        "heard",
        "loaded",
        "looked",
        "queue",
        "socket",
        "tracer",
        "turns",
        "watched",
        "written",
    )

    def __init__(self, core: Protocol, queue: ReceiveQueue, sock: socket.socket, head: bytes) -> None:
        self.core = core
        self.queue = queue
        self.socket = BlockingSocket(sock, head)
        self.turns = Turns()
        self.tracer: Tracer | None = None
        self.looked = 0.0
        self.watched = -1.0
        self.loaded = 0
        self.written = 0
        self.heard: tuple[Event, ...] = ()

    def start_reading(self) -> None:
        """A thread is about to read, perhaps the first since the watcher did; with the lock held."""
        core = self.core
        core.read_paused = False
        if core.liveness.arrival is not None and self.looked != self.watched:
            core.liveness.was_not_read(self.looked, time.monotonic())

    def take_received(self, connection: WatershedConnection) -> None:
        """Give the core what the socket has received, and queue what it means; with the lock held."""
        core, sock = self.core, self.socket
        now = self.looked = time.monotonic()
        data = sock.data
        try:
            events: list[Event] = []
            if data:
                events = core.receive_step(data, len(data), now)
            elif data is not None:
                core.receive_eof()
            elif core.receiver.backlog:
                events = core.receive_more(now)
            else:
                core.release_idle(now)
            sock.data = None
            # A few bytes may stand for megabytes: the rest waits until the application has taken what fills the queue.
            while core.receiver.backlog and (not self.queue.full or core.state is not _OPEN):
                self._queue_events(connection, events)
                events = core.receive_more(now)
            due = core.handle_timeout(now, len(sock.write_buffer) - sock.sent)
            if due:
                events += due
            self._queue_events(connection, events)
        except BaseException:
            sock.data = None
            core.abort()
            raise

    def run_timeouts(self, connection: WatershedConnection, now: float) -> None:
        """Do what is due by the clock, and queue what it means; with the lock held."""
        self._queue_events(connection, self.core.handle_timeout(now, self.socket.unsent))

    def _queue_events(self, connection: WatershedConnection, events: list[Event]) -> None:
        if events:
            at_once = connection._handlers.sort(connection, events)
            if at_once:
                self.heard = self.heard + at_once

    def send_at_once(self, connection: WatershedConnection, data: Sendable) -> int:
        """Send a message along the usual path: nothing is queued before it, and no other thread writes.

        Returns:
            0 when the kernel has taken it, and nothing else is due. Otherwise its end among the bytes that are sent: it
            has been queued, or written in part.

        Raises:
            as ``ThreadConnection.send``.
        """
        core, sock, turns = self.core, self.socket, self.turns
        writing = False
        position = 0
        try:
            with turns.lock:
                self._queue_whole_message(connection, data)
                position = core.outgoing.bytes_sent
                if turns.writer == 0 and not sock.write_buffer:
                    turns.writer = threading.get_ident()
                    writing = True
                    self.load()
            if not writing:
                return position
            sock.send()
            if sock.write_buffer or sock.broken or sock.torn:
                return position
            self.written = self.loaded
        finally:
            if writing:
                turns.writer = 0
        if not turns.gates and core.outgoing.unsent_size == 0 and not core.write_paused and core.state is not _CLOSED:
            return 0
        return position

    def _queue_whole_message(self, connection: WatershedConnection, data: Sendable) -> None:
        core = self.core
        before = core.messages_sent
        try:
            connection._queue_message(data)
        except BaseException:
            if not cython.compiled and core.messages_sent != before:
                core.abort()
            raise

    def load(self) -> None:
        """Give the socket all that is queued, as it has written everything before; with the lock held."""
        core, sock = self.core, self.socket
        try:
            sock.write_buffer = core.outgoing.data_to_send()
            self.loaded = core.outgoing.bytes_sent
        except BaseException:
            core.abort()
            raise


# The results of these two are taken from an iterator, map(take_event, (stream,)): no exception from outside comes
# between its call and the store, as it may when a function is called.


def take_event(stream: SharedStream) -> Event | None:
    """Take the next event from the queue; None where there is none."""
    queue = stream.queue
    try:
        with stream.turns.lock:
            return queue.take() if queue else None
    except BaseException:
        if not cython.compiled:
            # The event may be lost, or the queue's order: nothing that came after it may be received.
            stream.core.abort()
            queue.clear()
        raise


def receive_alone(stream: SharedStream, connection: WatershedConnection) -> Event | bool:
    """Wait for bytes where nothing else is due, the usual case, and take them.

    Returns:
        the message where one came and nothing else; True where the queue or anything else is to be looked at again;
        False where this thread has to wait in another way.
    """
    core, sock, queue, turns = stream.core, stream.socket, stream.queue, stream.turns
    reading = False
    try:
        with turns.lock:
            if (
                turns.reader
                or queue
                or core.ended
                or core.outgoing.unsent_size
                or core.write_paused
                or sock.write_buffer
                or core.receiver.backlog
                or stream.tracer is not None
                or sock.torn
            ):
                return False
            core.read_paused = False
            if core.liveness.arrival is not None:
                stream.start_reading()
            deadline = core.next_deadline()
            release_due = core.release_due
            if release_due is not None and (deadline is None or release_due < deadline):
                deadline = release_due
            turns.reader = -threading.get_ident()
            reading = True
        sock.receive(deadline)
        with turns.lock:
            stream.take_received(connection)
            turns.reader = 0
            reading = False
            others = turns.gates or stream.heard or core.outgoing.unsent_size
            if cython.compiled and queue and not others:
                return queue.take()
    finally:
        if reading:
            turns.reader = 0
    return True
