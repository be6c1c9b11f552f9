"""The threads flavour as applications hold it: receive and send, blocking the calling thread.

Any number of threads may share a connection. What happens underneath is the shell's business
(``threads_shell.py``); a connection that runs in the background passes every call on to the loop.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from .connection import checked_message, checked_ping
from .core.states import State
from .errors import ConnectionClosed
from .threads_shell import LOOK_EVERY, ThreadsShell

__all__ = ["ThreadConnection"]


class ThreadConnection(ThreadsShell):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting blocks the calling thread."""

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
        if time.monotonic() - self._looked > LOOK_EVERY:
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
