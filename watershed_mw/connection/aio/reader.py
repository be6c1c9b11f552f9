"""The way in: when to read, how much to process at once, and where large data goes.

:class:`ReadFlow` decides between one connection and the others of its event loop, and between the peer and an
application that does not keep up. :class:`BufferedReader` stands in for it at the transport while large data flows:
an event loop makes an object of every chunk that it has read, from which each message is copied once more. Under heavy
inbound traffic, reads go into a large message's own memory instead, or into a buffer that all connections of a loop
share, from which each message is copied once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

from ..._native.raw_send import kind_of
from ...core.events import Event
from ...core.limits import Limits
from ...core.protocol import Protocol as CoreProtocol
from ...core.receive_queue import ReceiveQueue
from ...core.states import State
from ...runtime.loop_local import LoopLocal

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.time import monotonic
else:
    from time import monotonic

__all__ = ["LARGE_READ", "BufferedReader", "ReadFlow", "Target"]

# What one connection's bytes may keep the event loop busy with before the others have their turn: units of the core's
# work (as many frames, or 4 MiB), and seconds, as handlers take any time. uvloop reads from a socket 32 times in one
# iteration, so it counts across reads.
_WORK_PER_TURN = 1024
_SECONDS_PER_TURN = 0.005

# Where so many bytes come at once, or twice as many are to come of a message, reads are buffered. To begin and to end
# that takes system calls: it ends after _SMALL_READS reads in a row that bring less than _SMALL_READ bytes.
LARGE_READ = 32 * 2**10
_LARGE_READ = LARGE_READ  # a C number where this is compiled
_SMALL_READ = 16 * 2**10
_SMALL_READS = 16
# The end of a message is read together with what follows it, and copied.
_WORTH_ITS_OWN_READ = 64 * 2**10
# As much as asyncio and uvloop read at a time; it stays in the processor's cache, and with its first bytes there a
# message of 1 MiB gets its memory in one piece.
_SCRATCH = 256 * 2**10

# TLS that goes on reading from its socket when it is resumed, past what it has decrypted already: what a full buffer
# has left there would only be delivered with the peer's next bytes.
_LEAVES_BYTES = {("aiofastnet.ssl_transport", "SSLTransport_Socket")}

# The protocol that a transport has when its connection is over.
_GONE = cast(asyncio.Protocol, asyncio.BufferedProtocol())
# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN

_scratch_of = LoopLocal(lambda: memoryview(bytearray(_SCRATCH))).of
"""Memory that is the loop's own between ``get_buffer`` and ``buffer_updated``: nothing runs between them."""


class Target(Protocol):
    """The ``asyncio.Protocol`` for which a :class:`BufferedReader` stands in."""

    def data_received(self, data: bytes) -> None:
        """Bytes came in an object of their own, from a transport that has no other way."""

    def events_received(self, events: list[Event], now: float) -> None:
        """Bytes came into the reader's buffer, at ``now``; ``events`` is the first step of what they mean."""

    def eof_received(self) -> bool:
        """As ``asyncio.Protocol``."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As ``asyncio.Protocol``."""

    def pause_writing(self) -> None:
        """As ``asyncio.Protocol``."""

    def resume_writing(self) -> None:
        """As ``asyncio.Protocol``."""


class BufferedReader:
    """Takes what the transport reads while large data flows, in place of its target.

    Args:
        target: gets events; it is called with no call in between.
        core: takes the bytes.
        loop: the event loop, whose connections share a buffer.
    """

    __slots__ = ("_core", "_events_received", "_in_place", "_scratch", "_small_reads")

    def __init__(self, target: Target, core: CoreProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._scratch: memoryview = _scratch_of(loop)
        self._in_place = False
        self._small_reads = 0
        self._events_received: Callable[[list[Event], float], None] = target.events_received

    @property
    def busy(self) -> bool:
        """Whether large reads are still to be expected."""
        return self._small_reads < _SMALL_READS

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes are to go."""
        core = self._core
        self._in_place = core.receiver.capacity() >= _WORTH_ITS_OWN_READ
        if not self._in_place:
            return self._scratch
        # The last byte comes in another read: a message is never complete while the transport holds its memory.
        memory = core.receiver.get_buffer()
        return memory[: len(memory) - 1]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come; the transport may call :meth:`get_buffer` again immediately."""
        now = monotonic()
        if self._in_place:
            self._small_reads = 0
            events = self._core.receive_in_place(nbytes, now)
        else:
            self._small_reads = 0 if nbytes >= _SMALL_READ else self._small_reads + 1
            memory: Any = self._scratch.obj
            events = self._core.receive_step(memory, nbytes, now)
        self._events_received(events, now)


class _BufferedProtocol(asyncio.BufferedProtocol):
    """The reader as the transport knows it: an extension type cannot be an ``asyncio.BufferedProtocol``."""

    __slots__ = (
        "buffer_updated",
        "connection_lost",
        "data_received",
        "eof_received",
        "get_buffer",
        "pause_writing",
        "resume_writing",
    )

    def __init__(self, reader: BufferedReader, target: Target) -> None:
        self.get_buffer = reader.get_buffer  # type: ignore[assignment,method-assign]
        self.buffer_updated = reader.buffer_updated  # type: ignore[method-assign]
        self.data_received = target.data_received
        self.eof_received = target.eof_received  # type: ignore[method-assign]
        self.connection_lost = target.connection_lost  # type: ignore[method-assign]
        self.pause_writing = target.pause_writing  # type: ignore[method-assign]
        self.resume_writing = target.resume_writing  # type: ignore[method-assign]


class ReadFlow:
    """Decides when one connection reads, and when it lets others have their turn.

    Args:
        core: the connection's protocol.

    Attributes:
        held_back: whether reading is paused for want of memory.
        large_read: whether the last read was large.
        reader: reads while large data flows, None at other times.
        turn_began: time of the last read, or of the iteration in which this connection went on.
        turn_ends: of the core's ``work``: how far it may go in this turn.
        yielding: whether the connection goes on in the next iteration of the event loop.
    """

    __slots__ = ("_unlinks", "held_back", "large_read", "reader", "turn_began", "turn_ends", "yielding")

    def __init__(self, core: CoreProtocol) -> None:
        self.held_back = False
        self.large_read = False
        self.reader: BufferedReader | None = None
        self.turn_began = 0.0
        self.turn_ends = core.receiver.work + _WORK_PER_TURN
        self.yielding = False
        self._unlinks = False

    def begin_turn(self, core: CoreProtocol, now: float) -> None:
        """It is this connection's turn again."""
        self.yielding = False
        self.turn_began = now
        self.turn_ends = core.receiver.work + _WORK_PER_TURN

    def may_go_on(self, core: CoreProtocol, queue: ReceiveQueue) -> bool:
        """Whether the next step of what has come may be taken in this iteration of the event loop."""
        if self.is_blocked(core, queue):
            return False
        return core.receiver.work < self.turn_ends and monotonic() < self.turn_began + _SECONDS_PER_TURN

    def is_blocked(self, core: CoreProtocol, queue: ReceiveQueue) -> bool:
        """Whether the application, or memory, has to keep up first."""
        # Once the end has begun, only the peer's Close or the end of the stream is awaited.
        return (queue.full or self.held_back) and core.state is _OPEN

    def is_over_bound(self, queue: ReceiveQueue, limits: Limits) -> bool:
        """Whether more is queued than ever may be while the application does not take it.

        After the stream's end nothing can wait in the kernel: what has come is queued past the marks. That is what one
        read brings, but what is compressed may stand for a thousand times as much.
        """
        most = limits.max_message_size
        return most is not None and queue.size > limits.max_queued_bytes + most

    def pause_or_resume(self, core: CoreProtocol, queue: ReceiveQueue, transport: asyncio.Transport) -> None:
        """Have the transport read, or not."""
        pause = self.yielding or core.receiver.backlog or self.is_blocked(core, queue)
        if pause == core.read_paused:
            return
        if pause:
            core.reading_paused(monotonic())
        else:
            core.reading_resumed(monotonic())
        if transport.is_closing():
            pass  # some transports that have closed, and have yet to report it, cannot be asked any more
        elif pause:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def update_buffering(
        self, target: Target, core: CoreProtocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Begin or end to read into memory of the connection's choice."""
        buffered = self.reader is not None
        wanted = self.large_read if self.reader is None else self.reader.busy
        if not wanted:
            wanted = core.receiver.payload_to_come() >= 2 * _LARGE_READ
        self.large_read = False
        if wanted == buffered or transport.is_closing() or (wanted and kind_of(transport) in _LEAVES_BYTES):
            return
        self.reader = BufferedReader(target, core, loop) if wanted else None
        # uvloop looks at its protocol when reading begins; TLS does each time.
        plain = transport.get_extra_info("ssl_object") is None
        if plain:
            transport.pause_reading()
        else:
            self._unlinks = True
        if self.reader is None:
            transport.set_protocol(cast(asyncio.Protocol, target))
        else:
            transport.set_protocol(_BufferedProtocol(self.reader, target))
        if plain and not core.read_paused:
            transport.resume_reading()

    def let_go(self, transport: asyncio.Transport) -> None:
        """The transport is gone: it and the connection must not keep each other alive."""
        self.reader = None
        if self._unlinks:
            # TLS keeps the methods that it read by.
            with suppress(AttributeError):  # it has let go of everything
                transport.set_protocol(_GONE)
