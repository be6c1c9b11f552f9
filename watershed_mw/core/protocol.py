"""One end of one connection after its opening handshake: messages, control frames, closing, keepalive.

This file is compiled as well as interpreted. Bytes and the current time go in, events and bytes
come out; every policy (limits, keepalive, time-outs, when a Close may go) is decided here, so that
all drivers behave alike. It trusts neither the peer nor the driver's chunking, reads no clock, and
changes no buffer that it was given.
"""

from __future__ import annotations

from math import inf

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .codes import decode_close, encode_close, encode_text
from .deflate import Contexts, Deflate
from .events import CloseReceived, Event, Failed, Ping, Pong
from .frames.codec import FrameReader
from .frames.utf8 import TextCheck, not_utf8
from .handshake.extensions import DeflateParameters
from .limits import Limits, too_large
from .outgoing import Outgoing
from .pace import Arrival, InflateRate
from .pings import Pings
from .prepared import PreparedMessage
from .rate import MessageRate
from .states import Role, State, Trigger

__all__ = ["Protocol"]

_FIN_RSV1 = 0xC0
_CONTINUATION = 0x0
_TEXT = 0x1
_BINARY = 0x2
_CLOSE = 0x8
_PING = 0x9
_PONG = 0xA

# One step of taking what came: at most so many frames, or bytes of messages. It takes a millisecond or two; then
# the driver says whether others have their turn first.
_FRAMES_PER_STEP = 256
_BYTES_PER_STEP = 2**20 - 1
_UNIT_SHIFT = 12  # units of work for bytes: 4 KiB
# Stands for every larger limit, with room for arithmetic in 64 bits.
_HUGE = 2**62
_CONTEXT = 64 * 2**10  # bytes that a context of zlib's counts for at least: a peer needs few to make us hold it

# Looked up at most once per change of state, never per message.
_OPEN = State.OPEN
_ANSWERING = State.ANSWERING
_FAILING = State.FAILING
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED


class Protocol(Outgoing):
    """The state machine of RFC 6455 sections 5 to 7, with RFC 7692.

    Args:
        role: which end this is.
        now: current time in seconds, of a clock that never goes back; the same for every call.
        limits: limits and time-outs.
        deflate: what was agreed on for permessage-deflate, None for no compression.

    Attributes:
        read_paused: whether the driver does not read; the peer's silence then means nothing.
        write_paused: set by the driver while the peer does not read; PONGs then wait, and only the
            newest is kept (section 5.5.3 allows that), so that a flood of PINGs cannot fill memory.
        backlog: whether bytes have come that :meth:`receive_more` has still to take: until then no more is read.
        work: done so far for what the peer sent, in units of some microseconds: frames, 4 KiB come, 4 KiB inflated.
    """

    def __init__(
        self, role: Role, now: float, limits: Limits | None = None, deflate: DeflateParameters | None = None
    ) -> None:
        super().__init__(role is Role.CLIENT)
        limits = Limits() if limits is None else limits
        self._reader = FrameReader(not self._client, deflate is not None)
        self._deflate = None if deflate is None else Deflate(deflate, now)
        self._max_size = -1 if limits.max_message_size is None else min(limits.max_message_size, _HUGE)
        self._max_fragments = limits.max_fragments
        self._frames_per_step = min(limits.max_queued_messages + 1, _FRAMES_PER_STEP)
        self._bytes_per_step = min(limits.max_queued_bytes, _BYTES_PER_STEP)
        self.backlog = False
        self.work = 0
        self._step_ends = 0
        self._rate = None if limits.max_message_rate is None else MessageRate(limits.max_message_rate, now)
        self._message_timeout = inf if limits.message_timeout is None else limits.message_timeout
        self.arrival: Arrival | None = None  # of what is incomplete
        self._unwatched = 0  # bytes of the reads that made the backlog
        self._paused_at = now
        self._limits = limits  # for what few connections need
        self._inflate_rate: InflateRate | None = None
        self._ping_interval = inf if limits.ping_interval is None else limits.ping_interval
        self._ping_timeout = inf if limits.ping_timeout is None else limits.ping_timeout
        self._close_timeout = limits.close_timeout
        self._reply_timeout = limits.reply_timeout
        # The message being received.
        self.in_message = False
        self._text = False
        self._compressed = False
        self._fragments = 0
        self._wire_size = 0
        self._message: bytearray | None = None
        self._alone = False
        self._utf8: TextCheck | None = None
        self._control = b""
        self.read_paused = False
        # Times.
        self._deadline = inf
        self._last_received = now
        self._next_ping = now + self._ping_interval
        self._ping_sent = inf
        self._taken = 0
        self._ping_position = 0
        self._pings: Pings | None = None
        self._keepalives = 0

    # --- what came from the peer -----------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that came from the peer, and return all that they mean, in order.

        Bytes after the peer's Close or its violation mean nothing and are dropped (section 5.5.1). A driver takes them
        in steps instead: a few bytes can mean thousands of events, or megabytes.
        """
        events = self.receive_step(data, len(data), now) if data else []
        while self.backlog:
            events += self.receive_more(now)
        return events

    def receive_step(self, data: bytes | bytearray, size: int, now: float) -> list[Event]:
        """As :meth:`receive_data`, at most one step of it; :attr:`backlog` says whether there is more.

        A step ends after ``max_queued_messages`` + 1 frames or pieces of frames, at most 256, or once it has taken more
        than ``max_queued_bytes``, at most 1 MiB. While there is a backlog, bytes are added to it and nothing is taken.

        Args:
            data: memory that stays the caller's.
            size: how many bytes of it have come, at least one.
            now: current time in seconds.
        """
        self.bytes_received += size
        self._last_received = now
        self.work += size >> _UNIT_SHIFT
        events: list[Event] = []
        if self.state is not _OPEN and self.state is not _CLOSING:
            return events
        reader = self._reader
        try:
            reader.borrow(data, size)
            if not self.backlog:
                self._take_step(events, now)
        except BaseException:
            self._lose_position()
            raise
        if self.in_message or self.arrival is not None or reader.end > 0 or not reader.last:
            self._watch_arrival(size, now)
        return events

    def _watch_arrival(self, size: int, now: float) -> None:
        """Note whether something is incomplete after a read of ``size`` bytes: it has ``message_timeout`` to come."""
        if self._message_timeout == inf:
            return
        size += self._unwatched
        if self.backlog:
            self._unwatched = size  # counted once the backlog is empty
            return
        self._unwatched = 0
        if not self.in_message and self._reader.end == 0 and self._reader.last:
            self.arrival = None
            return
        if self.arrival is None:
            self.arrival = Arrival(self._message_timeout)
        # A control frame in the midst of a message does not begin its time anew, the next message does.
        number = self.messages_received if self.in_message else -1 - self.frames_received
        header = -self.frames_received if self.in_message else number
        self.arrival.watch(number, header, self.bytes_received - size, now)

    def receive_more(self, now: float) -> list[Event]:
        """Take the next step of the :attr:`backlog`."""
        events: list[Event] = []
        if self.state is not _OPEN and self.state is not _CLOSING:
            self._drop_backlog()
        elif self.backlog:
            self.backlog = False
            try:
                self._take_step(events, now)
            except BaseException:
                self._lose_position()
                raise
            self._watch_arrival(0, now)
            if self._last_received <= self._ping_sent < inf:
                # Nothing is read while there is a backlog: the answer may be there, and has ping_timeout from now on.
                self._ping_sent = self._last_received = now
        return events

    def _lose_position(self) -> None:
        # A signal's handler, or no memory: the events are lost, and what is left is where others will write.
        self._drop_backlog()
        self.receive_eof()

    def _drop_backlog(self) -> None:
        self.backlog = False
        self._reader.forget()

    def _take_step(self, events: list[Event], now: float) -> None:
        reader = self._reader
        frames = self.frames_received
        # Reader position at which this step ends. Bytes inflated, or gathered by earlier steps, move it closer.
        self._step_ends = reader.position + self._bytes_per_step
        try:
            if self._deflate is not None and self._deflate.pending:
                self._take_inflated(self._inflate(None, False), events)
            for _ in range(self._frames_per_step):
                if reader.position > self._step_ends:
                    break
                if not reader.read():
                    return
                if reader.opcode < 8:
                    self._receive_payload(events)
                elif not self._receive_control(events, now):
                    return
            # Also when nothing is left to read: the reader must release the borrowed memory.
            self.backlog = reader.suspend() or (self._deflate is not None and self._deflate.pending)
        except RemoteProtocolError as error:
            self._fail(error, now, events)
        finally:
            self.work += self.frames_received - frames

    def _fail(self, error: ProtocolError, now: float, events: list[Event]) -> None:
        # Applications keep errors for their logs: the frames of a traceback would keep the bytes, too.
        error.__traceback__ = error.__context__ = None
        self._forget_message()
        self.arrival = None
        self._drop_backlog()
        self._violated(error, now)
        events.append(Failed(error))

    def fail(self, error: ProtocolError, now: float) -> list[Event]:
        """As :meth:`BaseProtocol.fail`."""
        events: list[Event] = []
        if self.state is _OPEN:
            self._fail(error, now, events)
        else:
            self.abort()
        return events

    def incoming_size(self) -> int:
        """As :meth:`BaseProtocol.incoming_size`, zlib's context included where the message is compressed."""
        if not self.in_message:
            return 0
        if self._alone:
            return self._reader.kept
        size = 0 if self._message is None else len(self._message)
        if self._compressed and self._deflate is not None:
            size = max(_CONTEXT, size + self._deflate.unfinished())
        return size

    def receive_eof(self) -> None:
        """Take note that the TCP stream has ended, in either order with anything else."""
        if self.state is not _CLOSED:
            self._move(Trigger.EOF)

    def _receive_payload(self, events: list[Event]) -> None:
        reader = self._reader
        if reader.first:
            self._begin_frame()
            self._alone = reader.fin and self._fragments == 1 and not self._compressed
            if self._alone and reader.last:
                # A whole message in one piece, the common case: nothing to put together.
                self.in_message = False
                events.append(reader.take_text() if self._text else reader.take())
                self.messages_received += 1
                return
        if self._alone:
            # A large message in one frame: its length is known, so its bytes go where they will stay.
            start = reader.kept if not reader.first else 0
            reader.gather()
            self._take_gathered(events, start)
            return
        piece = reader.take()
        last = reader.last and reader.fin
        if self._message is None:
            self._message = bytearray()
        if self._compressed:
            self._take_inflated(self._inflate(piece, last), events)
        else:
            self._add_piece(piece, last, events)

    def _take_inflated(self, piece: bytes, events: list[Event]) -> None:
        assert self._deflate is not None
        self.work += len(piece) >> _UNIT_SHIFT
        self._add_piece(piece, not self._deflate.within_message, events)

    def _add_piece(self, piece: bytes, last: bool, events: list[Event]) -> None:
        """Add to the message that comes in several pieces, which ends with this one if it is the ``last``."""
        assert self._message is not None
        if self._text:
            self._check_utf8(piece, 0, len(piece), last)
        self._message += piece
        self._step_ends -= len(self._message) if last else len(piece)
        if last:
            message = bytes(self._message)
            self._forget_message()
            self.messages_received += 1
            events.append(message.decode() if self._text else message)

    def _take_gathered(self, events: list[Event], start: int) -> None:
        reader = self._reader
        if self._text:
            self._check_utf8(reader.gathered, start, reader.kept, reader.last)
        if reader.last:
            self._forget_message()
            self._step_ends -= reader.length
            self.messages_received += 1
            message = reader.take_gathered()
            events.append(message.decode() if self._text else message)

    def payload_to_come(self) -> int:
        """Bytes that are still to come of a message in one frame, so that :meth:`get_buffer` can take them; else 0."""
        if not self.in_message or not self._alone or self.backlog:
            return 0
        if self.state is not _OPEN and self.state is not _CLOSING:
            return 0
        return self._reader.length - self._reader.kept

    def capacity(self) -> int:
        """Bytes of :meth:`payload_to_come` for which there is memory already."""
        return 0 if self.payload_to_come() == 0 else self._reader.capacity()

    def get_buffer(self) -> memoryview:
        """Memory to read some of :meth:`payload_to_come` into, to be followed by :meth:`receive_in_place`."""
        return self._reader.get_buffer()

    def receive_in_place(self, size: int, now: float) -> list[Event]:
        """Take the next bytes from the peer, which lie in :meth:`get_buffer`; otherwise as :meth:`receive_data`."""
        self.bytes_received += size
        self._last_received = now
        self.work += size >> _UNIT_SHIFT
        events: list[Event] = []
        if self.payload_to_come() == 0:
            return events  # It has ended since, and the memory is gone.
        reader = self._reader
        start = reader.kept
        reader.buffer_updated(size)
        try:
            self._take_gathered(events, start)
        except RemoteProtocolError as error:
            self._fail(error, now, events)
        if not self.in_message:
            self.arrival = None
        return events

    def _begin_frame(self) -> None:
        reader = self._reader
        self.frames_received += 1
        if reader.opcode == _CONTINUATION:
            if not self.in_message:
                raise RemoteProtocolError("expected the first frame of a message, got a continuation frame")
            self._fragments += 1
            if self._fragments > self._max_fragments:
                raise RemoteProtocolError(
                    f"expected a message in at most {self._max_fragments} frames, got more", close_code=1008
                )
        elif self.in_message:
            raise RemoteProtocolError("expected a continuation frame, got the first frame of another message")
        else:
            self.in_message = True
            if self._rate is not None:
                self._rate.spend(self._last_received)
            self._text = reader.opcode == _TEXT
            self._compressed = reader.rsv1
            if self._compressed and self._limits.max_compression_ratio is not None:
                self._begin_inflating()
            self._fragments = 1
            self._wire_size = 0
        if self._max_size >= 0:
            # The declared length is judged before a byte of payload is kept. Compressed data may be a
            # little longer than what it stands for; what it inflates to is limited while inflating.
            remaining = self._max_size - self._wire_size
            if self._compressed:
                remaining += self._max_size // 64 + 1024
            if reader.length > remaining:
                got = reader.length
                got += self._wire_size
                raise too_large(self._max_size, got)
            self._wire_size += reader.length

    def _begin_inflating(self) -> None:
        if self._inflate_rate is None:
            self._inflate_rate = InflateRate(self._limits, self._last_received)
        self._inflate_rate.begin()

    def _inflate(self, piece: bytes | None, last: bool) -> bytes:
        """Inflate ``piece``, or with None more of the one before it, within all limits."""
        assert self._deflate is not None  # else the reader had refused RSV1
        assert self._message is not None
        left = -1 if self._max_size < 0 else self._max_size - len(self._message)
        rate = self._inflate_rate
        limited = False
        if rate is not None:
            allowed = rate.allow(0 if piece is None else len(piece), self._last_received)
            limited = left < 0 or allowed < left
            if limited:
                left = allowed
        try:
            inflated = self._deflate.inflate_more(left) if piece is None else self._deflate.inflate(piece, left, last)
            if rate is not None:
                rate.spend(len(inflated))
            return inflated
        except RemoteProtocolError as error:
            if limited and rate is not None and error.close_code == 1009:
                error = rate.error()
            if self._text:
                # Of two faults the first counts, in any chunking. What zlib inflated before a fault of its own
                # it keeps to itself; but a text that does not inflate is no UTF-8 either.
                if error.close_code == 1007:
                    raise not_utf8() from None
                self._check_utf8(self._deflate.salvaged, 0, len(self._deflate.salvaged), False)
            raise error from None

    def _check_utf8(self, data: bytes | bytearray, start: int, stop: int, last: bool) -> None:
        if self._utf8 is None:
            self._utf8 = TextCheck()
        self._utf8.check(data, start, stop, last)

    def _forget_message(self) -> None:
        self.in_message = False
        self._message = None
        self._utf8 = None

    def _receive_control(self, events: list[Event], now: float) -> bool:
        """Take a piece of a control frame; False after the peer's Close, as nothing that follows counts."""
        reader = self._reader
        self._control = reader.take() if reader.first else self._control + reader.take()
        if not reader.last:
            return True
        self.frames_received += 1
        payload = self._control
        if self._rate is not None and reader.opcode != _CLOSE:
            self._rate.spend(now)
        if reader.opcode == _PING:
            self._answer_ping(payload)
            events.append(Ping(payload))
        elif reader.opcode == _PONG:
            self._take_pong(payload, now)
            events.append(Pong(payload))
        else:
            code, reason = decode_close(payload)
            self._close_received = (code, reason)
            self._forget_message()
            reader.forget()
            self._move(Trigger.PEER_CLOSE)
            self._await_replies(now)
            events.append(CloseReceived(code, reason))
            return False
        return True

    def _take_pong(self, payload: bytes, now: float) -> None:
        if self._pings is None:
            return  # Unsolicited, which section 5.5.3 allows.
        sent = self._pings.answered(payload)
        if sent is not None:
            self.latency = now - sent
        if not self._pings.waiting:
            self._pings = None

    def _violated(self, error: ProtocolError, now: float) -> None:
        self._failure = error
        self._move(Trigger.VIOLATION)
        self._await_replies(now)

    def _await_replies(self, now: float) -> None:
        if self.state is _ANSWERING or self.state is _FAILING:
            self._deadline = now + self._reply_timeout
            if self.messages_received == 0:
                self.messages_handed_over(now)  # There is nothing to reply to.

    # --- what the application wants ----------------------------------------------------------------

    def send_text(self, message: str) -> None:
        """Queue a TEXT message; raises as :class:`BaseProtocol` says, like all of these."""
        # ASCII is UTF-8 as it stands, and goes into its frame without a copy in between.
        self._send(_TEXT, message if self._deflate is None and message.isascii() else encode_text(message))

    def send_binary(self, message: bytes) -> None:
        """Queue a BINARY message."""
        self._send(_BINARY, message)

    def _send(self, opcode: int, payload: bytes | str) -> None:
        if not self.sending:
            self._check_sending()
        self.messages_sent += 1
        if self._deflate is not None and isinstance(payload, bytes) and len(payload) >= self._deflate.threshold:
            self._write(opcode, self._deflate.compress(payload), _FIN_RSV1)
        else:
            self._write(opcode, payload)

    def send_prepared(self, shared: PreparedMessage) -> bytes:
        """Send a message that other connections send as well.

        Returns:
            the bytes to write now, where nothing waits before them; they are queued, and nothing is returned, where
            something does or where every frame is another.
        """
        if self._client:
            self._send(shared.opcode, shared.payload)  # with a mask of its own
            return b""
        self._check_sending()
        self.messages_sent += 1
        self.frames_sent += 1
        if self._deflate is None or len(shared.payload) < self._deflate.threshold:
            frame = shared.plain()
        else:
            frame = shared.compressed(self._deflate)
        if self.unsent_size:
            self._queue(frame)
            return b""
        self.bytes_sent += len(frame)
        return frame

    def ping(self, payload: bytes, now: float) -> None:
        """Queue a PING; its PONG will give the latency."""
        self._check_sending()
        if len(payload) > 125:
            raise LocalProtocolError(f"expected at most 125 bytes in a PING, got {len(payload)}")
        if self._pings is None:
            self._pings = Pings()
        self._pings.sent(payload, now)
        self._write(_PING, payload)

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin the closing handshake, or finish the one that the peer began; nothing when over."""
        payload = encode_close(code, reason)
        if not self.sending:
            return
        if self.state is _FAILING:
            self._send_failure()
        else:
            self._send_close(payload, code, reason)
        self._move(Trigger.LOCAL_CLOSE)
        self._deadline = now + self._close_timeout

    def messages_handed_over(self, now: float) -> None:
        """Tell that the application has taken every message and has had its chance to reply.

        A Close that was held back for those replies goes now (section 5.5.1 allows to finish first;
        a violation is answered after the messages before it).
        """
        if self.state is _ANSWERING:
            self._echo_close()
        elif self.state is _FAILING:
            self._send_failure()
        else:
            return
        self._move(Trigger.HANDED_OVER)
        self._deadline = now + self._close_timeout

    def abort(self) -> None:
        """Give up at once: nothing that is queued will be sent."""
        self._drop_unsent()
        if self.state is not _CLOSED:
            self._move(Trigger.ABORT)

    # --- time ----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The time at which :meth:`handle_timeout` wants to be called, None for never; it may move."""
        due = self._due()
        return None if due == inf else due

    def _due(self) -> float:
        if self._deadline != inf or self.state is not _OPEN:
            return self._deadline
        due = self._keepalive_due()
        return due if self.arrival is None else min(due, self.arrival_due())

    def arrival_due(self) -> float:
        """When what has begun to arrive has come too slowly; infinity where nothing has, or nothing is read."""
        if self.arrival is None or self.read_paused or self.state is not _OPEN:
            return inf
        return self.arrival.due(self.bytes_received)

    def _keepalive_due(self) -> float:
        if self._ping_sent == inf or self._ping_timeout == inf:
            return self._next_ping
        if self._last_received > self._ping_sent:
            return self._next_ping
        return self._ping_sent + self._ping_timeout

    def handle_timeout(self, now: float, unsent: int) -> list[Event]:
        """Do what is due at ``now``; nothing when it is called too early.

        Args:
            now: current time in seconds.
            unsent: bytes given to the driver that the kernel has not taken yet. While they shrink
                the peer is alive, though it cannot have seen the PING behind them.
        """
        if now < self._due():
            return []
        if self.state is _OPEN:
            if self.arrival is not None and now >= self.arrival_due():
                return self.fail(self.arrival.error(self.bytes_received, now), now)
            return self._keep_alive(now, unsent)
        if self.state is _ANSWERING or self.state is _FAILING:
            self.messages_handed_over(now)
        else:
            self._move(Trigger.TIMEOUT)
        return []

    def reading_paused(self, now: float) -> None:
        """Note that nothing is read from now on: how fast the peer sends cannot be known."""
        self.read_paused = True
        self._paused_at = now

    def reading_resumed(self, now: float) -> None:
        """Note that reading goes on."""
        self.read_paused = False
        self.was_not_read(self._paused_at, now)

    def was_not_read(self, since: float, now: float) -> None:
        """Note that nothing was read between these two times; they do not count for ``message_timeout``."""
        if self.arrival is not None:
            self.arrival.since += now - max(since, self.arrival.since)

    @property
    def arriving(self) -> bool:
        """Whether something has begun to arrive, and has a time limit."""
        return self.arrival is not None

    def _keep_alive(self, now: float, unsent: int) -> list[Event]:
        if self._ping_sent != inf and self._ping_timeout != inf and self._last_received <= self._ping_sent:
            taken = self._taken_by_kernel(unsent)
            unread = (self.read_paused or self.backlog) and unsent == 0
            if unread or (self._taken < self._ping_position and taken > self._taken):
                # This end does not read, or the peer still takes what went before the PING.
                self._taken = taken
                self._ping_sent = self._last_received = now
                return []
            self._failure = RemoteProtocolError(
                f"expected an answer to a PING within {self._ping_timeout:g} seconds (ping_timeout), got none",
                close_code=1011,
            )
            self._send_failure()
            self._move(Trigger.PEER_SILENT)
            self._deadline = now + self._close_timeout
            return [Failed(self._failure)]
        self.release_idle(now)
        self._keepalives += 1
        self._ping_position = self.bytes_sent
        self._taken = self._taken_by_kernel(unsent)
        self.ping(b"keepalive %d" % self._keepalives, now)
        self._ping_sent = now
        self._next_ping = now + self._ping_interval
        return []

    def share_contexts(self, contexts: Contexts) -> None:
        """Hold contexts of zlib's only as long as this pool, that of an event loop, has room for them."""
        if self._deflate is not None:
            self._deflate.share(contexts)

    @property
    def release_due(self) -> float | None:
        """When :meth:`release_idle` may give something back, None where there is nothing; it may move."""
        return None if self._deflate is None else self._deflate.release_due()

    def release_idle(self, now: float) -> None:
        """Give contexts of zlib's back, unless they were used since this was called a second ago or earlier."""
        if self._deflate is not None:
            self._deflate.release_if_idle(now)

    def _taken_by_kernel(self, unsent: int) -> int:
        return self.bytes_sent - self.unsent_size - unsent

    # --- how it stands ---------------------------------------------------------------------------------

    @property
    def reset(self) -> bool:
        """Whether the stream ended without the peer's Close, and not because of a violation."""
        return self.state is _CLOSED and self._close_received is None and self._failure is None

    def _outcome(self) -> tuple[int, str]:
        if self._failure is not None:
            return self._failure.close_code, str(self._failure)
        if self._close_received is not None:
            return self._close_received
        if self.state is _CLOSING and self._close_sent is not None:
            return self._close_sent
        return 1006, ""

    def _move(self, trigger: Trigger) -> None:
        Outgoing._move(self, trigger)
        if self.state is _CLOSED:
            self._deadline = inf
            self.arrival = None
            self._forget_message()
            if self.backlog:
                self._drop_backlog()
            if self._deflate is not None:
                self._deflate.close()
