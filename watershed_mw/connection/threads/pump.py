"""One step of a thread that waits: it moves bytes both ways, or waits until another thread does.

There are two roles (``turns.py``), the one thread that reads and the one that writes. A thread that has to wait claims
what nobody has claimed, reads unless the queue is full, writes what is pending, runs timeouts, and gives both roles
back. No thread waits for a role: one that gets none waits until those that hold them have news, for as long as its own
timeout allows. So two peers that both write cannot block each other, and a thread that empties the queue goes on
reading, whatever the others wait for.

An exception from outside (a signal handler's, or gevent's timeout) may come between any two bytecodes. A role is an
attribute that is set and reset by one store, so it is never left behind; bytes are only ever in one of three places
(received and not taken, queued, or handed to the socket and not written), and move between them in indivisible steps
(``stream.py``, ``sockets/blocking.py``). A lost wake-up costs a delay, never a wait without end.

Waiting uses ``poll``, so gevent's monkey patching turns it into waiting for a greenlet's turn.
"""

from __future__ import annotations

import threading
import time

from ...core.states import State
from ..base import WatershedConnection
from .stream import SharedStream
from .turns import LONGEST_WAIT
from .watcher import QUIET, READ, WRITE
from .writer import Writer

__all__ = ["Pump"]

# A thread that waits in poll with one of the roles looks this often, in seconds, whether the other one is free.
_LOOK_AGAIN = 0.05
# Control frames waiting for a thread to call their handlers, at which reading pauses.
_MAX_HEARD = 64

_CLOSED = State.CLOSED


class Pump:
    """Moves the bytes of one connection, in the threads that call it; it calls no handler.

    Args:
        stream: what the connection's threads share.
        writer: what is to be written.
    """

    __slots__ = ("_stream", "_writer")

    def __init__(self, stream: SharedStream, writer: Writer) -> None:
        self._stream = stream
        self._writer = writer

    def step(
        self,
        connection: WatershedConnection,
        until: float | None,
        position: int,
        *,
        winding_down: bool,
        held_back: bool,
    ) -> None:
        """Do what can be done for the connection, or wait until there is something; at the latest until ``until``.

        Args:
            connection: the connection.
            until: a time.
            position: what the thread waits for: that everything up to there has been written; a message, or the end,
                where it is negative.
            winding_down: whether to read though the queue is full, and to wait for the end alone.
            held_back: whether to read nothing, as too much memory is held.
        """
        stream, writer, turns = self._stream, self._writer, self._stream.turns
        core, queue = stream.core, stream.queue
        me = threading.get_ident()
        reading = writing = False
        previous_reader = previous_writer = 0
        try:
            with turns.lock:
                if stream.socket.broken or stream.socket.torn:
                    writer.give_up(connection)
                may_read, may_write = not held_back and self._may_read(winding_down), writer.pending
                if core.state is _CLOSED or (
                    (not may_write or stream.written >= position) if position >= 0 else queue and not winding_down
                ):
                    return  # Another thread has been quicker.
                previous_reader, previous_writer = turns.reader, turns.writer
                if may_read and previous_reader in (0, -me):
                    turns.reader = me
                    reading = True
                if may_write and previous_writer in (0, -me):
                    turns.writer = me
                    writing = True
                if reading:
                    stream.start_reading()
                elif held_back or queue.full:
                    core.read_paused = True
                alone = reading and not may_write
                deadline = self._next_deadline(until, reading)
                gate = None if reading or writing else turns.make_gate()
            if gate is not None:
                turns.wait_at(gate, deadline, _LOOK_AGAIN if held_back else LONGEST_WAIT)
            elif alone:
                self._read(connection, deadline, me)
            elif not (writing and writer.write_some(connection)):
                self._wait_for_both(connection, deadline, me, reading, writing)
            self._run_timeouts(connection)
        finally:
            if reading:
                turns.reader = previous_reader
            if writing:
                turns.writer = previous_writer

    def _wait_for_both(
        self, connection: WatershedConnection, deadline: float | None, me: int, reading: bool, writing: bool
    ) -> None:
        stream, turns = self._stream, self._stream.turns
        if reading and stream.core.receiver.backlog:
            self._read(connection, 0.0, me)
            return
        again = time.monotonic() + _LOOK_AGAIN
        if not (reading and writing) and (deadline is None or again < deadline):
            deadline = again
        if reading:
            turns.reader = -me
        if writing:
            turns.writer = -me
        readable, writable = stream.socket.wait(deadline, read=reading, write=writing)
        if reading:
            turns.reader = me
        if writing:
            turns.writer = me
        if readable:
            self._read(connection, 0.0, me)
        if writable:
            self._writer.write_some(connection)

    def _may_read(self, winding_down: bool = False) -> bool:
        return winding_down or (not self._stream.queue.full and len(self._stream.heard) < _MAX_HEARD)

    def _next_deadline(self, until: float | None, reading: bool) -> float | None:
        core = self._stream.core
        deadline = core.next_deadline()
        if until is not None and (deadline is None or until < deadline):
            deadline = until
        if reading and (release_due := core.release_due) is not None and (deadline is None or release_due < deadline):
            deadline = release_due
        return deadline

    def _run_timeouts(self, connection: WatershedConnection) -> None:
        """Do what is due by the clock."""
        core, lock = self._stream.core, self._stream.turns.lock
        deadline, release_due = core.next_deadline(), core.release_due
        if deadline is None and release_due is None:
            return
        now = time.monotonic()
        if release_due is not None and now >= release_due:
            with lock:
                core.release_idle(now)
        if deadline is not None and now >= deadline:
            with lock:
                self._stream.run_timeouts(connection, now)

    # --- reading -----------------------------------------------------------------------------------------

    def receive_available(self, connection: WatershedConnection) -> bool:
        """Take what has come, without waiting; False where another thread is reading or the queue is full."""
        stream, turns = self._stream, self._stream.turns
        me = threading.get_ident()
        reading = False
        try:
            with turns.lock:
                if turns.reader or stream.core.ended or not self._may_read():
                    stream.looked = time.monotonic()
                    return False
                turns.reader = me
                reading = True
                stream.start_reading()
            self._read(connection, 0.0, me)
        finally:
            if reading:
                turns.reader = 0
        return True

    def _read(self, connection: WatershedConnection, deadline: float | None, me: int) -> None:
        """Wait for bytes, as the thread that reads, and take them; or take what was held back of the last ones."""
        stream, turns = self._stream, self._stream.turns
        if not stream.core.receiver.backlog:
            turns.reader = -me
            stream.socket.receive(deadline)
            turns.reader = me
        if stream.tracer is not None and stream.socket.data:
            stream.tracer("read-buffer", connection, stream.socket.data)
        with turns.lock:
            stream.take_received(connection)

    # --- where no thread waits, as watcher.py asks -------------------------------------------------------

    def is_unread(self, now: float, duration: float) -> bool:
        """Whether no thread has read for a while, of the ``duration`` seconds that the connection has lasted."""
        stream = self._stream
        looked = stream.looked
        return not stream.turns.reader and (looked == stream.watched or min(now - looked, duration) > QUIET)

    def is_due(self, now: float, *, held_back: bool) -> bool:
        """Whether :meth:`serve` has something to do, for a connection that is unread."""
        stream = self._stream
        with stream.turns.lock:
            if held_back or stream.queue.full:
                stream.core.read_paused = True
            deadline = self._next_deadline(None, True)
        return (deadline is not None and now >= deadline) or stream.socket.pending

    def unattended(self, *, unread: bool) -> tuple[int, int]:
        """The descriptor, and what no thread waits for: READ, WRITE, both or neither."""
        mask = READ if unread and self._may_read() else 0
        if not self._stream.turns.writer and self._writer.pending:
            mask |= WRITE
        return self._stream.socket.fileno(), mask

    def serve(self, connection: WatershedConnection, *, held_back: bool) -> None:
        """Read and write what can be without waiting, and run timeouts."""
        stream, turns = self._stream, self._stream.turns
        me = threading.get_ident()
        reading = writing = False
        try:
            with turns.lock:
                if stream.core.state is _CLOSED:
                    return
                if turns.reader == 0 and self._may_read() and not held_back:
                    turns.reader = me
                    reading = True
                    stream.start_reading()
                if turns.writer == 0:
                    turns.writer = me
                    writing = True
            if not (reading or writing):
                return  # the threads that hold the roles run the timeouts as well
            if reading:
                self._read(connection, 0.0, me)
                stream.watched = stream.looked
            if writing and self._writer.pending:
                self._writer.write_some(connection)
            self._run_timeouts(connection)
        finally:
            if reading:
                turns.reader = 0
            if writing:
                turns.writer = 0
