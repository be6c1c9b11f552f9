"""Drives the asyncio flavour: moves bytes between an asyncio transport and the protocol, and calls it on deadlines.

The transport may be plain or TLS, of any event loop. The core decides when to answer, to pause and to give up.
``writer.py`` sends, ``reader.py`` receives large data, ``dispatch.py`` awaits handlers that are coroutine functions.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

from ...core.events import Event
from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...errors import LocalProtocolError
from ...runtime.timers import timers_of
from ..awaitables import Waiters
from ..base import ConnectionInfo
from ..zlib_pool import contexts_of
from .api import AsyncConnection
from .dispatch import Dispatcher
from .reader import LARGE_READ, ReadFlow
from .writer import Writer

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.time import monotonic
else:
    from time import monotonic

__all__ = ["AsyncioDriver"]

_LARGE_READ = LARGE_READ  # a C number where this is compiled
# Seconds for a TLS peer to end the stream itself after it violated the protocol.
_TLS_LINGER = 1.0
# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN
_CLOSED = State.CLOSED


class AsyncioDriver(AsyncConnection):
    """Drives an :class:`~watershed_mw.AsyncConnection`, on its loop's thread.

    It implements ``asyncio.Protocol``, but does not inherit from it, as an extension type has only one base.
    """

    __slots__ = (
        "_armed_state",
        "_dispatcher",
        "_eof_waits",
        "_flow",
        "_keep",
        "_loop",
        "_previous",
        "_timer_due",
        "_transport",
        "_waiters",
        "_writer",
    )

    _core: Protocol

    def __init__(
        self, info: ConnectionInfo, protocol: Protocol, transport: asyncio.Transport, queue: ReceiveQueue | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._writer = Writer(protocol, transport, self._loop)
        self._dispatcher = Dispatcher(self._loop)
        self._flow = ReadFlow(protocol)
        self._previous: asyncio.BaseProtocol | None = None
        self._keep: Any = None
        self._timer_due = inf
        self._armed_state: State | None = None
        self._waiters: Waiters | None = None  # most connections never have any
        self._eof_waits = False
        super().__init__(info, protocol, queue)
        if info.agreement.deflate is not None:
            protocol.share_contexts(contexts_of(self._loop))

    # --- asyncio calls these ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived from the peer."""
        if self._trace is not None:
            self._trace("read-buffer", self, data)
        self._flow.large_read = len(data) >= _LARGE_READ
        core = self._core
        if data:
            now = monotonic()
            self.events_received(core.receive_step(data, len(data), now), now)

    def events_received(self, events: list[Event], now: float) -> None:
        """Deliver ``events`` of bytes that arrived at ``now``, then parse and deliver the backlog."""
        core = self._core
        self._flow.turn_began = now
        self._writer.corked = True
        try:
            while True:
                if (
                    core.state is _OPEN
                    and self._trace is None
                    and len(events) == 1
                    and isinstance(events[0], (str, bytes))
                ):
                    self._queue.put(events[0])  # the usual case
                elif at_once := self._handlers.sort(self, events):
                    self._dispatcher.emit_events(self, at_once)
                if self._queue.count > 0 and not self._push:
                    self._dispatcher.wakeup.notify()
                if self._push or core.state is not _OPEN:
                    self._dispatcher.advance(self, self._writer)
                if not core.receiver.backlog or not self._flow.may_go_on(core, self._queue):
                    break
                events = core.receive_more(monotonic())
        finally:
            self._writer.corked = False
            self._writer.sends = 0
        if (core.receiver.backlog or core.receiver.work >= self._flow.turn_ends) and not self._flow.yielding:
            self._yield_turn()
        self._apply_state()

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream; the write buffer is still flushed."""
        if self._core.receiver.backlog:
            self._eof_waits = True
            return self._transport.can_write_eof()  # False would close a plain transport before replies are written
        self._core.receive_eof()
        self._advance_and_apply_state()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._writer.lose()
        if exc is not None and not self._core.ended and not isinstance(exc, ConnectionError):
            self._error = exc
        if self._core.receiver.backlog:
            self._eof_waits = True
            if not self._flow.yielding:
                self._yield_turn()
        else:
            self._core.receive_eof()
        self._cancel_timer()
        self._advance_and_apply_state()
        self._update_memory()
        self._wake_waiters()
        if self._previous is not None:
            # The transport's previous protocol may be waiting for this too, as StreamWriter.wait_closed does.
            self._previous.connection_lost(exc)
        self._previous = self._keep = None
        self._flow.let_go(self._transport)

    def pause_writing(self) -> None:
        """The transport's write buffer is above its high-water mark."""
        self._writer.paused = True
        self._core.write_paused = True
        self._update_memory()

    def resume_writing(self) -> None:
        """The transport's write buffer is below its low-water mark."""
        self._writer.paused = False
        self._core.writing_resumed()
        self._wake_waiters()
        self._dispatcher.await_results(self, self._handlers.emit(self, "drain", ()))
        self._advance_and_apply_state()

    # --- one turn ----------------------------------------------------------------------------------------

    def _yield_turn(self) -> None:
        """Continue with the backlog, and with reading, in the next iteration of the event loop."""
        self._flow.yielding = True
        self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        core, flow = self._core, self._flow
        now = monotonic()
        flow.begin_turn(core, now)
        lost = self._writer.lost
        if lost and flow.is_over_bound(self._queue, self._limits):
            core.receive_eof()  # which drops the rest; the close code is 1006
        if core.receiver.backlog and (lost or not flow.is_blocked(core, self._queue)):
            self.events_received(core.receive_more(now), now)
        else:
            self._apply_state()
        if self._eof_waits and not core.receiver.backlog:
            self._eof_waits = False
            core.receive_eof()
            self._advance_and_apply_state()
            self._wake_waiters()

    # --- applying the core's state -------------------------------------------------------------------------

    def _advance_and_apply_state(self) -> None:
        self._dispatcher.advance(self, self._writer)
        self._apply_state()

    def _apply_state(self) -> None:
        """Apply the core's state: flush, pause or resume reading, end the stream, and set the timer."""
        if self._writer.lost:
            self._update_memory()
            if self._dispatcher.has_finished(self):
                self._wake_waiters()
            return
        core = self._core
        self._flush()
        self._update_reading()
        if (
            self._flow.large_read or core.receiver.incoming is not None or self._flow.reader is not None
        ) and self._trace is None:
            self._flow.update_buffering(self, core, self._transport, self._loop)
        if core.state is not self._armed_state:
            self._arm()
            if core.ended:
                self._wake_waiters()  # no more can be sent, whether the peer reads or not
            if core.state is _CLOSED:
                if not self._writer.close(self._destroyed):
                    due = monotonic() + self._limits.close_timeout
                    self._timer_due = timers_of(self._loop).set(due, _abort, self)
            elif core.half_close and not self._writer.half_closed:
                # After the peer's Close no data follows; a peer that violated the protocol gets time to read our Close.
                self._writer.half_close(0.0 if core.close_received else min(_TLS_LINGER, self._limits.close_timeout))

    def _drop(self) -> None:
        """Abort the TCP stream."""
        self._destroyed = True
        self._core.abort()
        self._queue.clear()
        self._advance_and_apply_state()
        if not self._writer.lost:
            self._transport.abort()  # it may already be closing, but slowly

    def _arm(self) -> None:
        self._armed_state = self._core.state
        deadline = self._core.next_deadline()
        interval = self._limits.ping_interval
        if deadline is not None and interval is not None and self._core.state is _OPEN:
            # The answer to a PING moves the next PING forward without setting this timer, so it fires early enough.
            deadline = min(deadline, monotonic() + interval)
        if deadline is not None and self._timer_due <= deadline:
            return  # an early call re-arms the timer, which is cheaper than moving it
        self._cancel_timer()
        if deadline is not None:
            self._timer_due = timers_of(self._loop).set(deadline, _on_deadline, self)

    def _cancel_timer(self) -> None:
        if self._timer_due != inf:
            timers_of(self._loop).cancel(self._timer_due, self)
            self._timer_due = inf

    def on_deadline(self) -> None:
        """Handle the deadlines that have passed, and re-arm the timer."""
        self._timer_due = inf
        events = self._core.handle_timeout(monotonic(), self._writer.buffered())
        self._dispatcher.emit_events(self, self._handlers.sort(self, events))
        self._advance_and_apply_state()
        if not self._writer.lost and self._timer_due == inf:
            self._arm()

    # --- writing and reading -----------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._trace is not None:
            self._trace.sent_close(self, self._core.close_sent)
        writer = self._writer
        writer.flush()
        if writer.over_mark:
            self._check_unsent()

    def _end_turn(self) -> None:
        self._writer.scheduled = False
        self._writer.sends = 0
        try:
            self._flush_and_report()
        except BaseException:
            self._transport.abort()  # bytes taken from the core are lost, and the peer would misread those that follow
            raise

    def _flush_and_report(self) -> None:
        self._flush()
        if self._account is not None and not self._writer.corked:
            self._update_memory()  # bytes that were unsent when the last message was taken have now been sent

    def _check_unsent(self) -> None:
        self._writer.over_mark = False
        unsent = self._writer.buffered()
        self._update_memory()
        account = self._account
        if account is not None and account.ending and account.unsent_most:
            # Immediately: an application that does not wait for send() lets nothing else run.
            self._handlers.sort(self, self._core.fail(account.error(), monotonic()))
            self._core.abort()
            self._loop.call_soon(self._drop)
        elif unsent > self._limits.max_unsent_bytes:
            self._error = LocalProtocolError(
                f"expected the peer to read, or the application to wait for send(); got {unsent} bytes unsent, "
                f"more than max_unsent_bytes"
            )
            self._core.abort()
            self._loop.call_soon(self._drop)

    def _update_reading(self) -> None:
        core = self._core
        if (
            self._queue.count > 0
            or core.receiver.incoming is not None
            or self._writer.paused
            or self._account is not None
        ):
            self._update_memory()
        flow = self._flow
        if core.read_paused or core.receiver.backlog or flow.yielding or self._queue.full or flow.held_back:
            if core.receiver.backlog and not flow.yielding and not flow.is_blocked(core, self._queue):
                self._yield_turn()  # the application has emptied the queue
            if not self._writer.lost:
                flow.pause_or_resume(core, self._queue, self._transport)
        if core.liveness.arrival is not None and core.arrival_due() < self._timer_due:
            self._arm()  # where no PING is due earlier

    def _update_memory(self) -> None:
        """Report the buffered bytes if due; a message that arrives in one read and is taken never causes a report."""
        core = self._core
        unsent = core.outgoing.unsent_size
        if self._writer.is_stalled():
            unsent += self._writer.buffered()
        if self._is_report_due(core.incoming_size() + self._queue.size + unsent):
            self._report_memory(unsent)

    # --- waiting -----------------------------------------------------------------------------------------

    def _expect_change(self) -> asyncio.Future[None]:
        """A future that completes when the peer reads again, or the connection may have ended."""
        if self._waiters is None:
            self._waiters = Waiters(self._loop)
        return self._waiters.expect()

    def _wake_waiters(self) -> None:
        if self._waiters is not None:
            self._waiters.wake()


def _on_deadline(driver: AsyncioDriver) -> None:
    try:
        driver.on_deadline()
    except BaseException:
        driver._transport.abort()  # otherwise its timer would never be set again
        raise


def _abort(driver: AsyncioDriver) -> None:
    driver._transport.abort()
