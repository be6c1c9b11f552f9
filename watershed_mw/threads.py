"""The threads flavour: a connection on a blocking socket, plain or TLS, driven by the thread that calls.

No thread is started: whoever waits (``receive``, ``run``, ``send``, ``end``) also reads, answers
PINGs and keeps time. Threads may share a connection: one reads at a time, frames leave whole, and a
thread that waits to write still reads, so that two peers who both write cannot block each other.
Waiting is by ``poll``, so gevent's monkey patching turns it into waiting for a greenlet's turn.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._implementation import Protocol
from .connection import Details, WatershedConnection, checked_message, checked_ping, logger
from .core.events import Event
from .core.states import State
from .errors import ConnectionClosed
from .sockets import BlockingSocket

if TYPE_CHECKING:
    from .background import Background

__all__ = ["ThreadConnection"]

# A thread that only sends looks this often, in seconds, whether the peer has gone: looking costs a system call.
_LOOK_EVERY = 0.05


class ThreadConnection(WatershedConnection):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting blocks the calling thread."""

    def __init__(self, details: Details, protocol: Protocol, sock: socket.socket, head: bytes = b"") -> None:
        self._socket = BlockingSocket(sock)
        self._head = head
        # _state guards the core and the queue, and is never held while waiting or while calling a handler.
        self._state = threading.Condition()
        self._reader: int | None = None
        self._writing = threading.Lock()
        self._looked = 0.0
        self._unsent = 0
        self._heard: list[Event] = []
        self._half_closed = False
        self._running = False
        self._finished = False
        self._background: Background | None = None
        super().__init__(details, protocol)

    # --- what the application calls ----------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message came in time; none is lost.
            LocalProtocolError: handlers for messages are registered.
        """
        self._check_pull()
        until = None if timeout is None else time.monotonic() + timeout
        late = False
        while True:
            with self._state:
                if self._queue:
                    return self._take_message()
                # To ask for more is to have replied to what came before.
                self._core.messages_handed_over(time.monotonic())
            self._flush(wait=True)
            if self._core.ended:
                self._wind_down()
                raise self._closed_error()
            if late:
                raise TimeoutError(f"no message came within {timeout:g} seconds")
            self._read(until)
            # Judged before the next look, so that what has come in time is taken, with a timeout of 0 as well.
            late = until is not None and time.monotonic() >= until

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str | bytes:
        try:
            return self.receive()
        except ConnectionClosed:
            raise StopIteration from None

    def send(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send one message, ``str`` as TEXT, bytes-like as BINARY, and wait until the kernel has taken it all.

        Any number of threads may send: frames are written whole and in order.

        Raises:
            ConnectionClosed: the connection is ending or has ended, or the peer has stopped reading.
            LocalProtocolError: the text cannot be encoded.
            TypeError: neither text nor bytes.
        """
        if self._background is not None:
            self._background.send(checked_message(data))
            return
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._look()
        with self._state:
            self._queue_message(data)
        self._flush(wait=True)
        if self._core.state is State.CLOSED:
            raise self._closed_error()

    def ping(self, data: bytes | str = b"") -> None:
        """Send a PING with up to 125 bytes; :attr:`latency` is known once its PONG has been read.

        Raises as :meth:`send`.
        """
        if self._background is not None:
            self._background.call("ping", checked_ping(data))
            return
        with self._state:
            self._queue_ping(data)
        self._flush(wait=True)

    def end(self, reason: str = "", *, code: int = 1000) -> None:
        """Close: send a Close frame, wait for the peer's and for the end of the TCP stream, close the socket.

        It waits for at most ``close_timeout``. Everything sent before arrives first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        if self._background is not None:
            self._background.call("end", reason, code=code)
            return
        with self._state:
            self._queue_close(code, reason)
        self._wind_down()

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already."""
        if self._background is not None:
            self._background.call("destroy")
            return
        with self._state:
            self._destroyed = True
            self._core.abort()
            self._queue.clear()
        self._close_socket()
        self._finish()

    def run(self) -> tuple[int, str]:
        """Push messages to the handlers, in this thread, until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: whatever a handler raised; the connection has then been closed with 1011.
        """
        self._push = self._running = True
        while True:
            self._dispatch()
            with self._state:
                self._core.messages_handed_over(time.monotonic())
            self._flush(wait=True)
            if self._core.ended or self._handler_error is not None:
                break
            self._read(None)
        self._running = False
        self._wind_down()
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    def run_in_background(self) -> None:
        """Hand the connection to the process's event-loop thread and return at once.

        Handlers are called in order, one at a time, on a bounded pool of threads, so that they may
        block. The socket belongs to the loop from now on.
        """
        from .background import Background  # starts threads when used, hence not imported by those who do not

        self._push = True
        self._background = Background(self, self._details, self._core, self._queue)
        self._background.start(self._socket.release(), self._head)

    @property
    def in_background(self) -> bool:
        """Whether the connection lives on the process's event-loop thread."""
        return self._background is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection: with 1000, or with 1011 when an exception passes by."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        self.end(code=1011 if failed else 1000)

    # --- reading -----------------------------------------------------------------------------------------

    def _read(self, until: float | None, *, winding_down: bool = False) -> None:
        """Wait for bytes and take them, or for another thread that does; return at the latest at ``until``."""
        with self._state:
            if self._queue and not winding_down:
                return  # Another thread has read since the caller looked: that may be all that comes.
            if self._reader is not None:
                self._state.wait(None if until is None else max(0.0, until - time.monotonic()))
                at_once: list[Event] | None = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
            else:
                self._reader = threading.get_ident()
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
            if self._reader is not None or self._queue.full or self._core.ended:
                return
            self._reader = threading.get_ident()
        self._tell(self._receive(0.0))

    def _receive(self, deadline: float | None) -> list[Event]:
        """Read once, as the one thread that has claimed to be the reader, and give the core what came."""
        try:
            data = self._head or self._socket.receive(deadline)
            self._head = b""
            now = self._looked = time.monotonic()
            if data and self._trace is not None:
                self._trace("read-buffer", self, data)
            with self._state:
                events: list[Event] = []
                if data:
                    events += self._core.receive_data(data, now)
                elif data is not None:
                    self._core.receive_eof()
                events += self._core.handle_timeout(now, self._unsent)
                return self._take(events)
        finally:
            with self._state:
                self._reader = None
                self._state.notify_all()

    def _tell(self, at_once: list[Event]) -> None:
        self._flush(wait=False)
        for event in at_once:
            self._emit_event(event)

    # --- writing -----------------------------------------------------------------------------------------

    def _flush(self, *, wait: bool) -> None:
        """Write what is queued. Without ``wait``, leave it to the thread that is writing, if there is one."""
        while self._core.unsent_size:
            if not self._begin_writing(wait=wait):
                return  # The writer looks again after it has let the lock go.
            try:
                while True:
                    with self._state:
                        if self._trace is not None:
                            self._trace_sent_close()
                        data = self._core.data_to_send()
                    if not data:
                        break
                    self._write(data)
            finally:
                at_once, self._heard = self._heard, []
                self._writing.release()
            # What was heard while waiting to write is told when the lock is free: handlers may send.
            self._tell(at_once)

    def _begin_writing(self, *, wait: bool) -> bool:
        """Take the writing lock; while another thread has it, keep time in its place."""
        while not self._writing.acquire(blocking=False):
            if not wait:
                return False
            deadline = self._core.next_deadline()
            patience = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if self._writing.acquire(timeout=patience):
                break
            with self._state:
                at_once = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
            self._tell(at_once)
            if self._core.state is State.CLOSED:
                self._socket.shutdown()  # wakes the writer, who had an older deadline in mind
        return True

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = self._socket.send(rest)
            if sent is None:
                with self._state:
                    self._core.receive_eof()
                break
            rest = rest[sent:]
            if sent == 0:
                self._unsent = len(rest)
                if not self._wait_to_write():
                    break
        if self._unsent:
            self._unsent = 0
            with self._state:
                self._core.writing_resumed()

    def _wait_to_write(self) -> bool:
        """Wait until the kernel takes more, and read meanwhile; False when the peer has been given up."""
        with self._state:
            self._core.write_paused = True
            self._core.read_paused = self._queue.full
            read = self._reader is None and not self._queue.full and not self._core.ended
            if read:
                self._reader = threading.get_ident()
            deadline = self._core.next_deadline()
        if self._socket.wait_to_write(deadline, read=read):
            at_once = self._receive(0.0)
        else:
            with self._state:
                if read:
                    self._reader = None
                    self._state.notify_all()
                at_once = self._take(self._core.handle_timeout(time.monotonic(), self._unsent))
        self._heard += at_once
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
        self._socket.shutdown()  # wakes whoever waits on it, as a descriptor must not be closed under them
        with self._writing, self._state:
            while self._reader is not None:
                self._state.wait()
            self._socket.close()

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

    def _now(self) -> float:
        return time.monotonic()
