"""The threads flavour as applications hold it: receive and send, blocking the calling thread.

Any number of threads may share a connection. What happens underneath is the shell's business
(``threads_shell.py``); a connection that runs in the background passes every call on to the loop.
"""

from __future__ import annotations

import inspect
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .connection import Handler, checked_message, checked_ping, logger
from .core.payloads import Sendable
from .core.states import State
from .errors import ConnectionClosed, UnsupportedServerError
from .threads_shell import LOOK_EVERY, ThreadsShell

if TYPE_CHECKING:
    from .aio import AsyncHandler

__all__ = ["ThreadConnection"]

# Looked up once: a member of an Enum costs as much as a clock's time, and more than a lock that is free.
_OPEN = State.OPEN
_CLOSED = State.CLOSED


class ThreadConnection(ThreadsShell):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting blocks the calling thread."""

    __slots__ = ("__dict__",)  # for what an application keeps there

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
        message: str | bytes = b""
        core = self._core
        while True:
            with self._state:
                if self._queue:
                    message = self._take_message()
                    break
                if core.state is not _OPEN:
                    # To ask for more is to have replied to what came before.
                    core.messages_handed_over(time.monotonic())
                idle = until is None and core.state is _OPEN and not core.unsent_size
                alone = idle and self._account is None and self._begin_reading()
            if alone:
                # Nothing else to see to: most messages come this way.
                try:
                    data = self._await_bytes(core.next_deadline())
                    with self._state:
                        events = self._take_bytes(data)
                        if len(events) == 1 and self._trace is None and not core.unsent_size:
                            event = events[0]
                            if isinstance(event, (str, bytes)):
                                return event  # past the queue, as nobody else has read meanwhile
                        at_once = self._take(events)
                except BaseException:
                    self._read_no_more()
                    raise
                self._update_memory()
                self._tell(at_once)
                continue
            if core.unsent_size:
                self._flush(wait=True)
            if core.ended:
                self._wind_down()
                raise self._closed_error()
            if late:
                raise TimeoutError(f"no message came within {timeout:g} seconds")
            self._read(until)
            # Judged before the next look, so that what has come in time is taken, with a timeout of 0 as well.
            late = until is not None and time.monotonic() >= until
        if self._account is not None:
            self._update_memory()
        return message

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
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._look()
        with self._state:
            self._queue_message(data)
            # Most messages go straight on, with nothing before them and nobody else writing.
            frame = self._core.data_to_send() if self._writing.acquire(False) else None
        if frame is not None:
            try:
                self._write(frame)
            finally:
                self._end_writing()
        if self._core.unsent_size:
            self._flush(wait=True)
        if self._core.state is _CLOSED:
            raise self._closed_error()

    def ping(self, data: Sendable = b"") -> None:
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

    def begin_end(self, reason: str = "", *, code: int = 1000) -> None:
        """Send a Close frame as :meth:`end` does, and wait for nothing; whoever is waiting sees the end through.

        It learns of ``close_timeout`` when it wakes: by what the peer does, or when keepalive is due.
        """
        if self._background is not None:
            self._background.call_soon("end", reason, code=code)
            return
        with self._state:
            self._queue_close(code, reason)
        self._flush(wait=False)

    def break_off(self) -> None:
        """Break the TCP stream, so that whoever is waiting wakes up and sees the end."""
        if self._background is not None:
            self._background.call_soon("destroy")
        else:
            self._socket.shutdown()

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
        self._push = self._running = self._ran = True
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
            OSError, RuntimeError: the process has no descriptor or thread for its event loop; nothing has changed.
        """
        if self.no_background:
            raise UnsupportedServerError(self.no_background)
        if handler is not None and not inspect.iscoroutinefunction(handler):
            raise TypeError(
                f"expected a coroutine function (async def) to run in the background, got {handler!r}: register "
                'functions with on("text", ...) instead'
            )
        from .background import BackgroundEvents, BackgroundHandler  # start threads, hence not for those who do not
        from .loop_thread import threads_are_greenlets

        if handler is None and threads_are_greenlets():
            running = threading.Thread(target=self._run_for_nobody, daemon=True)
            self._push = self._ran = self.in_background = True
            running.start()
            return
        parts = (self._details, self._core, self._queue)
        # It may raise: then the connection is as it was.
        background = BackgroundEvents(*parts) if handler is None else BackgroundHandler(*parts, handler)
        self._close_account()  # the loop's side has its own
        self._push = handler is None
        self._ran = self.in_background = True
        self._background = background
        background.start(self, self._socket.release(), self._head)

    def _run_for_nobody(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001  # there is nobody to raise it to
            logger.error("a handler of %r raised", self, exc_info=error)
            self.end(code=1011)  # it may have left run() before that had seen the end through

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
