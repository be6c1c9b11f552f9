"""What drives a connection of the threads flavour: every thread that waits, for whatever, moves bytes both ways.

Its parts: ``stream.py`` holds what the threads share, and the steps that nothing may divide; ``turns.py`` says which
thread reads and which one writes; ``writer.py`` writes; ``pump.py`` is one step of a thread that waits. Connections
that no thread waits for are served by the watcher (``watcher.py``).
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, cast
from typing import Protocol as Interface

from ...core.memory_budget import MAX_PAUSE, Account
from ...core.states import State
from ..base import WatershedConnection
from ..handlers import Handlers
from .pump import Pump
from .stream import SharedStream, take_event
from .watcher import FORGET
from .writer import Writer

__all__ = ["LOOK_EVERY", "ThreadsDriver"]

# Seconds between two reads of a thread that only sends, to see whether the peer has gone: each costs a system call.
LOOK_EVERY = 0.05
# Seconds within which every waiting thread has noticed that the stream is broken.
_AWAKE = 1.0

_OPEN = State.OPEN
_CLOSED = State.CLOSED


class Owner(Interface):
    """What a driver asks of its connection."""

    @property
    def _account(self) -> Account | None:
        """What it holds in memory, where that counts."""

    def _is_report_due(self, held: int) -> bool:
        """Whether a connection that holds ``held`` bytes has to report them."""

    def _report_memory(self, unsent: int, taking: int = 0) -> None:
        """Report what it holds; without the lock held, as other connections may have to end."""

    @property
    def _push(self) -> bool:
        """Whether messages are pushed to handlers."""

    @property
    def _handler_error(self) -> BaseException | None:
        """What a handler has raised."""

    @property
    def _end_emitted(self) -> bool:
        """Whether handlers of the end were called."""

    _handlers: Handlers

    def _emit_end(self) -> tuple[Any, ...]:
        """Call the handlers of the end."""


class ThreadsDriver:
    """Drives one connection, in the threads that call it.

    The connection is an argument of the methods: it owns this object, and the two do not keep each other alive.

    Args:
        stream: what the connection's threads share.

    Attributes:
        writer: what is to be written.
        running: whether a thread is in ``run()``.
    """

    __slots__ = ("_closing", "_finished", "_pump", "_stream", "running", "writer")

    def __init__(self, stream: SharedStream) -> None:
        self._stream = stream
        self.writer = Writer(stream)
        self._pump = Pump(stream, self.writer)
        self._closing = False
        self._finished = False
        self.running = False

    # --- waiting -----------------------------------------------------------------------------------------

    def drive(
        self, connection: WatershedConnection, until: float | None, position: int = -1, *, winding_down: bool = False
    ) -> None:
        """Do what can be done, or wait until there is something, and see to what follows.

        A thread that waits calls this again and again until it has what it waits for. Arguments as of ``Pump.step``.
        """
        held_back = self._held_back(connection)
        self._pump.step(connection, until, position, winding_down=winding_down, held_back=held_back)
        self.follow_up(connection)

    def follow_up(self, connection: WatershedConnection) -> None:
        """See to what has become due while this thread had a role; it has none any more."""
        self._apply_state(connection)
        if self._stream.heard:
            self._emit_heard(connection)

    def _apply_state(self, connection: WatershedConnection) -> None:
        """As :meth:`follow_up`, but for what calls handlers."""
        self.update_memory(connection)
        stream, turns = self._stream, self._stream.turns
        core, sock = stream.core, stream.socket
        if sock.broken or sock.torn:
            with turns.lock:
                self.writer.give_up(connection)
        if core.state is _CLOSED:
            # The thread that sees the end wakes the others, which wait for older deadlines, or for none.
            with turns.lock:  # under which it is closed: the descriptor may soon be another socket's
                sock.shutdown()
        elif core.outgoing.unsent_size and not turns.writer:
            self.writer.flush(connection)
        if turns.gates:
            turns.notify()
        if self._closing:
            self._close_unused()

    def look(self, connection: WatershedConnection) -> None:
        """Take what has come, without waiting: for a thread that only sends, every LOOK_EVERY seconds."""
        if not self._held_back(connection) and self._pump.receive_available(connection):
            self.follow_up(connection)

    def write_until(self, connection: WatershedConnection, position: int) -> None:
        """Wait until the kernel has taken everything that was queued up to ``position``."""
        while self.writer.must_wait_for(position):
            self.drive(connection, None, position)

    # --- where no thread waits, as watcher.py asks -------------------------------------------------------

    def poll_state(self, connection: WatershedConnection, now: float) -> tuple[int, int]:
        """The descriptor, and what no thread waits for; what is due by the clock is done."""
        stream, turns = self._stream, self._stream.turns
        if stream.core.state is _CLOSED or self._closing or stream.socket.torn:
            self._apply_state(connection)  # again, in case that the thread that should have done so was interrupted
            gone = stream.core.state is _CLOSED and not (turns.reader or turns.writer)
            return -1, FORGET if gone else 0
        held_back = self._held_back(connection)
        unread = self._pump.is_unread(now, connection.duration)
        if unread and self._pump.is_due(now, held_back=held_back):
            self.serve(connection)
        return self._pump.unattended(unread=unread and not held_back)

    def serve(self, connection: WatershedConnection) -> None:
        """Read and write what can be without waiting, and run timeouts. No handler is called: it might take long."""
        self._pump.serve(connection, held_back=self._held_back(connection))
        self._apply_state(connection)

    # --- memory ------------------------------------------------------------------------------------------

    def update_memory(self, connection: WatershedConnection, taking: int = 0) -> None:
        """Report what the connection holds, where that has passed a mark; without the lock held.

        Args:
            taking: bytes of the message that is about to be taken from the queue. It is taken afterwards: nothing may
                be called between that and its return, as the exception of a signal handler there would lose it.
        """
        core, owner = self._stream.core, cast(Owner, connection)
        unsent = core.outgoing.unsent_size + len(self._stream.socket.write_buffer)
        if owner._is_report_due(core.incoming_size() + self._stream.queue.size - taking + unsent):
            owner._report_memory(unsent, taking)

    def _held_back(self, connection: WatershedConnection) -> bool:
        """Whether too much memory is held in this process, and too much of it here, to read more."""
        account = cast(Owner, connection)._account
        if account is None or not account.paused or self._stream.core.state is not _OPEN:
            return False
        if time.monotonic() >= account.paused_at + MAX_PAUSE:
            account.overdue()
        return account.paused

    # --- the end -----------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be received, and everything is written that can be."""
        core = self._stream.core
        return core.state is _CLOSED or (core.ended and not self.writer.pending)

    def wind_down(self, connection: WatershedConnection, until: float | None = None) -> bool:
        """See the closing handshake and the end of the TCP stream through, within the core's timeouts.

        Returns:
            False when it was not over at ``until``.
        """
        core = self._stream.core
        while core.state is not _CLOSED:
            with self._stream.turns.lock:
                core.messages_handed_over(time.monotonic())
            if core.half_close:
                self.writer.half_close()
            self.drive(connection, until, winding_down=True)
            if until is not None and time.monotonic() >= until and core.state is not _CLOSED:
                return False
        self.close(connection)
        return True

    def close(self, connection: WatershedConnection) -> None:
        """Close the socket when no thread uses it any more, and call the handlers of the rest and of the end."""
        turns = self._stream.turns
        self._closing = True
        me = threading.get_ident()
        until = time.monotonic() + _AWAKE
        with turns.lock:
            self._stream.socket.shutdown()  # wakes the threads that wait on it
        # If this takes long, the last thread that uses the socket closes it.
        while not self._close_unused() and me not in (abs(turns.reader), abs(turns.writer)):
            with turns.lock:
                gate = turns.make_gate()
            turns.wait_at(gate, until)
            if time.monotonic() >= until:
                break
        self.update_memory(connection)
        self._finish(connection)

    def _close_unused(self) -> bool:
        """Close the socket if no thread is reading or writing."""
        turns = self._stream.turns
        with turns.lock:
            if turns.reader or turns.writer:
                return False
            self._stream.socket.close()
        if turns.gates:
            turns.notify()
        return True

    # --- handlers ----------------------------------------------------------------------------------------

    def dispatch(self, connection: WatershedConnection) -> None:
        """Call the handlers of what is queued."""
        owner = cast(Owner, connection)
        while owner._push and owner._handler_error is None:
            if owner._account is not None:
                self.update_memory(connection, self._stream.queue.first_size())
            # Unpacked, and not called: no signal handler's exception comes between taking an event and emitting it.
            (event,) = map(take_event, (self._stream,))
            if event is None:
                return
            owner._handlers.emit_event(owner, event)

    def _emit_heard(self, connection: WatershedConnection) -> None:
        """Call the handlers of control frames, which do not wait for messages to be received."""
        stream = self._stream
        while stream.heard:
            with stream.turns.lock:
                if not stream.heard:
                    return
                event, stream.heard = stream.heard[0], stream.heard[1:]
            connection._handlers.emit_event(connection, event)

    def _finish(self, connection: WatershedConnection) -> None:
        """Call the handlers of the rest and of the end, once; while a thread is in ``run()``, it does that."""
        owner = cast(Owner, connection)
        with self._stream.turns.lock:
            if self._finished or self.running:
                return
            self._finished = True
        try:
            self.dispatch(connection)
            self._emit_heard(connection)
            owner._emit_end()
        finally:
            if not owner._end_emitted:
                self._finished = False  # An exception from outside came first: another thread has to do it.

    # --- another owner -----------------------------------------------------------------------------------

    def claim(self) -> None:
        """Take both roles for good, as the socket gets another owner.

        Raises:
            RuntimeError: other threads wait with a role. One that waits in ``recv`` cannot be interrupted, and would
                take bytes that belong to the new owner.
        """
        turns = self._stream.turns
        me = threading.get_ident()
        until = time.monotonic() + _AWAKE
        while True:
            with turns.lock:
                if turns.reader == 0 and turns.writer == 0:
                    turns.reader = turns.writer = me
                    return
                gate = turns.make_gate()
            if time.monotonic() >= until:
                raise RuntimeError(
                    "expected no other thread in receive() or send() of this connection, but one is waiting there: "
                    "call run_in_background() before it waits, or after it has returned"
                )
            turns.wait_at(gate, until)

    def release(self) -> tuple[socket.socket, bytes]:
        """Give the socket to its new owner, with bytes that were read and not taken; both roles are claimed."""
        core, sock = self._stream.core, self._stream.socket
        if sock.write_buffer:
            core.put_back(bytes(sock.write_buffer)[sock.sent :])
        core.write_paused = core.read_paused = False
        return sock.release(), sock.data or b""
