"""The threads flavour's machinery: whoever waits also reads, answers PINGs and keeps time.

No thread is started here. One thread reads at a time, frames leave whole, and a thread that waits to
write still reads, so that two peers who both write cannot block each other. Waiting is by ``poll``, so
gevent's monkey patching turns it into waiting for a greenlet's turn.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from .connection import Details, WatershedConnection, logger
from .core.events import Event
from .core.memory import PATIENCE
from .core.protocol import Protocol
from .core.states import State
from .sockets import BlockingSocket

if TYPE_CHECKING:
    from .background import Background

__all__ = ["LOOK_EVERY", "ThreadsShell"]

# A thread that only sends looks this often, in seconds, whether the peer has gone: looking costs a system call.
LOOK_EVERY = 0.05
# Seconds within which a thread that waits to write has learnt that the stream is broken.
_AWAKE = 1.0
# A thread that may not read for want of memory looks this often, in seconds, whether it may.
_MEMORY_LOOK = 0.05


class ThreadsShell(WatershedConnection):
    """What drives a :class:`~watershed_mw.ThreadConnection`, in the threads that call it."""

    __slots__ = (
        "_background",
        "_closing",
        "_details",
        "_finished",
        "_half_closed",
        "_head",
        "_heard",
        "_looked",
        "_news",
        "_reading",
        "_running",
        "_socket",
        "_state",
        "_unsent",
        "_writing",
        "in_background",
        "no_background",
    )

    _core: Protocol

    def __init__(self, details: Details, protocol: Protocol, sock: socket.socket, head: bytes = b"") -> None:
        self._socket = BlockingSocket(sock)
        self._head = head
        # _state guards the core and the queue, and is never held while waiting or while calling a handler.
        self._state = threading.RLock()
        self._news: threading.Condition | None = None  # for those who wait while another thread reads
        self._reading = 0  # the ident of the one thread that does
        self._writing = threading.Lock()
        self._looked = 0.0
        self._unsent = 0
        self._heard: tuple[Event, ...] = ()
        self._half_closed = False
        self._running = False
        self._finished = False
        self._closing = False
        self._background: Background | None = None
        self.in_background = False
        self.no_background = ""
        self._details = details  # for who takes the connection over
        super().__init__(details, protocol)

    # --- reading -----------------------------------------------------------------------------------------

    def _read(self, until: float | None, *, winding_down: bool = False) -> None:
        """Wait for bytes and take them, or for another thread that does; return at the latest at ``until``."""
        held_back = self._account is not None and self._held_back()
        with self._state:
            if self._queue and not winding_down:
                return  # Another thread has read since the caller looked: that may be all that comes.
            if held_back:
                self._core.read_paused = True
                patience = _MEMORY_LOOK if until is None else min(_MEMORY_LOOK, max(0.0, until - time.monotonic()))
                self._wait_for_news(patience)
                at_once: tuple[Event, ...] | None = self._take(
                    self._core.handle_timeout(time.monotonic(), self._unsent)
                )
            elif not self._begin_reading():
                self._wait_for_news(None if until is None else max(0.0, until - time.monotonic()))
                at_once = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
            else:
                at_once = None
        if at_once is None:
            deadline = self._core.next_deadline()
            if until is not None and (deadline is None or until < deadline):
                deadline = until
            at_once = self._receive(deadline)
        self._tell(at_once)

    def _look(self) -> None:
        """Take what has come, without waiting, unless another thread is reading or the queue is full."""
        with self._state:
            self._looked = time.monotonic()
            if self._queue.full or self._core.ended or not self._begin_reading():
                return
        self._tell(self._receive(0.0))

    def _receive(self, deadline: float | None) -> tuple[Event, ...]:
        """Read once, as the one thread that has claimed to be the reader, and give the core what came."""
        try:
            data = self._await_bytes(deadline)
            with self._state:
                at_once = self._take(self._take_bytes(data))
            self._update_memory()
            return at_once
        except BaseException:
            self._read_no_more()
            raise

    def _read_no_more(self) -> None:
        """A signal's handler or a time-out of gevent's has raised: somebody may read again, from what was not taken."""
        with self._state:
            if self._reading == threading.get_ident():
                self._stop_reading()

    def _await_bytes(self, deadline: float | None) -> bytes | None:
        """Wait for bytes as the reader; None where nothing came in time, empty at the end of the stream."""
        core = self._core
        core.read_paused = False
        if core.arriving:
            with self._state:
                core.was_not_read(self._looked, time.monotonic())
        rest_due = core.rest_due
        if rest_due is not None and (deadline is None or rest_due < deadline):
            deadline = rest_due
        try:
            data = self._head or self._socket.receive(deadline)
            self._head = data or b""  # until it is taken
            if data and self._trace is not None:
                self._trace("read-buffer", self, data)
        except BaseException:
            self._read_no_more()
            raise
        return data

    def _take_bytes(self, data: bytes | None) -> list[Event]:
        """Give the core what was read, and be the reader no more; with the state locked, until all is taken."""
        now = self._looked = time.monotonic()
        events: list[Event] = []
        self._head = b""
        if data:
            events = self._core.receive_data(data, now)
        elif data is not None:
            self._core.receive_eof()
        else:
            self._core.rest(now)
        if due := self._core.handle_timeout(now, self._unsent):
            events += due
        self._wake_at_the_end()
        self._stop_reading()
        return events

    # --- memory ------------------------------------------------------------------------------------------

    def _update_memory(self) -> None:
        """Report what is held, where that has passed a mark; never with the state locked, as others may have to end."""
        unsent = self._core.unsent_size + self._unsent
        held = self._core.incoming_size() + self._queue.size + unsent
        if held >= self._report_above or held < self._report_below:
            self._report_memory(unsent)

    def _held_back(self) -> bool:
        """Whether too much memory is held in this process, and too much of it here, to read more."""
        account = self._account
        if account is None or not account.paused or self._core.state is not State.OPEN:
            return False
        if time.monotonic() >= account.paused_at + PATIENCE:
            account.overdue()
        return account.paused

    def _memory_news(self) -> None:
        """As the base class says. That reading pauses, or goes on, is seen by the thread that reads."""
        account = self._account
        if account is None or not account.ending:
            return
        with self._state:
            if account.pardoned():
                return
            error, unreachable = account.error(), account.unsent_most
            self._queue.clear()
            self._take(self._core.fail(error, time.monotonic()))
            if self._news is not None:
                self._news.notify_all()
        self._close_account()
        if unreachable:
            self._socket.shutdown()
        else:
            self._flush(wait=False)

    def _begin_reading(self) -> bool:
        """Claim to be the one thread that reads, unless another one does; with the state locked."""
        if self._reading:
            return False
        self._reading = threading.get_ident()
        return True

    def _stop_reading(self) -> None:
        """Let another thread read; with the state locked."""
        self._reading = 0
        if self._news is not None:
            self._news.notify_all()

    def _wait_for_news(self, patience: float | None = None) -> None:
        """Wait until the reader has read; with the state locked, which is let go meanwhile."""
        if self._news is None:
            self._news = threading.Condition(self._state)
        self._news.wait(patience)

    def _tell(self, at_once: tuple[Event, ...]) -> None:
        self._wake_at_the_end()
        if self._closing:
            self._close_socket()
        if self._core.unsent_size:
            self._flush(wait=False)
        for event in at_once:
            self._emit_event(event)

    def _wake_at_the_end(self) -> None:
        """Whoever sees a time-out pass wakes the others, who have older deadlines in mind, or none."""
        if self._core.state is State.CLOSED:
            with self._state:  # under which it is closed: the number may soon be another socket's
                self._socket.shutdown()

    # --- writing -----------------------------------------------------------------------------------------

    def _flush(self, *, wait: bool) -> None:
        """Write what is queued. Without ``wait``, leave it to the thread that is writing, if there is one."""
        while self._core.unsent_size:
            if not (self._writing.acquire(False) or self._begin_writing(wait=wait)):
                return  # The writer looks again after it has let the lock go.
            try:
                while self._core.unsent_size:
                    with self._state:
                        if self._trace is not None:
                            self._trace_sent_close()
                        data = self._core.data_to_send()
                    self._write(data)
            finally:
                self._end_writing()

    def _end_writing(self) -> None:
        """Let the writing lock go. What was heard while waiting to write is told only now: handlers may send."""
        heard = self._heard
        if heard:
            self._heard = ()
        self._writing.release()
        if self._closing:
            self._close_socket()
        if heard:
            self._tell(heard)

    def _begin_writing(self, *, wait: bool) -> bool:
        """Take the writing lock; while another thread has it, keep time in its place."""
        while not self._writing.acquire(False):
            if not wait:
                return False
            deadline = self._core.next_deadline()
            patience = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if self._writing.acquire(timeout=patience):
                break
            with self._state:
                at_once = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
            self._tell(at_once)
        return True

    def _write(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        try:
            while rest:
                sent = self._socket.send(rest)
                if sent is None:
                    with self._state:
                        self._core.receive_eof()
                    self._wake_at_the_end()
                    break
                if sent == len(rest):
                    break
                rest = memoryview(rest)[sent:]
                if sent == 0:
                    self._unsent = len(rest)
                    if not self._wait_to_write_rest(rest):
                        break
        finally:
            if self._unsent:
                self._unsent = 0
                with self._state:
                    self._core.writing_resumed()

    def _wait_to_write_rest(self, rest: bytes | memoryview) -> bool:
        try:
            return self._wait_to_write()
        except BaseException:
            # A time-out of gevent's, or what a signal's handler raises: whoever writes next ends what was begun. Here
            # it is known how much is written; what comes while a call sends would be sent twice.
            with self._state:
                self._core.put_back(bytes(rest))
            raise

    def _wait_to_write(self) -> bool:
        """Wait until the kernel takes more, and read meanwhile; False when the peer has been given up."""
        with self._state:
            self._core.write_paused = True
            self._core.read_paused = self._queue.full
            read = not self._queue.full and not self._core.ended and self._begin_reading()
            deadline = self._core.next_deadline()
        came = False
        try:
            came = self._socket.wait_to_write(deadline, read=read)
        finally:
            if read and not came:
                with self._state:
                    self._stop_reading()
        if came:
            at_once = self._receive(0.0)
        else:
            with self._state:
                at_once = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
        self._heard += at_once
        self._wake_at_the_end()
        return self._core.state is not State.CLOSED

    # --- the end -----------------------------------------------------------------------------------------

    def _wind_down(self) -> None:
        """See the closing handshake and the end of the TCP stream through, within the core's time-outs."""
        while self._core.state is not State.CLOSED:
            with self._state:
                self._core.messages_handed_over(time.monotonic())
            self._flush(wait=True)
            if self._core.half_close and not self._half_closed and self._begin_writing(wait=True):
                # With the lock, as another thread may hold bytes that it has not written yet.
                self._half_closed = True
                self._socket.half_close()
                self._writing.release()
            self._read(self._core.next_deadline(), winding_down=True)
        self._close_socket()
        self._finish()

    def _close_socket(self) -> None:
        """Close it under nobody: where a signal's handler asks in the midst of a call, that call does so at its end."""
        self._closing = True
        self._socket.shutdown()  # wakes whoever waits on it
        if self._account is not None:
            self._update_memory()
        if not self._writing.acquire(timeout=_AWAKE):
            return
        try:
            with self._state:
                while self._reading and self._reading != threading.get_ident():
                    self._wait_for_news()
                if not self._reading:
                    self._closing = False
                    self._socket.close()
        finally:
            self._writing.release()

    def _finish(self) -> None:
        """Tell the handlers the rest, once; where a thread is in ``run``, that is its part."""
        with self._state:
            if self._finished or self._running:
                return
            self._finished = True
        self._dispatch()
        self._emit_end()

    def _dispatch(self) -> None:
        """Tell the handlers what is queued."""
        while self._push:
            with self._state:
                if not self._queue or self._handler_error is not None:
                    return
                event = self._queue.take()
            if self._account is not None:
                self._update_memory()
            self._emit_event(event)

    def _handler_failed(self, error: BaseException) -> None:
        if self._background is not None:
            # Nobody waits in run(): the exception must not vanish.
            logger.error("a handler of %r raised", self, exc_info=error)
            self._background.call("end", code=1011)
            return
        if not self._running:
            logger.error("a handler of %r raised", self, exc_info=error)
        with self._state:
            super()._handler_failed(error)
