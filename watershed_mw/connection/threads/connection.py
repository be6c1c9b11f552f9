"""The threads flavour as applications hold it: receive and send, blocking the calling thread.

Any number of threads may share a connection. Its driver moves the bytes (``driver.py``); what calls handlers is here.
A connection that runs in the background passes every call on to the event loop.
"""

from __future__ import annotations

import inspect
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ...core.events import Event
from ...core.handshake.negotiation import Agreement
from ...core.payloads import Sendable
from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...errors import ConnectionClosed, UnsupportedServerError
from ..base import (
    ConnectionInfo,
    Handler,
    WatershedConnection,
    checked_message,
    checked_ping,
    log_handler_failure,
)
from .driver import LOOK_EVERY, ThreadsDriver
from .stream import SharedStream, receive_alone, take_event
from .watcher import FORGET, watch

if TYPE_CHECKING:
    from ..aio.api import AsyncHandler
    from .background import Background

__all__ = ["ThreadConnection"]

# Looked up once: a member of an Enum costs as much as a clock's time, and more than a lock that is free.
_OPEN = State.OPEN
_CLOSED = State.CLOSED


class ThreadConnection(WatershedConnection):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting blocks the calling thread.

    Any number of threads may send and receive at once; each message is received by one of them. While no thread waits,
    one watcher thread per process answers PINGs, sends keepalive PINGs and buffers messages up to the queue's bound;
    it calls no handler.
    """

    __slots__ = (
        "_background",
        "_driver",
        "_role",
        "_stream",
        "in_background",
        "no_background",
    )

    _core: Protocol

    def __init__(self, info: ConnectionInfo, protocol: Protocol, sock: socket.socket, head: bytes = b"") -> None:
        self._background: Background | None = None
        self.in_background = False
        self.no_background = ""
        self._role = info.role
        # All of it first: other threads know the connection as soon as the base class has registered it.
        queue = ReceiveQueue(info.limits)
        self._stream = SharedStream(protocol, queue, sock, head)
        self._driver = ThreadsDriver(self._stream)
        super().__init__(info, protocol, queue)
        self._stream.tracer = self._trace
        watch(self)

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message came in time; none is lost.
            LocalProtocolError: handlers for messages are registered.
        """
        if self._push:
            self._check_pull()
        until = None if timeout is None else time.monotonic() + timeout
        late = False
        core, stream = self._core, self._stream
        event: Event | bool | None
        while True:
            if self._queue:
                if self._account is not None:
                    self._driver.update_memory(self, self._queue.first_size())
                # No call from here to the return: no exception of a signal's handler comes in between.
                (event,) = map(take_event, (stream,))
                if event.__class__ is str or event.__class__ is bytes:
                    return event
                if event is not None:
                    self._handlers.emit_event(self, event)
            if core.state is not _OPEN:
                with stream.turns.lock:
                    if not self._queue:
                        # To ask for more is to have replied to what came before.
                        core.messages_handed_over(time.monotonic())
                if not self._queue and self._driver.is_over and self._driver.wind_down(self, until):
                    raise self._closed_error()
            if late:
                raise TimeoutError(f"no message came within {timeout:g} seconds")
            if until is None and self._account is None:
                (event,) = map(receive_alone, (stream,), (self,))
                if event.__class__ is str or event.__class__ is bytes:
                    return event
                if event is not False:
                    self._driver.follow_up(self)
                    continue
            self._driver.drive(self, until)
            # Checked before the next look, so that what has come in time is taken, with a timeout of 0 as well.
            late = until is not None and time.monotonic() >= until

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str | bytes:
        try:
            return self.receive()
        except ConnectionClosed:
            raise StopIteration from None

    def send(self, data: Sendable) -> None:
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
        stream = self._stream
        if time.monotonic() - stream.looked > LOOK_EVERY:
            self._driver.look(self)
        position = stream.send_at_once(self, data)
        if position:
            self._driver.follow_up(self)
            self._driver.write_until(self, position)
            if self._core.state is _CLOSED and not self._driver.writer.has_written(position):
                raise self._closed_error()

    def ping(self, data: Sendable = b"") -> None:
        """Send a PING with up to 125 bytes; :attr:`latency` is known once its PONG has been read.

        Raises as :meth:`send`.
        """
        if self._background is not None:
            self._background.call("ping", checked_ping(data))
            return
        with self._stream.turns.lock:
            self._queue_ping(data)
            position = self._core.outgoing.bytes_sent
        self._driver.writer.flush(self)
        self._driver.write_until(self, position)

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
        with self._stream.turns.lock:
            self._queue_close(code, reason)
        try:
            self._driver.wind_down(self)
        except BaseException:
            self.end_in_thread(reason, code=code)
            raise

    def end_in_thread(self, reason: str = "", *, code: int = 1000) -> None:
        """Close as :meth:`end` does, in a thread that is started for it, and wait for nothing."""
        if self._background is None and not self._end_emitted:
            self.start_close(reason, code=code)
            try:
                threading.Thread(target=self._driver.wind_down, args=(self,), name="watershed-end", daemon=True).start()
            except RuntimeError:
                self.destroy()  # the interpreter is on its way out, and starts no thread any more

    def start_close(self, reason: str = "", *, code: int = 1000) -> None:
        """Send a Close frame as :meth:`end` does, and wait for nothing.

        A thread that is waiting sees the end through, or the process's watcher does.
        """
        if self._background is not None:
            self._background.call_soon("end", reason, code=code)
            return
        with self._stream.turns.lock:
            self._queue_close(code, reason)
        self._driver.writer.flush(self)

    def abort(self) -> None:
        """Break the TCP stream, so that every waiting thread wakes up and sees the end."""
        if self._background is not None:
            self._background.call_soon("destroy")
        else:
            self._stream.socket.shutdown()

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already."""
        if self._background is not None:
            self._background.call("destroy")
            return
        with self._stream.turns.lock:
            self._destroyed = True
            self._core.abort()
            self._queue.clear()
        self._driver.close(self)

    def run(self) -> tuple[int, str]:
        """Push messages to the handlers, in this thread, until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: whatever a handler raised; the connection has then been closed with 1011.
        """
        self._push = self._ran = self._driver.running = True
        try:
            self._run()
        finally:
            self._driver.running = False
        self._driver.wind_down(self)
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    def _run(self) -> None:
        core, stream = self._core, self._stream
        event: Event | bool
        while True:
            self._driver.dispatch(self)
            if core.state is not _OPEN:
                with stream.turns.lock:
                    core.messages_handed_over(time.monotonic())
                if self._driver.is_over:
                    return
            if self._handler_error is not None:
                return
            (event,) = map(receive_alone, (stream,), (self,)) if self._account is None else (False,)
            if event is False:
                self._driver.drive(self, None)
            elif event is True:
                self._driver.follow_up(self)
            else:
                self._handlers.emit_event(self, event)

    def run_in_background(self, handler: AsyncHandler | None = None) -> None:
        """Hand the connection to the process's event-loop thread and return at once.

        Without ``handler`` those of events are called in order, one at a time, on a bounded pool of threads, so that
        they may block. Under gevent and eventlet, where threads are cheap, it is one of theirs that calls them.

        Args:
            handler: a coroutine function, run on that loop with the connection as an
                :class:`~watershed_mw.AsyncConnection`; what it leaves open is ended when it returns.

        Raises:
            UnsupportedServerError: the server's process ends with the request.
            TypeError: ``handler`` is no coroutine function.
            OSError, RuntimeError: the process has no descriptor or thread for its event loop, or another thread waits
                in ``receive`` or ``send`` and goes on waiting; nothing has changed.
        """
        if self.no_background:
            raise UnsupportedServerError(self.no_background)
        if handler is not None and not inspect.iscoroutinefunction(handler):
            raise TypeError(
                f"expected a coroutine function (async def) to run in the background, got {handler!r}: register "
                'functions with on("text", ...) instead'
            )
        from ...runtime.greenlets import threads_are_greenlets
        from .background import BackgroundEvents, BackgroundHandler  # start threads, hence not for those who do not

        if handler is None and threads_are_greenlets():
            running = threading.Thread(target=self._run_for_nobody, daemon=True)
            self._push = self._ran = self.in_background = True
            running.start()
            return
        parts = (self._core, self._queue, self._closed_as)
        # It may raise: then the connection is as it was.
        background = BackgroundEvents(*parts) if handler is None else BackgroundHandler(*parts, handler)
        self._driver.claim()
        self._push = handler is None
        self._ran = self.in_background = True
        self._close_account()  # the loop's side has its own
        self._background = background
        info = ConnectionInfo(
            role=self._role,
            agreement=Agreement(self.protocol),
            limits=self._limits,
            request=self.request,
            remote=self.remote,
            local=self.local,
            trace=self._trace,
            closed=self._closed_as,
            ended=None if handler is None else self._on_ended,
            shutdown_code=self._shutdown_code,
            continues=self,
            listed=handler is not None,  # with handlers of events this stays the connection that the application knows
        )
        background.start(self, info, *self._driver.release())

    def _run_for_nobody(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001  # no caller is there to raise it to
            log_handler_failure(self, error)
            self.end(code=1011)  # it may have left run() before that had seen the end through

    def _poll_state(self, now: float) -> tuple[int, int]:
        """As the watcher says."""
        return (-1, FORGET) if self._background is not None else self._driver.poll_state(self, now)

    def _serve(self) -> None:
        """As the watcher says."""
        if self._background is None:
            self._driver.serve(self)

    def _memory_changed(self) -> None:
        """As the base class says. The thread that reads notices by itself that reading pauses, or resumes."""
        account = self._account
        if account is None or not account.ending:
            return
        with self._stream.turns.lock:
            if account.recovered():
                return
            error, unreachable = account.error(), account.unsent_most
            self._queue.clear()
            self._handlers.sort(self, self._core.fail(error, time.monotonic()))
            self._stream.turns.notify()
        self._close_account()
        if unreachable:
            self._stream.socket.shutdown()
        else:
            self._driver.writer.flush(self)

    def on(self, event: str, handler: Handler | None = None) -> Any:
        """As the base class says.

        Raises:
            TypeError: the handler is a coroutine function, which no thread can await.
        """
        if inspect.iscoroutinefunction(handler):
            raise TypeError(
                f"expected a function that may block as handler of {event!r}, got the coroutine function {handler!r}: "
                "pass a coroutine function to run_in_background() instead, and register it there"
            )
        return super().on(event, handler)

    def _handler_failed(self, error: BaseException) -> None:
        if self._background is not None:
            # No thread waits in run(): the exception must not vanish.
            log_handler_failure(self, error)
            self._background.call("end", code=1011)
            return
        if not self._driver.running:
            log_handler_failure(self, error)
        with self._stream.turns.lock:
            super()._handler_failed(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection: with 1000, or with 1011 when an exception passes by."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        if error is None:
            self.warn_if_never_run()
        self.end(code=1011 if failed else 1000)
