"""The asyncio flavour as an application uses it: what it calls, and what it waits for.

Bytes and time are handled by the driver (``driver.py``). Calls from other threads are checked in that thread, and
carried over to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from ...core.memory_budget import MAX_PAUSE, Account
from ...core.payloads import Sendable
from ...core.prepared import PreparedMessage
from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...errors import ConnectionClosed
from ...runtime.loop_end import end_with
from ...runtime.timers import timers_of
from ...sockets.tls_views import break_stream
from ..awaitables import READY, NextTurn, Pending, Wakeup, on_loop
from ..base import ConnectionInfo, live_connections, log_handler_failure
from .api import AsyncConnection
from .driver import AsyncioDriver
from .writer import SENDS_PER_TURN

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.pythread import PyThread_get_thread_ident as get_ident
    from cython.cimports.cpython.time import monotonic
else:
    from threading import get_ident
    from time import monotonic

__all__ = ["AsyncioConnection"]

_MOST_SENDS = SENDS_PER_TURN  # a C number where this is compiled
# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN


class AsyncioConnection(AsyncioDriver):
    """An :class:`~watershed_mw.AsyncConnection` that owns a transport of an event loop."""

    __slots__ = ("_thread",)

    def __init__(
        self,
        info: ConnectionInfo,
        protocol: Protocol,
        transport: asyncio.Transport,
        *,
        queue: ReceiveQueue | None = None,
    ) -> None:
        self._thread = get_ident()
        super().__init__(info, protocol, transport, queue)
        end_with(self._loop, _living)

    def attach(self, head: bytes = b"", keep: Any = None, *, eof: bool = False) -> None:
        """Take the transport over from whatever protocol it had, and begin to read.

        Args:
            head: bytes that were read past the opening handshake.
            keep: object that must live as long as the connection, such as a StreamWriter that
                would close the transport when it is collected.
            eof: whether the stream's end was read, too: the transport will not report it again.
        """
        previous = cast(Any, self._transport.get_protocol())
        self._previous = None if previous is self else previous
        self._keep = keep
        self._transport.set_protocol(cast(asyncio.Protocol, self))
        if head and not self._transport.is_closing():
            self._transport.pause_reading()  # what came first is read first
        # Handlers that are registered in this iteration of the event loop must see what came with the handshake.
        self._loop.call_soon(self._start_reading, head, eof)

    def _start_reading(self, head: bytes, eof: bool) -> None:
        try:
            if head and not self._writer.lost:
                self.data_received(head)
            if not self._writer.lost and not self._core.read_paused and not self._transport.is_closing():
                self._transport.resume_reading()
            if eof and not self._writer.lost:
                self.eof_received()
            self._advance_and_apply_state()
        except BaseException:
            self._transport.abort()  # the loop only logs it, and the peer would wait for ever
            raise

    # --- messages that come ------------------------------------------------------------------------------

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """As the base class says; a message that is there is returned at once."""
        if get_ident() != self._thread:
            message: str | bytes = await self._await_on_loop(lambda: self.receive(timeout))
            return message
        if self._push:
            self._check_pull()
        if timeout is not None:
            async with asyncio.timeout(timeout):
                await self._expect_message()
        elif self._dispatcher.wakeup.state:
            await self._take_turn()
        while self._queue.count == 0:
            if self._is_over():
                await self._pause()
                raise self._closed_error()
            await self._expect_wakeup()
        return self._next_message()

    async def __anext__(self) -> str | bytes:
        if get_ident() != self._thread:
            return await AsyncConnection.__anext__(self)
        # Not by way of receive(), as most connections are waiting here, and each would keep a second coroutine.
        if self._push:
            self._check_pull()
        if self._dispatcher.wakeup.state:
            await self._take_turn()
        while self._queue.count == 0:
            if self._is_over():
                await self._pause()
                raise StopAsyncIteration
            await self._expect_wakeup()
        return self._next_message()

    async def _expect_message(self) -> None:
        """Wait for this task's turn, and for a message or the end, in the middle of :meth:`receive`."""
        if self._dispatcher.wakeup.state:
            await self._take_turn()
        while self._queue.count == 0 and not self._is_over():
            await self._expect_wakeup()

    async def _take_turn(self) -> None:
        """Wait until the tasks that receive already have got a message each."""
        if self._dispatcher.wakeup.waiter_was_cancelled():
            self._dispatcher.wakeup = Wakeup(self._loop)
        else:
            await self._dispatcher.wakeup.take_turn()

    def _is_over(self) -> bool:
        """Whether no message can come any more. To ask for more is to have replied to what came before."""
        if self._core.state is _OPEN:
            return False
        self._core.messages_handed_over(monotonic())
        if self._core.state is not self._armed_state:
            self._apply_state()
        if not self._core.ended:
            return False
        self._dispatcher.wakeup.pass_on()  # so that every task hears of it
        return True

    def _expect_wakeup(self) -> Wakeup:
        """What to wait for, when it is this task's turn: that a message has come, or the end."""
        if self._writer.scheduled:
            self._flush_and_report()  # it has said what it had to say
        return self._dispatcher.wakeup

    def _next_message(self) -> str | bytes:
        if self._dispatcher.wakeup.line is not None:
            self._dispatcher.wakeup.pass_on()
        event = self._queue.take()
        message = event if isinstance(event, (str, bytes)) else self._message_after(event)
        if not self._writer.corked:  # else the read ends with it: to stop and begin again within takes two system calls
            self._update_reading()
        return message

    def send(self, data: Sendable) -> Awaitable[None]:
        """As the base class says; a lone reply leaves at once, what follows in the same turn of the loop together."""
        if get_ident() != self._thread:
            return self._send_from_thread(data)
        if not self._core.sending:
            return self._send_too_late(data)
        # Nearly everything is exactly this, and not traced.
        if type(data) is str and self._trace is None:
            self._core.send_text(data)
        elif type(data) is bytes and self._trace is None:
            self._core.send_binary(data)
        else:
            self._queue_message(data)
        return self._sent()

    def _send_too_late(self, data: Sendable) -> Awaitable[None]:
        try:
            self._queue_message(data)
        except ConnectionClosed as error:
            return self._refuse(error)
        raise AssertionError("a message was sent on a connection that has ended")

    def _sent(self) -> Awaitable[None]:
        """Have what has just been queued written, now or soon, and return what the application may await."""
        writer = self._writer
        if writer.message_queued(self._queue.count == 0):
            self._loop.call_soon(self._end_turn)
        if writer.over_mark:
            self._check_unsent()
        if writer.paused:
            return Pending(self._drained)
        return READY if writer.sends < _MOST_SENDS else NextTurn()

    def _send_prepared(self, shared: PreparedMessage) -> None:
        if get_ident() != self._thread:
            self._send_from_thread(shared.message)
            return
        core, writer = self._core, self._writer
        if not core.sending:
            return
        frame = core.send_prepared(shared)
        if self._trace is not None:
            self._trace("send-text" if isinstance(shared.message, str) else "send-binary", self, shared.payload)
        if frame:
            # As a lone reply, and past the queue, which would take as long as all else here.
            writer.write(frame)
            if writer.paused:
                self._check_unsent()
        elif not (writer.corked or writer.scheduled):
            self._flush()

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """As the base class says."""
        if get_ident() != self._thread:
            return self._ping_from_thread(data)
        try:
            self._queue_ping(data)
        except ConnectionClosed as error:
            return self._refuse(error)
        return self._sent()

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """As the base class says."""
        if get_ident() != self._thread:
            return self._end_from_thread(reason, code)
        self._queue_close(code, reason)
        self._advance_and_apply_state()
        return Pending(self.wait_closed)

    def destroy(self) -> None:
        """As the base class says."""
        if get_ident() != self._thread:
            self._from_thread(self.destroy)
            return
        self._drop()

    async def run(self) -> tuple[int, str]:
        """As the base class says."""
        self._push = self._ran = self._dispatcher.running = True
        self._advance_and_apply_state()
        try:
            if self._has_finished():
                await self._pause()
            while not self._has_finished():
                await self._expect_change()
        finally:
            self._dispatcher.running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """As the base class says."""
        if get_ident() != self._thread:
            await self._await_on_loop(self.wait_closed)
            return
        self._ran = True
        if self._writer.lost:
            await self._pause()
        while not self._writer.lost or self._core.receiver.backlog:
            await self._expect_change()

    # --- waiting -----------------------------------------------------------------------------------------

    async def _drained(self) -> None:
        while self._writer.is_stalled() and not self._core.ended:
            await self._expect_change()

    def _has_finished(self) -> bool:
        return self._writer.lost and self._dispatcher.has_finished(self)

    async def _await_on_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return await on_loop(self._loop, call)

    def _is_on_loop_thread(self) -> bool:
        return bool(get_ident() == self._thread)

    def _call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)

    # --- handlers ----------------------------------------------------------------------------------------

    def _handlers_changed(self) -> None:
        # Soon, not now: the application registers its other handlers in the same iteration.
        if self._queue:
            self._loop.call_soon(self._push_queued)

    def _push_queued(self) -> None:
        self._advance_and_apply_state()

    def _handler_failed(self, error: BaseException) -> None:
        super()._handler_failed(error)
        if not self._dispatcher.running or isinstance(error, asyncio.CancelledError):
            # run() does not raise it: the exception must not vanish, nor one that ends a task without a word.
            log_handler_failure(self, error)

    def abandon(self) -> None:
        """The connection's application has returned: a handler that is still at work has ``close_timeout`` to end."""
        self._dispatcher.abandon(self._limits.close_timeout)

    @property
    def at_work(self) -> bool:
        """Whether a handler that is a coroutine function has begun and not returned."""
        return self._dispatcher.at_work

    def cancel_handlers(self) -> None:
        """Cancel the handler that is at work, and those that would follow."""
        self._dispatcher.cancel_handlers()

    # --- the process's memory, and the loop's end -----------------------------------------------------------

    def _memory_changed(self) -> None:
        """As the base class says."""
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._apply_memory)

    def _apply_memory(self) -> None:
        account = self._account
        if account is not None and account.ending:
            unsent = 0 if self._writer.lost else self._writer.buffered()
            self._report_memory(self._core.outgoing.unsent_size + unsent)  # what it stands at now
            if not account.recovered():
                self._end_for_memory(account)
                return
        paused = account is not None and account.paused
        if account is not None and paused and not self._flow.held_back:
            timers_of(self._loop).set(account.paused_at + MAX_PAUSE, memory_overdue, account)
        self._flow.held_back = paused
        self._update_reading()

    def _end_for_memory(self, account: Account) -> None:
        error = account.error()
        self._flow.held_back = False
        self._queue.clear()
        self._dispatcher.emit_events(self, self._handlers.sort(self, self._core.fail(error, monotonic())))
        if account.unsent_most:
            self._drop()
        else:
            self._advance_and_apply_state()

    def runs_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether ``loop`` is its event loop."""
        return self._loop is loop

    def break_stream(self) -> None:
        """Let the peer see the end of the TCP stream, though the event loop has stopped."""
        break_stream(self._transport)


def memory_overdue(account: Account) -> None:
    """Reading has been paused for want of memory, perhaps for too long."""
    if account.paused and account.paused_at + MAX_PAUSE <= monotonic():
        account.overdue()
    if account.paused:
        timers_of(asyncio.get_running_loop()).set(account.paused_at + MAX_PAUSE, memory_overdue, account)


def _living(loop: asyncio.AbstractEventLoop) -> list[AsyncioConnection]:
    return [one for one in live_connections() if isinstance(one, AsyncioConnection) and one.runs_on(loop)]
