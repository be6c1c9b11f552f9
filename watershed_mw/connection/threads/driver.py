"""The threads flavour's machinery: every thread that waits, for whatever it waits, moves bytes both ways.

There are two roles, the one thread that reads and the one that writes. A thread that has to wait claims what nobody
has claimed (``_drive``), reads unless the queue is full, writes what is pending, keeps time, and gives both roles back
when it leaves. No thread waits for a role: one that gets none waits for news of those who have them,
for as long as its own timeout allows. So two peers that both write cannot block each other, and a thread that empties
the queue reads on, whatever the others wait for. Connections that no thread waits for are looked after by
:mod:`watershed_mw.connection.threads.watcher`.

An exception from outside (a signal's handler, a timeout of gevent's) may come between any two bytecodes. A role is an
attribute that is set and reset by one store, so it is never left behind; bytes are only ever in one of three places
(received and not taken, queued, begun and not written), and move between them in steps that nothing divides
(``steps.py`` beside this, ``sockets/blocking.py``). A wake-up that is lost costs a delay, never a wait without end.

Waiting is by ``poll``, so gevent's monkey patching turns it into waiting for a greenlet's turn.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from ...core.memory_budget import MAX_PAUSE
from ...core.protocol import Protocol
from ...core.states import State
from ..base import ConnectionInfo, log_handler_failure, logger
from .steps import ThreadsSteps, take_event
from .watcher import FORGET, QUIET, READ, WRITE, watch

if TYPE_CHECKING:
    from .background import Background

__all__ = ["LOOK_EVERY", "ThreadsDriver"]

# A thread that only sends looks this often, in seconds, whether the peer has gone: looking costs a system call.
LOOK_EVERY = 0.05
# A thread that waits in poll with one of the roles looks this often, in seconds, whether it may have the other one.
_LOOK_AGAIN = 0.05
# One that has none is woken by the others, or looks by itself this often: the others may have been interrupted.
_LOOK_UP = 0.2
# Seconds within which every thread that waits has learnt that the stream is broken.
_AWAKE = 1.0
# Events of control frames that wait for a thread to tell them, at which reading pauses.
_MOST_HEARD = 64

_CLOSED = State.CLOSED


class ThreadsDriver(ThreadsSteps):
    """What drives a :class:`~watershed_mw.ThreadConnection`, in the threads that call it."""

    __slots__ = (
        "_background",
        "_finished",
        "_half_closed",
        "_info",
        "_running",
        "in_background",
        "no_background",
    )

    def __init__(self, info: ConnectionInfo, protocol: Protocol, sock: socket.socket, head: bytes = b"") -> None:
        self._half_closed = False
        self._running = False
        self._finished = False
        self._background: Background | None = None
        self.in_background = False
        self.no_background = ""
        self._info = info  # for who takes the connection over
        super().__init__(info, protocol, sock, head)
        watch(self)

    # --- waiting -----------------------------------------------------------------------------------------

    def _drive(self, until: float | None, position: int = -1, *, winding_down: bool = False) -> None:
        """Do what can be done for the connection, or wait until there is something; at the latest until ``until``.

        Every thread that waits for anything comes here again and again until it has it.

        Args:
            until: a time.
            position: what the thread waits for: that everything up to there has been written; a message, or the end,
                where it is negative.
            winding_down: whether to read though the queue is full, and to wait for the end alone.
        """
        me = threading.get_ident()
        reading = writing = False
        reader = writer = 0
        held_back = self._account is not None and self._held_back()
        try:
            with self._state:
                if self._socket.broken or self._socket.torn:
                    self._give_up_stream()
                may_read, may_write = not held_back and self._may_read(winding_down), self._pending()
                if self._core.state is _CLOSED or (
                    (not may_write or self._written >= position) if position >= 0 else self._queue and not winding_down
                ):
                    return  # Another thread has been quicker.
                reader, writer = self._reading, self._writing
                if may_read and (reader == 0 or reader == -me):
                    self._reading = me
                    reading = True
                if may_write and (writer == 0 or writer == -me):
                    self._writing = me
                    writing = True
                if reading:
                    self._reading_begins()
                elif held_back or self._queue.full:
                    self._core.read_paused = True
                alone = reading and not may_write
                deadline = self._next_deadline(until, reading)
                gate = None if reading or writing else self._make_gate()
            if gate is not None:
                self._wait_at(gate, deadline, _LOOK_AGAIN if held_back else _LOOK_UP)
            elif alone:
                self._read(deadline, me)
            elif not (writing and self._write_some()):
                self._wait_for_both(deadline, me, reading, writing)
            self._keep_time()
        finally:
            if reading:
                self._reading = reader
            if writing:
                self._writing = writer
        self._follow_up()

    def _wait_for_both(self, deadline: float | None, me: int, reading: bool, writing: bool) -> None:
        if reading and self._core.backlog:
            self._read(0.0, me)
            return
        again = time.monotonic() + _LOOK_AGAIN
        if not (reading and writing) and (deadline is None or again < deadline):
            deadline = again
        if reading:
            self._reading = -me
        if writing:
            self._writing = -me
        readable, writable = self._socket.wait(deadline, read=reading, write=writing)
        if reading:
            self._reading = me
        if writing:
            self._writing = me
        if readable:
            self._read(0.0, me)
        if writable:
            self._write_some()

    def _may_read(self, winding_down: bool = False) -> bool:
        return winding_down or (not self._queue.full and len(self._heard) < _MOST_HEARD)

    def _pending(self) -> Any:
        """Whether there is something to write."""
        return self._core.unsent_size or self._socket.write_buffer or self._core.write_paused

    def _over(self) -> bool:
        """Whether nothing more will be received, and everything is written that can be."""
        return self._core.state is _CLOSED or (self._core.ended and not self._pending())

    def _next_deadline(self, until: float | None, reading: bool) -> float | None:
        deadline = self._core.next_deadline()
        if until is not None and (deadline is None or until < deadline):
            deadline = until
        if (
            reading
            and (release_due := self._core.release_due) is not None
            and (deadline is None or release_due < deadline)
        ):
            deadline = release_due
        return deadline

    def _keep_time(self) -> None:
        """Do what is due by the clock."""
        deadline, release_due = self._core.next_deadline(), self._core.release_due
        if deadline is None and release_due is None:
            return
        now = time.monotonic()
        if release_due is not None and now >= release_due:
            with self._state:
                self._core.release_idle(now)
        if deadline is not None and now >= deadline:
            with self._state:
                self._heard = (*self._heard, *self._take(self._core.handle_timeout(now, self._socket.unsent)))

    # --- news of other threads -----------------------------------------------------------------------------

    def _make_gate(self) -> Any:
        """What :meth:`_wait_at` waits at; with the state locked."""
        gate = threading.Lock()
        gate.acquire()
        if self._gates is None:
            self._gates = []
        self._gates.append(gate)
        return gate

    def _wait_at(self, gate: Any, deadline: float | None, timeout: float = _LOOK_UP) -> None:
        """Wait until another thread has news, not for long; without the state locked."""
        if deadline is not None:
            timeout = min(timeout, max(0.0, deadline - time.monotonic()))
        if not gate.acquire(timeout=timeout):
            with self._state:
                if self._gates and gate in self._gates:
                    self._gates.remove(gate)

    def _open_gates(self) -> None:
        """There is news: wake the threads that wait for it."""
        with self._state:
            while self._gates:
                self._gates.pop().release()

    # --- reading -----------------------------------------------------------------------------------------

    def _receive_available(self) -> None:
        """Take what has come, without waiting, unless another thread is reading or the queue is full."""
        if self._account is not None and self._held_back():
            return
        me = threading.get_ident()
        reading = False
        try:
            with self._state:
                if self._reading or self._core.ended or not self._may_read():
                    self._looked = time.monotonic()
                    return
                self._reading = me
                reading = True
                self._reading_begins()
            self._read(0.0, me)
        finally:
            if reading:
                self._reading = 0
        self._follow_up()

    def _read(self, deadline: float | None, me: int) -> None:
        """Wait for bytes, as the thread that reads, and take them; or take what has come and was too much before."""
        sock = self._socket
        if not self._core.backlog:
            self._reading = -me
            sock.receive(deadline)
            self._reading = me
        if self._trace is not None and sock.data:
            self._trace("read-buffer", self, sock.data)
        with self._state:
            self._take_received()

    # --- memory ------------------------------------------------------------------------------------------

    def _update_memory(self) -> None:
        """Report what is held, where that has passed a mark; never with the state locked, as others may have to end."""
        self._update_memory_but(0)

    def _report_taking(self) -> None:
        """As :meth:`_update_memory`, as if the first message of the queue had been taken.

        It is taken afterwards. Nothing may be called between that and its return: what a signal's handler raises there
        would lose it.
        """
        self._update_memory_but(self._queue.first_size())

    def _update_memory_but(self, taking: int) -> None:
        unsent = self._core.unsent_size + len(self._socket.write_buffer)
        held = self._core.incoming_size() + self._queue.size - taking + unsent
        if self._is_report_due(held):
            self._report_memory(unsent, taking)

    def _held_back(self) -> bool:
        """Whether too much memory is held in this process, and too much of it here, to read more."""
        account = self._account
        if account is None or not account.paused or self._core.state is not State.OPEN:
            return False
        if time.monotonic() >= account.paused_at + MAX_PAUSE:
            account.overdue()
        return account.paused

    def _memory_changed(self) -> None:
        """As the base class says. That reading pauses, or goes on, is seen by the thread that reads."""
        account = self._account
        if account is None or not account.ending:
            return
        with self._state:
            if account.recovered():
                return
            error, unreachable = account.error(), account.unsent_most
            self._queue.clear()
            self._take(self._core.fail(error, time.monotonic()))
            self._open_gates()
        self._close_account()
        if unreachable:
            self._socket.shutdown()
        else:
            self._flush()

    # --- writing -----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what the kernel takes at once, unless a thread is writing, which looks again when it stops."""
        me = threading.get_ident()
        done = True
        while done and self._pending():
            writing = False
            try:
                with self._state:
                    if self._writing:
                        return
                    self._writing = me
                    writing = True
                done = self._write_some()
            finally:
                if writing:
                    self._writing = 0

    def _write_until(self, position: int) -> None:
        """Wait until the kernel has taken everything that was queued up to ``position``."""
        me = threading.get_ident()
        while self._written < position and self._pending() and self._core.state is not _CLOSED:
            if self._writing == me:
                return  # This is a signal's handler within a call that writes, and goes on when the handler returns.
            self._drive(None, position)

    def _has_left(self, position: int) -> bool:
        """Whether the kernel took everything up to ``position`` before the connection ended."""
        until = time.monotonic() + _AWAKE
        me = threading.get_ident()
        # Another thread may have written it and not updated _written yet. The stream is shut down, so it returns soon.
        while self._written < position and self._writing > 0 and self._writing != me and time.monotonic() < until:
            with self._state:
                gate = self._make_gate()
            self._wait_at(gate, until, _LOOK_AGAIN)
        return self._written >= position

    def _give_up_stream(self) -> None:
        """Take note that nothing more can be written, or that nobody knows what was; with the state locked."""
        core = self._core
        if self._socket.torn and core.state is not _CLOSED:
            logger.error("%r ends: it was interrupted while OpenSSL read or wrote, and bytes may be lost", self)
            core.abort()
        core.receive_eof()
        core.write_paused = False
        self._socket.shutdown()

    def _write_some(self) -> bool:
        """Write what the kernel takes at once, as the thread that writes; False when something is left."""
        sock, core = self._socket, self._core
        while True:
            if not sock.write_buffer:
                with self._state:
                    if core.write_paused:
                        core.writing_resumed()
                    if self._trace is not None:
                        self._trace.sent_close(self, self._core.close_sent)
                    if not core.unsent_size:
                        return True
                    self._load_socket()
            sock.send()
            if sock.broken:
                with self._state:
                    self._give_up_stream()
                return True
            if sock.write_buffer:
                with self._state:
                    core.write_paused = True
                return False
            self._written = self._loaded

    # --- what follows ----------------------------------------------------------------------------------------

    def _follow_up(self) -> None:
        """See to what has become due while this thread had a role; it has none any more."""
        self._apply_state()
        if self._heard:
            self._emit_heard()

    def _apply_state(self) -> None:
        """As :meth:`_follow_up`, but for what calls handlers."""
        self._update_memory()
        core = self._core
        if self._socket.broken or self._socket.torn:
            with self._state:
                self._give_up_stream()
        if core.state is _CLOSED:
            # Whoever sees the end wakes the others, who have older deadlines in mind, or none.
            with self._state:  # under which it is closed: the number may soon be another socket's
                self._socket.shutdown()
        elif core.unsent_size and not self._writing:
            self._flush()
        if self._gates:
            self._open_gates()
        if self._closing:
            self._close_unused()

    def _emit_heard(self) -> None:
        """Tell the handlers of control frames, which do not wait for messages to be received."""
        while self._heard:
            with self._state:
                if not self._heard:
                    return
                event, self._heard = self._heard[0], self._heard[1:]
            self._emit_event(event)

    # --- where no thread waits, as watcher.py asks ------------------------------------------------

    def _poll_state(self, now: float) -> tuple[int, int]:
        """The descriptor, and what no thread sees to; what is due by the clock is done."""
        core, sock = self._core, self._socket
        if self._background is not None:
            return -1, FORGET
        if core.state is _CLOSED or self._closing or sock.torn:
            self._apply_state()  # again, in case that the thread which should have done so was interrupted
            gone = core.state is _CLOSED and not (self._reading or self._writing)
            return -1, FORGET if gone else 0
        mask = 0
        looked = self._looked
        held_back = self._account is not None and self._held_back()
        if not self._reading and (looked == self._watched or now - max(looked, self._opened) > QUIET):
            with self._state:
                if held_back or self._queue.full:
                    core.read_paused = True
                deadline = self._next_deadline(None, True)
            if (deadline is not None and now >= deadline) or sock.pending:
                self._service()
            mask = READ if self._may_read() and not held_back else 0
        if not self._writing and self._pending():
            mask |= WRITE
        return sock.fileno(), mask

    def _service(self) -> None:
        """Read and write what can be without waiting, and keep time. No handler is called: it might take long."""
        held_back = self._account is not None and self._held_back()
        me = threading.get_ident()
        reading = writing = False
        try:
            with self._state:
                if self._background is not None or self._core.state is _CLOSED:
                    return
                if self._reading == 0 and self._may_read() and not held_back:
                    self._reading = me
                    reading = True
                    self._reading_begins()
                if self._writing == 0:
                    self._writing = me
                    writing = True
            if reading:
                self._read(0.0, me)
                self._watched = self._looked
            if writing and self._pending():
                self._write_some()
            self._keep_time()
        finally:
            if reading:
                self._reading = 0
            if writing:
                self._writing = 0
        self._apply_state()

    def _claim_socket(self) -> None:
        """Take both roles for good, as the socket gets another owner.

        Raises:
            RuntimeError: other threads wait with a role. Whoever waits in ``recv`` cannot be told to let go, and would
                take bytes that are the new owner's.
        """
        me = threading.get_ident()
        until = time.monotonic() + _AWAKE
        while True:
            with self._state:
                if self._reading == 0 and self._writing == 0:
                    self._reading = self._writing = me
                    return
                gate = self._make_gate()
            if time.monotonic() >= until:
                raise RuntimeError(
                    "expected no other thread within receive() or send() of this connection, got one that waits there: "
                    "call run_in_background() before, or once it has returned"
                )
            self._wait_at(gate, until)

    # --- the end -----------------------------------------------------------------------------------------

    def _wind_down(self, until: float | None = None) -> bool:
        """See the closing handshake and the end of the TCP stream through, within the core's timeouts.

        Returns:
            False when it was not over at ``until``.
        """
        core = self._core
        while core.state is not _CLOSED:
            with self._state:
                core.messages_handed_over(time.monotonic())
            if core.half_close and not self._half_closed and not self._pending():
                self._half_close()
            self._drive(until, winding_down=True)
            if until is not None and time.monotonic() >= until and core.state is not _CLOSED:
                return False
        self._close_socket()
        self._finish()
        return True

    def _half_close(self) -> None:
        """End this direction of the stream, unless another thread is writing."""
        writing = False
        try:
            with self._state:
                if self._writing:
                    return
                self._writing = threading.get_ident()
                writing = True
                self._half_closed = True
            self._socket.half_close()
        finally:
            if writing:
                self._writing = 0

    def _close_socket(self) -> None:
        """Close it under nobody: the last thread that uses it does, if that takes long."""
        self._closing = True
        me = threading.get_ident()
        until = time.monotonic() + _AWAKE
        with self._state:
            self._socket.shutdown()  # wakes whoever waits on it
        if self._account is not None:
            self._update_memory()
        while not self._close_unused() and me not in (abs(self._reading), abs(self._writing)):
            with self._state:
                gate = self._make_gate()
            self._wait_at(gate, until)
            if time.monotonic() >= until:
                return

    def _close_unused(self) -> bool:
        """Close the socket if no thread is reading or writing."""
        with self._state:
            if self._reading or self._writing:
                return False
            self._socket.close()
        if self._gates:
            self._open_gates()
        return True

    def _finish(self) -> None:
        """Tell the handlers the rest, once; where a thread is in ``run``, that is its part."""
        with self._state:
            if self._finished or self._running:
                return
            self._finished = True
        try:
            self._dispatch()
            if self._heard:
                self._emit_heard()
            self._emit_end()
        finally:
            if not self._end_emitted:
                self._finished = False  # An exception from outside came first: somebody has to come back.

    def _dispatch(self) -> None:
        """Tell the handlers what is queued."""
        while self._push and self._handler_error is None:
            if self._account is not None:
                self._report_taking()
            # Unpacked, and not called: no exception of a signal's handler comes between taking an event and telling it.
            (event,) = map(take_event, (self,))
            if event is None:
                return
            self._emit_event(event)

    def _handler_failed(self, error: BaseException) -> None:
        if self._background is not None:
            # Nobody waits in run(): the exception must not vanish.
            log_handler_failure(self, error)
            self._background.call("end", code=1011)
            return
        if not self._running:
            log_handler_failure(self, error)
        with self._state:
            super()._handler_failed(error)
