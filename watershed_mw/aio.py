"""The asyncio flavour: a connection on an asyncio transport, plain or TLS, of any event loop.

It moves bytes, waits, and calls handlers; when to answer, to pause and to give up is decided by
the core. Frames produced in one turn of the loop leave in one write at its end, as a system call
costs more than everything else about a small message.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import Any, Self

from ._implementation import Protocol
from .alarm import Entry, alarm_of
from .connection import Details, WatershedConnection, checked_message, checked_ping, logger
from .core.codes import encode_close
from .core.events import Event
from .core.flow import ReceiveQueue
from .core.states import State
from .errors import ConnectionClosed, LocalProtocolError

__all__ = ["AsyncConnection"]

# Seconds that a TLS peer gets to end the stream by itself after it broke the protocol.
_TLS_LINGER = 1.0
# Past this many bytes a write is not held back until the end of the turn.
_WRITE_NOW = 64 * 2**10


class _Ready:
    """An awaitable that is done: what ``send`` returns while the peer keeps up."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]


_READY = _Ready()


class _Pending:
    """An awaitable that costs nothing, and warns of nothing, until somebody awaits it."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Any) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()  # type: ignore[no-any-return]


class AsyncConnection(WatershedConnection, asyncio.Protocol):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting is awaited.

    Every method may be called from the loop's thread; ``send``, ``ping``, ``end`` and ``destroy``
    from any other as well.
    """

    def __init__(
        self,
        details: Details,
        protocol: Protocol,
        transport: asyncio.Transport,
        *,
        queue: ReceiveQueue | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._transport = transport
        self._previous: asyncio.BaseProtocol | None = None
        self._keep: Any = None
        self._entry: Entry | None = None
        self._armed_state: State | None = None
        self._flush_set = False
        self._reading = False
        self._running = False
        self._advancing = False
        self._writing_paused = False
        self._half_closed = False
        self._closing: asyncio.TimerHandle | None = None
        self._lost = False
        self._busy: asyncio.Task[None] | None = None
        self._waiting: deque[Awaitable[Any]] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []
        self._closers: list[asyncio.Future[None]] = []
        super().__init__(details, protocol)
        if queue is not None:
            self._queue = queue

    def attach(self, head: bytes = b"", keep: Any = None, *, eof: bool = False) -> None:
        """Take the transport over from whatever protocol it had, and begin to read.

        Args:
            head: bytes that were read past the opening handshake.
            keep: object that must live as long as the connection, such as a StreamWriter that
                would close the transport when it is collected.
            eof: whether the stream's end was read, too: the transport will not tell of it again.
        """
        previous = self._transport.get_protocol()
        self._previous = None if previous is self else previous
        self._keep = keep
        self._transport.set_protocol(self)
        if head:
            self._transport.pause_reading()  # what came first is read first
        # Handlers that are registered in this turn of the loop must see what came with the handshake.
        self._loop.call_soon(self._start_reading, head, eof)

    def _start_reading(self, head: bytes, eof: bool) -> None:
        try:
            if head and not self._lost:
                self.data_received(head)
        finally:
            if not self._lost and not self._core.read_paused:
                self._transport.resume_reading()
        if eof and not self._lost:
            self.eof_received()
        self._advance_and_settle()

    # --- asyncio calls these ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came from the peer."""
        if self._trace is not None:
            self._trace("read-buffer", self, data)
        self._reading = True
        try:
            self._tell(self._take(self._core.receive_data(data, time.monotonic())))
            self._advance()
        finally:
            self._reading = False
        self._settle()

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream; whatever is queued still goes out."""
        self._core.receive_eof()
        self._advance_and_settle()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._lost = True
        if exc is not None and not self._core.ended and not isinstance(exc, ConnectionError):
            self._error = exc
        self._core.receive_eof()
        if self._entry is not None:
            alarm_of(self._loop).cancel(self._entry)
            self._entry = None
        if self._closing is not None:
            self._closing.cancel()
        self._advance_and_settle()
        self._wake(self._drainers)
        self._wake(self._closers)
        if self._previous is not None:
            # Whoever had the transport before may be waiting for its end, as StreamWriter.wait_closed does.
            self._previous.connection_lost(exc)
        self._previous = self._keep = None

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write."""
        self._writing_paused = True
        self._core.write_paused = True

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writing_paused = False
        self._core.writing_resumed()
        self._wake(self._drainers)
        self._await_results(self._emit("drain"))
        self._advance_and_settle()

    # --- what the application calls ----------------------------------------------------------------------

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message came in time; none is lost.
            LocalProtocolError: handlers for messages are registered, or another task is receiving.
        """
        self._check_pull()
        while not self._queue:
            # To ask for more is to have replied to what came before.
            self._hand_over()
            if self._core.ended:
                raise self._closed_error()
            if self._receiver is not None:
                raise LocalProtocolError("expected one task to receive at a time, got a second one")
            self._receiver = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._receiver
            finally:
                self._receiver = None
        message = self._take_message()
        self._update_reading()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    def send(self, data: str | bytes | bytearray | memoryview) -> Awaitable[None]:
        """Send one message: ``str`` as TEXT, bytes-like as BINARY; from any thread, never blocking.

        Returns:
            an awaitable that is done once the peer keeps up; awaiting it is optional, but a peer that
            does not read is given up when ``max_unsent_bytes`` have piled up.

        Raises:
            ConnectionClosed: the connection is ending or has ended.
            LocalProtocolError: the text cannot be encoded.
            TypeError: neither text nor bytes.
        """
        if threading.get_ident() != self._thread:
            copy = checked_message(data)
            self._from_thread(lambda: self.send(copy), sending=True)
            return _READY
        self._queue_message(data)
        self._wrote()
        return _Pending(self._drained) if self._writing_paused else _READY

    def ping(self, data: bytes | str = b"") -> Awaitable[None]:
        """Send a PING with up to 125 bytes; :attr:`latency` tells when its PONG has come. Raises as :meth:`send`."""
        if threading.get_ident() != self._thread:
            payload = checked_ping(data)
            self._from_thread(lambda: self.ping(payload), sending=True)
            return _READY
        self._queue_ping(data)
        self._wrote()
        return _READY

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """Begin the closing handshake (RFC 6455 section 7.1.2); everything sent before arrives first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Returns:
            an awaitable that is done when the TCP stream is closed, after at most ``close_timeout``.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        if threading.get_ident() != self._thread:
            encode_close(code, reason)  # raises here what nobody would see over there
            self._from_thread(lambda: self.end(reason, code=code))
            return _READY
        self._queue_close(code, reason)
        self._advance_and_settle()
        return _Pending(self.wait_closed)

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already."""
        if threading.get_ident() != self._thread:
            self._from_thread(self.destroy)
            return
        self._destroyed = True
        self._core.abort()
        self._queue.clear()
        self._advance_and_settle()
        if not self._lost:
            self._transport.abort()  # it may be closing already, in its own time

    async def run(self) -> tuple[int, str]:
        """Push messages to the handlers until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: whatever a handler raised; the connection has then been closed with 1011.
        """
        self._push = self._running = True
        self._advance_and_settle()
        try:
            while not self._finished():
                await self._wait_in(self._closers)
        finally:
            self._running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """Wait until the TCP stream is closed, which ``close_timeout`` bounds once the end has begun."""
        while not self._lost:
            await self._wait_in(self._closers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection: with 1000, or with 1011 when an exception passes by."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        await self.end(code=1011 if failed else 1000)

    # --- one turn ----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Hand over what can be handed over, and tell of the end when it is due."""
        if self._advancing:
            return  # A handler has called end(), say: the loop below goes on when it returns.
        self._advancing = True
        try:
            if self._push:
                # While the peer does not read, replies would only pile up: it has to wait for its own.
                while self._queue and self._busy is None and not (self._writing_paused and not self._lost):
                    self._await_results(self._emit_event(self._queue.take()))
                if not self._queue and self._busy is None:
                    self._core.messages_handed_over(time.monotonic())
            elif self._receiver is not None:
                if not self._queue:
                    self._core.messages_handed_over(time.monotonic())
                if (self._queue or self._core.ended) and not self._receiver.done():
                    self._receiver.set_result(None)
            self._advance_to_end()
        finally:
            self._advancing = False

    def _advance_to_end(self) -> None:
        if self._core.ended and not self._end_emitted and not (self._push and (self._queue or self._busy is not None)):
            self._await_results(self._emit_end())

    def _hand_over(self) -> None:
        self._core.messages_handed_over(time.monotonic())
        if self._core.state is not self._armed_state:
            self._settle()

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self._await_results(self._emit_event(event))

    def _await_results(self, results: list[Any]) -> None:
        """Handlers may be coroutine functions: the next event waits for them, so that order stays."""
        waiting = [
            result for result in results if result is not None and result is not _READY and inspect.isawaitable(result)
        ]
        self._waiting.extend(waiting)
        if self._waiting and self._busy is None:
            self._busy = self._loop.create_task(self._await_waiting())

    async def _await_waiting(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()
                except ConnectionClosed:
                    pass  # A reply came too late, as the end itself tells.
                except Exception as error:  # noqa: BLE001  # whatever it is, it ends this connection alone
                    self._handler_failed(error)
        finally:
            self._busy = None
            self._advance_and_settle()

    def _handler_failed(self, error: BaseException) -> None:
        super()._handler_failed(error)
        if not self._running:
            # Nobody waits in run(): the exception must not vanish.
            logger.error("a handler of %r raised", self, exc_info=error)

    def _settle(self) -> None:
        """Write what is due, follow the core's wishes about reading and closing, and set the timer."""
        if self._lost:
            if self._finished():
                self._wake(self._closers)
            return
        core = self._core
        self._flush()
        self._update_reading()
        if core.state is not self._armed_state:
            self._arm()
            if core.state is State.CLOSED:
                done = self._transport.get_write_buffer_size() == 0 and self._transport.can_write_eof()
                if self._destroyed or self._half_closed or done:
                    self._transport.abort()
                else:
                    # Nothing more will be read, but what was sent before may still arrive, and over TLS the peer is
                    # due a close_notify (RFC 8446 section 6.1): within bounds.
                    self._transport.close()
                    patience = time.monotonic() + self._details.limits.close_timeout
                    self._entry = alarm_of(self._loop).set(patience, self._transport.abort)
            elif core.half_close and not self._half_closed:
                self._half_closed = True
                self._half_close()

    def _half_close(self) -> None:
        if not self._transport.can_write_eof():
            # TLS knows no half-close: close() sends close_notify after what is queued, and does not read what still
            # comes. After the peer's Close nothing does; one that broke the protocol gets a moment to read ours.
            delay = 0.0 if self._core.close_received else min(_TLS_LINGER, self._details.limits.close_timeout)
            self._closing = self._loop.call_later(delay, self._transport.close)
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the peer has gone already, which asyncio only notices here

    def _arm(self) -> None:
        self._armed_state = self._core.state
        deadline = self._core.next_deadline()
        interval = self._details.limits.ping_interval
        if deadline is not None and interval is not None and self._core.state is State.OPEN:
            # The answer to a PING brings the next PING forward, of which nothing tells this timer: it asks in time.
            deadline = min(deadline, time.monotonic() + interval)
        if self._entry is not None:
            if deadline is not None and self._entry.callback is not None and self._entry.when <= deadline:
                return  # It rings early and asks again, which is cheaper than moving it.
            alarm_of(self._loop).cancel(self._entry)
            self._entry = None
        if deadline is not None:
            self._entry = alarm_of(self._loop).set(deadline, self._ring)

    def _ring(self) -> None:
        self._entry = None
        events = self._core.handle_timeout(time.monotonic(), self._transport.get_write_buffer_size())
        self._tell(self._take(events))
        self._advance_and_settle()
        if not self._lost and self._entry is None:
            self._arm()

    # --- writing and reading -----------------------------------------------------------------------------

    def _wrote(self) -> None:
        if self._core.unsent_size >= _WRITE_NOW:
            self._flush()
        elif not self._flush_set and not self._reading:  # data_received flushes when it is done
            self._flush_set = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_set = False
        if self._trace is not None:
            self._trace_sent_close()
        data = self._core.data_to_send()
        if not data or self._lost or self._half_closed:
            return
        # One message may be larger than the limit: it is piling more on top that ends the connection.
        paused = self._writing_paused
        self._transport.write(data)
        if paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent > self._details.limits.max_unsent_bytes:
                self._error = LocalProtocolError(
                    f"expected the peer to read, or the application to wait for send(); got {unsent} bytes unsent, "
                    f"more than max_unsent_bytes"
                )
                self._core.abort()
                self._loop.call_soon(self.destroy)

    def _update_reading(self) -> None:
        # Once the end has begun, only the peer's Close or the end of the stream is awaited.
        pause = self._queue.full and self._core.state is State.OPEN
        if pause is not self._core.read_paused and not self._lost:
            self._core.read_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # --- waiting -----------------------------------------------------------------------------------------

    async def _drained(self) -> None:
        while self._writing_paused and not self._lost:
            await self._wait_in(self._drainers)

    async def _wait_in(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in tuple(waiters):
            if not waiter.done():
                waiter.set_result(None)

    def _finished(self) -> bool:
        return self._lost and not (self._push and (self._queue or self._busy is not None)) and self._end_emitted

    def _from_thread(self, call: Any, *, sending: bool = False) -> None:
        if sending and not self._core.sending:
            raise self._closed_error()

        def guarded() -> None:
            try:
                call()
            except ConnectionClosed:
                pass  # It ended between the two threads; its handlers know.

        try:
            self._loop.call_soon_threadsafe(guarded)
        except RuntimeError:
            raise self._closed_error() from None  # The loop is closed, and every connection with it.

    def _handlers_changed(self) -> None:
        # Soon, not now: the application registers its other handlers in the same turn.
        if self._queue:
            self._loop.call_soon(self._advance_and_settle)

    def _advance_and_settle(self) -> None:
        self._advance()
        self._settle()

    def _now(self) -> float:
        return time.monotonic()
