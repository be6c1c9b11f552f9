"""The asyncio flavour's machinery: bytes and time.

It moves bytes between an asyncio transport (plain or TLS, of any event loop) and the core, and waits;
when to answer, to pause and to give up is decided by the core. A lone reply leaves at once; what follows in the
same turn of the loop leaves in one write, when the application waits for more or the turn ends, as a system call
costs more than everything else about a small message.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from math import inf
from typing import Any, cast

from ...core.events import Event
from ...core.memory_budget import MAX_PAUSE, Account
from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...errors import LocalProtocolError
from ...runtime.loop_end import end_with
from ...runtime.timers import timers_of
from ...sockets.tls_views import break_stream
from ..base import ConnectionInfo, live_connections
from ..zlib_pool import contexts_of
from .dispatch import OrderedHandlers
from .reader import BufferedReader, scratch_of

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

__all__ = ["SENDS_PER_TURN", "AsyncioDriver"]

# Seconds that a TLS peer gets to end the stream by itself after it broke the protocol.
_TLS_LINGER = 1.0
# Past this many bytes a write is not held back until the end of the turn. Each may wake a peer on another core: four
# messages of 64 KiB in one take three fifths of the time of four writes.
_WRITE_NOW = 256 * 2**10
# What is smaller than this, on average, is put together before it is written.
_WORTH_A_PIECE = 16 * 2**10
# After this many messages in one turn of the loop, or two such writes, the application's `await send()` lets others
# have theirs: one that only sends would never hear that its peer has gone.
SENDS_PER_TURN = 256
_SENDS_PER_WRITE = SENDS_PER_TURN // 2

# What is known to do nothing but send, to a descriptor that is its own until it says that it is lost.
_PLAIN_TRANSPORTS = {
    ("asyncio.selector_events", "_SelectorSocketTransport"),
    ("uvloop.loop", "TCPTransport"),
    ("uvloop.loop", "UnixTransport"),
}
# TLS that goes on reading from its socket when it is resumed, past what it has decrypted already: what a buffer that is
# full has left there would be told of with the peer's next bytes.
_LEAVES_BYTES = {("aiofastnet.ssl_transport", "SSLTransport_Socket")}
# asyncio's own writelines() never says that the peer does not read (CVE-2024-12254).
_NEVER_PAUSES = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
# Where so many bytes come at once, or twice as many are to come of a message, the loop reads into memory of ours. To
# begin and to end that takes 2 us each: it ends after so many reads that bring little.
_MUCH = 32 * 2**10
_BUFFERED_READS = 16
_LITTLE = 16 * 2**10
# The end of a message is read together with what follows it, and copied.
_WORTH_ITS_OWN_READ = 64 * 2**10

# What one connection's bytes may keep the event loop busy with before the others have their turn: units of the core's
# work (as many frames, or 4 MiB), and seconds, as nobody knows what handlers take. uvloop reads from a socket 32 times
# in one iteration, so it counts across reads.
_WORK_PER_TURN = 1024
_SECONDS_PER_TURN = 0.005

# Whose protocol a transport has when its connection is over.
_GONE = cast(asyncio.Protocol, asyncio.BufferedProtocol())
# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN
_CLOSED = State.CLOSED


class AsyncioDriver(OrderedHandlers):
    """What drives an :class:`~watershed_mw.AsyncConnection`, on its loop's thread.

    To a transport it is an ``asyncio.Protocol``, though not by inheritance: an extension type has one base.
    """

    __slots__ = (
        "_armed_state",
        "_behind",
        "_buffered",
        "_buffered_reads",
        "_closers",
        "_closing",
        "_drainers",
        "_eof_waits",
        "_fd",
        "_flush_set",
        "_half_closed",
        "_held_back",
        "_in_place",
        "_keep",
        "_let_go_of",
        "_previous",
        "_reading",
        "_scratch",
        "_sends",
        "_thread",
        "_timer_due",
        "_transport",
        "_turn_began",
        "_turn_ends",
        "_yielding",
    )

    def __init__(
        self,
        info: ConnectionInfo,
        protocol: Protocol,
        transport: asyncio.Transport,
        *,
        queue: ReceiveQueue | None = None,
    ) -> None:
        self._thread = get_ident()
        self._transport = transport
        self._fd = _descriptor(transport) if cython.compiled else -1
        self._behind = True  # the answer to the opening handshake may still be there
        self._previous: asyncio.BaseProtocol | None = None
        self._keep: Any = None
        self._timer_due = inf
        self._armed_state: State | None = None
        self._flush_set = False
        self._sends = 0
        self._reading = False
        self._half_closed = False
        self._held_back = False
        self._buffered = False
        self._in_place = False
        self._let_go_of = False
        self._buffered_reads = 0
        self._scratch: memoryview | None = None
        self._closing: asyncio.TimerHandle | None = None
        # In the order in which they came; most connections never have one.
        self._drainers: dict[asyncio.Future[None], None] | None = None
        self._closers: dict[asyncio.Future[None], None] | None = None
        self._yielding = False
        self._eof_waits = False
        self._turn_began = 0.0
        self._turn_ends = protocol.work + _WORK_PER_TURN
        super().__init__(info, protocol)
        protocol.share_contexts(contexts_of(self._loop))
        end_with(self._loop, _living)
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
        previous = cast(Any, self._transport.get_protocol())
        self._previous = None if previous is self else previous
        self._keep = keep
        self._transport.set_protocol(cast(asyncio.Protocol, self))
        if head and not self._transport.is_closing():
            self._transport.pause_reading()  # what came first is read first
        # Handlers that are registered in this turn of the loop must see what came with the handshake.
        self._loop.call_soon(self._start_reading, head, eof)

    def _start_reading(self, head: bytes, eof: bool) -> None:
        try:
            if head and not self._lost:
                self.data_received(head)
            if not self._lost and not self._core.read_paused and not self._transport.is_closing():
                self._transport.resume_reading()
            if eof and not self._lost:
                self.eof_received()
            self._advance_and_apply_state()
        except BaseException:
            self._transport.abort()  # the loop only logs it, and the peer would wait for ever
            raise

    # --- asyncio calls these ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came from the peer."""
        if self._trace is not None:
            self._trace("read-buffer", self, data)
        self._buffered_reads = _BUFFERED_READS if len(data) >= _MUCH else 0
        core = self._core
        if data:
            self._turn_began = monotonic()
            self._receive_events(core.receive_step(data, len(data), self._turn_began))

    # Not by asyncio's names: uvloop takes whatever has them for a BufferedProtocol.

    def next_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes are to go."""
        core = self._core
        self._in_place = core.capacity() >= _WORTH_ITS_OWN_READ
        if self._in_place:
            return core.get_buffer()
        if self._scratch is None:
            self._scratch = scratch_of(self._loop)
        return self._scratch

    def buffer_filled(self, nbytes: int) -> None:
        """Bytes came from the peer to :meth:`next_buffer`: as :meth:`data_received`."""
        if self._in_place or nbytes >= _LITTLE:
            # The transport may call get_buffer() again at once.
            self._buffered_reads = _BUFFERED_READS
        elif self._buffered_reads > 0:
            self._buffered_reads -= 1
        core = self._core
        self._turn_began = monotonic()
        if self._in_place:
            self._receive_events(core.receive_in_place(nbytes, self._turn_began))
        else:
            assert self._scratch is not None
            if self._trace is not None:
                self._trace("read-buffer", self, bytes(self._scratch[:nbytes]))
            memory: Any = self._scratch.obj
            self._receive_events(core.receive_step(memory, nbytes, self._turn_began))

    def _receive_events(self, events: list[Event]) -> None:
        core = self._core
        self._reading = True
        try:
            while True:
                if (
                    core.state is _OPEN
                    and self._trace is None
                    and len(events) == 1
                    and isinstance(events[0], (str, bytes))
                ):
                    self._queue.put(events[0])  # as nearly always
                elif at_once := self._take(events):
                    self._emit_events(at_once)
                if self._queue.count > 0 and not self._push:
                    self._wakeup.notify()
                if self._push or core.state is not _OPEN:
                    self._advance()
                if not core.backlog or not self._may_go_on():
                    break
                events = core.receive_more(monotonic())
        finally:
            self._reading = False
            self._sends = 0
        if (core.backlog or core.work >= self._turn_ends) and not self._yielding:
            self._yield_turn()
        self._apply_state()

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream; whatever is queued still goes out."""
        if self._core.backlog:
            self._eof_waits = True
            return self._transport.can_write_eof()  # else it closes itself, before the replies have been written
        self._core.receive_eof()
        self._advance_and_apply_state()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._lost = True
        if exc is not None and not self._core.ended and not isinstance(exc, ConnectionError):
            self._error = exc
        if self._core.backlog:
            self._eof_waits = True
            if not self._yielding:
                self._yield_turn()
        else:
            self._core.receive_eof()
        self._cancel_timer()
        if self._closing is not None:
            self._closing.cancel()
        self._advance_and_apply_state()
        self._update_memory()
        self._wake_drainers()
        self._wake_closers()
        if self._previous is not None:
            # Whoever had the transport before may be waiting for its end, as StreamWriter.wait_closed does.
            self._previous.connection_lost(exc)
        self._previous = self._keep = None
        if self._let_go_of:
            # TLS keeps the methods that it read by: connection and transport would keep each other.
            with suppress(AttributeError):  # it has let go of everything
                self._transport.set_protocol(_GONE)

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write."""
        self._writing_paused = True
        self._core.write_paused = True
        self._update_memory()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writing_paused = False
        self._core.writing_resumed()
        self._wake_drainers()
        self._await_results(self._emit("drain", ()))
        self._advance_and_apply_state()

    # --- one turn ----------------------------------------------------------------------------------------

    def _may_go_on(self) -> bool:
        """Whether the next step of what has come may be taken in this iteration of the event loop."""
        core = self._core
        if (self._queue.full or self._held_back) and core.state is _OPEN:
            return False
        return core.work < self._turn_ends and monotonic() < self._turn_began + _SECONDS_PER_TURN

    def _yield_turn(self) -> None:
        """Go on with what has come, and read more, in the next iteration of the event loop."""
        self._yielding = True
        self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._yielding = False
        core = self._core
        self._turn_began = monotonic()
        self._turn_ends = core.work + _WORK_PER_TURN
        if self._lost and self._is_over_bound():
            core.receive_eof()  # which drops the rest: that the end is abnormal (1006) says so
        blocked = (self._queue.full or self._held_back) and core.state is _OPEN
        if core.backlog and (self._lost or not blocked):
            self._receive_events(core.receive_more(self._turn_began))
        else:
            self._apply_state()
        if self._eof_waits and not core.backlog:
            self._eof_waits = False
            core.receive_eof()
            self._advance_and_apply_state()
            self._wake_closers()

    def _is_over_bound(self) -> bool:
        """Whether more is queued than ever may be while the application does not take it.

        After the stream's end nothing can wait in the kernel: what has come is queued past the marks. That is what one
        read brings, but what is compressed may stand for a thousand times as much.
        """
        most = self._limits.max_message_size
        return most is not None and self._queue.size > self._limits.max_queued_bytes + most

    def _hand_over(self) -> None:
        self._core.messages_handed_over(monotonic())
        if self._core.state is not self._armed_state:
            self._apply_state()

    def _apply_state(self) -> None:
        """Write what is due, follow the core's wishes about reading and closing, and set the timer."""
        if self._lost:
            self._update_memory()
            if self._finished():
                self._wake_closers()
            return
        core = self._core
        self._flush()
        self._update_reading()
        self._update_buffering()
        if core.state is not self._armed_state:
            self._arm()
            if core.ended:
                self._wake_drainers()  # whether the peer reads on or not, nothing more can be sent
            if core.state is _CLOSED:
                done = self._transport.get_write_buffer_size() == 0 and self._transport.can_write_eof()
                if self._destroyed or self._half_closed or done:
                    self._transport.abort()
                else:
                    # Nothing more will be read, but what was sent before may still arrive, and over TLS the peer is
                    # due a close_notify (RFC 8446 section 6.1): within bounds.
                    self._transport.close()
                    due = monotonic() + self._limits.close_timeout
                    self._timer_due = timers_of(self._loop).set(due, _abort, self)
            elif core.half_close and not self._half_closed:
                self._half_closed = True
                self._half_close()

    def _drop(self) -> None:
        """Give the TCP stream up at once."""
        self._destroyed = True
        self._core.abort()
        self._queue.clear()
        self._advance_and_apply_state()
        if not self._lost:
            self._transport.abort()  # it may be closing already, in its own time

    def runs_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is its event loop."""
        return self._loop is loop

    def break_stream(self) -> None:
        """Let the peer see the end of the TCP stream, though the event loop runs no more."""
        break_stream(self._transport)

    def _half_close(self) -> None:
        if not self._transport.can_write_eof():
            # TLS knows no half-close: close() sends close_notify after what is queued, and does not read what still
            # comes. After the peer's Close nothing does; one that broke the protocol gets a moment to read ours.
            delay = 0.0 if self._core.close_received else min(_TLS_LINGER, self._limits.close_timeout)
            self._closing = self._loop.call_later(delay, self._transport.close)
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the peer has gone already, which asyncio only notices here

    def _arm(self) -> None:
        self._armed_state = self._core.state
        deadline = self._core.next_deadline()
        interval = self._limits.ping_interval
        if deadline is not None and interval is not None and self._core.state is _OPEN:
            # The answer to a PING brings the next PING forward, of which nothing tells this timer: it asks in time.
            deadline = min(deadline, monotonic() + interval)
        if deadline is not None and self._timer_due <= deadline:
            return  # It is called early and asks again, which is cheaper than moving it.
        self._cancel_timer()
        if deadline is not None:
            self._timer_due = timers_of(self._loop).set(deadline, _on_deadline, self)

    def _cancel_timer(self) -> None:
        if self._timer_due != inf:
            timers_of(self._loop).cancel(self._timer_due, self)
            self._timer_due = inf

    def on_deadline(self) -> None:
        """Do what is due by the clock, and set the timer anew."""
        self._timer_due = inf
        events = self._core.handle_timeout(monotonic(), self._transport.get_write_buffer_size())
        self._emit_events(self._take(events))
        self._advance_and_apply_state()
        if not self._lost and self._timer_due == inf:
            self._arm()

    # --- writing and reading -----------------------------------------------------------------------------

    def _wrote(self) -> None:
        large = self._core.unsent_size >= _WRITE_NOW
        if large:
            self._sends += _SENDS_PER_WRITE
            self._flush()
        if self._reading or self._flush_set:
            return  # data_received ends its turn when it is done
        if self._sends == 1 and self._queue.count == 0 and not large:
            self._flush()  # A lone reply: to wait for company would cost as much as it takes.
        else:
            self._flush_set = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._flush_set = False
        self._sends = 0
        try:
            self._flush_and_report()
        except BaseException:
            self._transport.abort()  # what was taken to be written is lost, and what follows would be misread
            raise

    def _flush_and_report(self) -> None:
        self._flush()
        if self._account is not None and not self._reading:
            self._update_memory()  # what was unsent when the last message was taken has left

    def _flush(self) -> None:
        if self._trace is not None:
            self._trace.sent_close(self, self._core.close_sent)
        core = self._core
        size = core.unsent_size
        if size == 0:
            return
        pieces = core.pieces_to_send() if size >= _WORTH_A_PIECE else None
        data = core.data_to_send()
        if self._lost or self._half_closed:
            return
        # One message may be larger than the limit: it is piling more on top that ends the connection.
        paused = self._writing_paused
        if pieces is None:
            self._write(data)
        elif size // len(pieces) < _WORTH_A_PIECE or (_NEVER_PAUSES and isinstance(self._transport, asyncio.Transport)):
            self._write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)
            self._behind = True
        if paused:
            self._check_unsent()

    def _write(self, data: bytes) -> None:
        """Write it: past the transport, which takes half a microsecond to do the same, where nothing waits there.

        What the kernel does not take, and whatever is wrong, is the transport's business.
        """
        # uvloop closes the descriptors of a loop that is closed, and tells nobody. One that has brought bytes is open.
        if cython.compiled and self._fd >= 0 and (self._reading or not self._loop.is_closed()):
            if self._behind and self._transport.get_write_buffer_size() == 0:
                self._behind = False
            if not self._behind:
                sent = call_send(self._fd, cython.cast("const char *", data), len(data))  # type: ignore[name-defined]  # noqa: F821
                if sent == len(data):
                    return
                if sent > 0:
                    self._behind = True
                    # No copy: of a large broadcast everybody who does not read keeps some.
                    self._transport.write(memoryview(data)[sent:])
                    return
        self._behind = True
        self._transport.write(data)

    def _check_unsent(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        self._update_memory()
        account = self._account
        if account is not None and account.ending and account.unsent_most:
            # At once: an application that does not wait for send() lets nothing else run.
            self._take(self._core.fail(account.error(), monotonic()))
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
        if self._queue.count > 0 or core.in_message or self._writing_paused or self._account is not None:
            self._update_memory()
        if core.read_paused or core.backlog or self._yielding or self._queue.full or self._held_back:
            self._pause_or_resume()
        if core.arrival is not None and core.arrival_due() < self._timer_due:
            self._arm()  # where no PING is due earlier

    def _pause_or_resume(self) -> None:
        core = self._core
        # Once the end has begun, only the peer's Close or the end of the stream is awaited.
        blocked = (self._queue.full or self._held_back) and core.state is _OPEN
        pause = self._yielding or core.backlog or blocked
        if core.backlog and not self._yielding and not blocked:
            self._yield_turn()  # the application has made room
        if pause != core.read_paused and not self._lost:
            if pause:
                core.reading_paused(monotonic())
            else:
                core.reading_resumed(monotonic())
            if self._transport.is_closing():
                pass  # some that have closed, and have yet to tell of it, cannot be asked any more
            elif pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _update_buffering(self) -> None:
        core = self._core
        buffered = self._buffered_reads > 0 or (core.in_message and core.payload_to_come() >= 2 * _MUCH)
        if buffered is self._buffered:
            return
        transport = self._transport
        if transport.is_closing():
            return
        if buffered and (self._trace is not None or _kind(transport) in _LEAVES_BYTES):
            return  # the trace is to see what came
        self._buffered = buffered
        # uvloop looks at its protocol when reading begins; TLS does each time.
        plain = transport.get_extra_info("ssl_object") is None
        if plain:
            transport.pause_reading()
        else:
            self._let_go_of = True
        transport.set_protocol(BufferedReader(self) if buffered else cast(asyncio.Protocol, self))
        if plain and not core.read_paused:
            transport.resume_reading()

    # --- memory ------------------------------------------------------------------------------------------

    def _update_memory(self) -> None:
        """Report what is held, where that has passed a mark: a message that came whole and was taken never does."""
        core = self._core
        unsent = core.unsent_size
        if self._writing_paused and not self._lost:
            unsent += self._transport.get_write_buffer_size()
        held = core.incoming_size() + self._queue.size + unsent
        if self._is_report_due(held):
            self._report_memory(unsent)

    def _memory_changed(self) -> None:
        """As the base class says."""
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._apply_memory)

    def _apply_memory(self) -> None:
        account = self._account
        if account is not None and account.ending:
            self._report_memory(self._unsent())  # what it stands at now
            if not account.recovered():
                self._end_for_memory(account)
                return
        paused = account is not None and account.paused
        if account is not None and paused and not self._held_back:
            timers_of(self._loop).set(account.paused_at + MAX_PAUSE, memory_overdue, account)
        self._held_back = paused
        self._update_reading()

    def _unsent(self) -> int:
        return self._core.unsent_size + (0 if self._lost else self._transport.get_write_buffer_size())

    def _end_for_memory(self, account: Account) -> None:
        error = account.error()
        self._held_back = False
        self._queue.clear()
        self._emit_events(self._take(self._core.fail(error, monotonic())))
        if account.unsent_most:
            self._drop()
        else:
            self._advance_and_apply_state()

    # --- waiting -----------------------------------------------------------------------------------------

    def _expect_close(self) -> asyncio.Future[None]:
        """A future that is done when the connection may have come to its end, or soon before."""
        if self._closers is None:
            self._closers = {}
        return _new_waiter(self._loop, self._closers)

    def _expect_drain(self) -> asyncio.Future[None]:
        """A future that is done when the peer reads again, or has gone."""
        if self._drainers is None:
            self._drainers = {}
        return _new_waiter(self._loop, self._drainers)

    def _wake_drainers(self) -> None:
        waiters, self._drainers = self._drainers, None
        _wake(waiters)

    def _wake_closers(self) -> None:
        waiters, self._closers = self._closers, None
        _wake(waiters)


def _kind(transport: asyncio.Transport) -> tuple[str, str]:
    return type(transport).__module__, type(transport).__qualname__


def _descriptor(transport: asyncio.Transport) -> int:
    """The descriptor of a transport that sends bytes as they are; -1 for any other."""
    if _kind(transport) not in _PLAIN_TRANSPORTS or transport.is_closing():
        return -1
    return int(transport.get_extra_info("socket").fileno())


def _on_deadline(driver: AsyncioDriver) -> None:
    try:
        driver.on_deadline()
    except BaseException:
        driver._transport.abort()  # its timer would never be set again
        raise


def memory_overdue(account: Account) -> None:
    """Reading has been paused for want of memory, it may be for too long."""
    if account.paused and account.paused_at + MAX_PAUSE <= monotonic():
        account.overdue()
    if account.paused:
        timers_of(asyncio.get_running_loop()).set(account.paused_at + MAX_PAUSE, memory_overdue, account)


def _abort(driver: AsyncioDriver) -> None:
    driver._transport.abort()


def _new_waiter(loop: asyncio.AbstractEventLoop, waiters: dict[asyncio.Future[None], None]) -> asyncio.Future[None]:
    """A future among the ``waiters``, which it leaves when it is done or cancelled."""
    waiter = loop.create_future()
    waiters[waiter] = None
    waiter.add_done_callback(lambda done: waiters.pop(done, None))
    return waiter


def _wake(waiters: dict[asyncio.Future[None], None] | None) -> None:
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)


def _living(loop: asyncio.AbstractEventLoop) -> list[AsyncioDriver]:
    return [one for one in live_connections() if isinstance(one, AsyncioDriver) and one.runs_on(loop)]
