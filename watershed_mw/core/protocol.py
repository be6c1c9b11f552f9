"""One end of one connection after its opening handshake: messages, control frames, closing.

This file is compiled as well as interpreted. Bytes and the current time go in, events and bytes come out. Every policy
(limits, keepalive, timeouts, when a Close may go) is decided in this folder, so that all drivers behave alike.
:class:`Receiver` makes events of bytes, :class:`Protocol` decides what follows from them and what may be sent. They
trust neither the peer nor the driver's chunking, read no clock, and change no buffer that they are given.
"""

from __future__ import annotations

from math import inf

from ..errors import ProtocolError, RemoteProtocolError
from .base import BaseProtocol, Counts
from .codes import decode_close, encode_close, encode_text, shorten
from .deflate import Contexts, Deflate
from .events import CloseReceived, Event, Failed, Ping, Pong
from .frames.codec import FrameReader, FrameWriter
from .handshake.extensions import DeflateParameters
from .incoming import IncomingMessage
from .limits import Limits, too_large
from .liveness import Liveness
from .pace import InflateRate
from .prepared import PreparedMessage
from .rate import MessageRate
from .states import Role, State, Trigger

__all__ = ["Protocol", "Receiver"]

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

# Looked up at most once per change of state, never per message.
_OPEN = State.OPEN
_ANSWERING = State.ANSWERING
_FAILING = State.FAILING
_CLOSING = State.CLOSING
_ENDING = State.ENDING
_CLOSED = State.CLOSED


class Receiver:
    """Turns the bytes of one peer into messages and control frames, in steps and within the limits.

    Args:
        reader: reads the frames.
        limits: limits of messages, frames and steps.
        deflate: inflates compressed messages, None where no extension was agreed on.
        liveness: hears when bytes come, and what is incomplete.
        now: current time.

    Attributes:
        backlog: whether bytes have come that :meth:`next_step` has still to take: until then no more is read.
        work: done so far for what the peer sent, in units of some microseconds: frames, 4 KiB come, 4 KiB inflated.
        incoming: the message that has begun to arrive and does not come whole, None where there is none.
        stopped: whether nothing that comes means anything any more.
        only_messages: whether the last step brought nothing else.
        frames_received, messages_received, bytes_received: counts.
    """

    def __init__(
        self, reader: FrameReader, limits: Limits, deflate: Deflate | None, liveness: Liveness, now: float
    ) -> None:
        self._reader = reader
        self._limits = limits
        self._deflate = deflate
        self._liveness = liveness
        self._max_size = -1 if limits.max_message_size is None else min(limits.max_message_size, _HUGE)
        self._frames_per_step = min(limits.max_queued_messages + 1, _FRAMES_PER_STEP)
        self._bytes_per_step = min(limits.max_queued_bytes, _BYTES_PER_STEP)
        self._rate = None if limits.max_message_rate is None else MessageRate(limits.max_message_rate, now)
        self._inflate_rate: InflateRate | None = None
        self._step_ends = 0
        self._unwatched = 0
        self._control = b""
        self.backlog = False
        self.work = 0
        self.incoming: IncomingMessage | None = None
        self.stopped = False
        self.only_messages = True
        self.frames_received = 0
        self.messages_received = 0
        self.bytes_received = 0

    def stop(self) -> None:
        """Forget what is incomplete or waits: nothing more counts."""
        self.stopped = True
        self.backlog = False
        self.incoming = self._liveness.arrival = None
        self._reader.forget()

    # --- steps -----------------------------------------------------------------------------------------

    def step(self, data: bytes | bytearray, size: int, now: float) -> list[Event]:
        """Take the first ``size`` bytes of ``data``, which stays the caller's; the events are :class:`Protocol`'s."""
        events: list[Event] = []
        self._note_bytes(size, now)
        if self.stopped:
            return events
        reader = self._reader
        reader.borrow(data, size)
        if not self.backlog:
            self._take_step(events, now)
        if self.incoming is not None or self._liveness.arrival is not None or reader.end > 0 or not reader.last:
            self._watch_arrival(size, now)
        return events

    def next_step(self, now: float) -> list[Event]:
        """Take more of the :attr:`backlog`."""
        events: list[Event] = []
        if self.backlog:
            self.backlog = False
            self._take_step(events, now)
            self._watch_arrival(0, now)
            self._liveness.backlog_read(now)
        return events

    def _note_bytes(self, size: int, now: float) -> None:
        self.only_messages = True
        self.bytes_received += size
        self._liveness.last_received = now
        self.work += size >> _UNIT_SHIFT

    def _take_step(self, events: list[Event], now: float) -> None:
        reader = self._reader
        frames = self.frames_received
        self.only_messages = True
        # Reader position at which this step ends. Bytes inflated, or gathered by earlier steps, move it closer.
        self._step_ends = reader.position + self._bytes_per_step
        try:
            if self._deflate is not None and self._deflate.pending:
                assert self.incoming is not None
                self._take_message(self.incoming.inflate_more(now), events)
            for _ in range(self._frames_per_step):
                if reader.position > self._step_ends:
                    break
                if not reader.read():
                    return
                if reader.opcode < 8:
                    self._receive_payload(events, now)
                elif not self._receive_control(events, now):
                    return
            # Also when nothing is left to read: the reader must release the borrowed memory.
            self.backlog = reader.suspend() or (self._deflate is not None and self._deflate.pending)
        except RemoteProtocolError as error:
            self._fail(error, events)
        finally:
            self.work += self.frames_received - frames

    def _fail(self, error: RemoteProtocolError, events: list[Event]) -> None:
        self.only_messages = False
        self.stop()
        events.append(failed(error))

    def _watch_arrival(self, size: int, now: float) -> None:
        """Note whether something is incomplete after a read of ``size`` bytes: it has ``message_timeout`` to come."""
        size += self._unwatched
        if self.stopped or self.backlog:
            self._unwatched = size  # counted once the backlog is empty
            return
        self._unwatched = 0
        whole_message = self.incoming is None
        if whole_message and self._reader.end == 0 and self._reader.last:
            self._liveness.arrival = None
            return
        # A control frame in the midst of a message does not begin its time anew, the next message does.
        number = -1 - self.frames_received if whole_message else self.messages_received
        header = number if whole_message else -self.frames_received
        self._liveness.watch_arrival(number, header, self.bytes_received - size, now)

    # --- frames ----------------------------------------------------------------------------------------

    def _receive_payload(self, events: list[Event], now: float) -> None:
        reader = self._reader
        if reader.first:
            self.frames_received += 1
            if reader.opcode == _CONTINUATION:
                if self.incoming is None:
                    raise RemoteProtocolError("expected the first frame of a message, got a continuation frame")
                self.incoming.begin_frame()
            elif self.incoming is not None:
                raise RemoteProtocolError("expected a continuation frame, got the first frame of another message")
            else:
                if self._rate is not None:
                    self._rate.spend(now)
                if reader.fin and reader.last and not reader.rsv1:
                    # A whole message in one piece, the common case.
                    if self._max_size >= 0 and reader.length > self._max_size:
                        raise too_large(self._max_size, reader.length)
                    events.append(reader.take_text() if reader.opcode == _TEXT else reader.take())
                    self.messages_received += 1
                    return
                self._begin_message(now)
        assert self.incoming is not None
        self._take_message(self.incoming.receive(now), events)

    def _begin_message(self, now: float) -> None:
        reader = self._reader
        deflate = rate = None
        if reader.rsv1:
            deflate = self._deflate
            if self._limits.max_compression_ratio is not None:
                if self._inflate_rate is None:
                    self._inflate_rate = InflateRate(self._limits, now)
                rate = self._inflate_rate
        self.incoming = IncomingMessage(reader, self._max_size, self._limits.max_fragments, deflate, rate)

    def _take_message(self, message: str | bytes | None, events: list[Event]) -> None:
        """Take what :attr:`incoming` made of the bytes it was given: the whole message, or None for not yet."""
        incoming = self.incoming
        assert incoming is not None
        self.work += incoming.inflated >> _UNIT_SHIFT
        self._step_ends -= incoming.taken
        if message is not None:
            self.incoming = None
            self.messages_received += 1
            events.append(message)

    def _receive_control(self, events: list[Event], now: float) -> bool:
        """Take a piece of a control frame; False after the peer's Close, as nothing that follows counts."""
        reader = self._reader
        self._control = reader.take() if reader.first else self._control + reader.take()
        if not reader.last:
            return True
        self.frames_received += 1
        if self._rate is not None and reader.opcode != _CLOSE:
            self._rate.spend(now)
        self.only_messages = False
        if reader.opcode == _PING:
            events.append(Ping(self._control))
        elif reader.opcode == _PONG:
            events.append(Pong(self._control))
        else:
            events.append(CloseReceived(*decode_close(self._control)))
            self.stop()
            return False
        return True

    # --- a large message that is read into its own memory -------------------------------------------

    def payload_to_come(self) -> int:
        """Bytes that are still to come of a message in one frame, so that :meth:`get_buffer` can take them; else 0."""
        return 0 if self.incoming is None or self.backlog else self.incoming.payload_to_come()

    def capacity(self) -> int:
        """Bytes of :meth:`payload_to_come` for which there is memory already."""
        return 0 if self.incoming is None or self.backlog else self.incoming.capacity()

    def get_buffer(self) -> memoryview:
        """Memory to read some of :meth:`payload_to_come` into, to be followed by ``Protocol.receive_in_place``."""
        assert self.incoming is not None
        return self.incoming.get_buffer()

    def step_in_place(self, size: int, now: float) -> list[Event]:
        """As :meth:`step`, the next bytes being in :meth:`get_buffer`."""
        events: list[Event] = []
        self._note_bytes(size, now)
        if self.payload_to_come() == 0:
            return events  # It has ended since, and the memory is gone.
        assert self.incoming is not None
        try:
            self._take_message(self.incoming.buffer_updated(size), events)
        except RemoteProtocolError as error:
            self._fail(error, events)
        if self.incoming is None:
            self._liveness.arrival = None
        return events


def failed(error: ProtocolError) -> Failed:
    """The event of an error, which keeps nothing alive: applications keep errors for their logs."""
    error.__traceback__ = error.__context__ = None
    return Failed(error)


class Protocol(BaseProtocol):
    """The state machine of RFC 6455 sections 5 to 7, with RFC 7692.

    Args:
        role: which end this is.
        now: current time in seconds, of a clock that never goes back; the same for every call.
        limits: limits and timeouts.
        deflate: what was agreed on for permessage-deflate, None for no compression.

    Attributes:
        outgoing: encodes what is sent, and holds it until the driver writes it.
        receiver: makes events of the peer's bytes; holds those that have not been taken.
        liveness: watches how long the peer is silent, and how long a message takes to arrive.
        read_paused: whether the driver does not read: the peer's silence then means nothing.
    """

    def __init__(
        self, role: Role, now: float, limits: Limits | None = None, deflate: DeflateParameters | None = None
    ) -> None:
        super().__init__()
        self._client = role is Role.CLIENT
        reader = FrameReader(not self._client, deflate is not None)
        self.outgoing = FrameWriter(self._client)
        self._limits = limits = Limits() if limits is None else limits
        self._deflate = None if deflate is None else Deflate(deflate, now)
        self.liveness = Liveness(limits, self.outgoing, now)
        self.receiver = Receiver(reader, limits, self._deflate, self.liveness, now)
        self.read_paused = False
        self._deadline = inf  # of the present phase of closing

    # --- what came from the peer -----------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that came from the peer, and return all that they mean, in order.

        Bytes after the peer's Close or its violation mean nothing and are dropped (section 5.5.1). A driver takes them
        in steps instead: a few bytes can mean thousands of events, or megabytes.
        """
        events = self.receive_step(data, len(data), now) if data else []
        while self.receiver.backlog:
            events += self.receive_more(now)
        return events

    def receive_step(self, data: bytes | bytearray, size: int, now: float) -> list[Event]:
        """As :meth:`receive_data`, at most one step of it; ``receiver.backlog`` says whether there is more.

        A step ends after ``max_queued_messages`` + 1 frames or pieces of frames, at most 256, or once it has taken more
        than ``max_queued_bytes``, at most 1 MiB. While there is a backlog, bytes are added to it and nothing is taken.

        Args:
            data: memory that stays the caller's.
            size: how many bytes of it have come, at least one.
            now: current time in seconds.
        """
        try:
            return self._follow(self.receiver.step(data, size, now), now)
        except BaseException:
            self._lose_position()
            raise

    def receive_more(self, now: float) -> list[Event]:
        """Take the next step of the backlog."""
        try:
            return self._follow(self.receiver.next_step(now), now)
        except BaseException:
            self._lose_position()
            raise

    def receive_in_place(self, size: int, now: float) -> list[Event]:
        """Take the next bytes, which are in ``receiver.get_buffer()``; otherwise as :meth:`receive_step`."""
        return self._follow(self.receiver.step_in_place(size, now), now)

    def receive_eof(self) -> None:
        """Take note that the TCP stream has ended, in either order with anything else."""
        if self.state is not _CLOSED:
            self._move(Trigger.EOF)

    def _lose_position(self) -> None:
        self.receiver.stop()  # after a signal's handler, or without memory: events are lost
        self.receive_eof()

    def _follow(self, events: list[Event], now: float) -> list[Event]:
        """Do what control frames and violations ask for."""
        if self.receiver.only_messages:
            return events
        for event in events:
            if isinstance(event, Ping):
                if self.state is _OPEN:  # after a Close there are no more frames (section 5.5.1)
                    self.liveness.answer(event.payload, self.write_paused)
            elif isinstance(event, Pong):
                self.liveness.pong_received(event.payload, now)
            elif isinstance(event, CloseReceived):
                self._close_received = (event.code, event.reason)
                self._move(Trigger.PEER_CLOSE)
                self._await_replies(now)
            elif isinstance(event, Failed):
                self._violated(event.error, now)
        return events

    def fail(self, error: ProtocolError, now: float) -> list[Event]:
        """As :meth:`BaseProtocol.fail`."""
        if self.state is not _OPEN:
            self.abort()
            return []
        self._violated(error, now)
        return [failed(error)]

    def incoming_size(self) -> int:
        """As :meth:`BaseProtocol.incoming_size`, zlib's context included where the message is compressed."""
        return 0 if self.receiver.incoming is None else self.receiver.incoming.size()

    def _violated(self, error: ProtocolError, now: float) -> None:
        self._failure = error
        self._move(Trigger.VIOLATION)
        self._await_replies(now)

    def _await_replies(self, now: float) -> None:
        if self.state is _ANSWERING or self.state is _FAILING:
            self._deadline = now + self._limits.reply_timeout
            if self.receiver.messages_received == 0:
                self.messages_handed_over(now)  # There is nothing to reply to.

    # --- the protocol's own answers ------------------------------------------------------------------

    def writing_resumed(self) -> None:
        """Note that the peer reads again; a PONG that waited for that is queued."""
        self.write_paused = False
        self.liveness.writing_resumed()

    def _send_failure(self) -> None:
        assert self._failure is not None
        self._send_close(self._failure.close_code, shorten(str(self._failure)))

    def _send_close(self, code: int, reason: str) -> None:
        payload = encode_close(code, reason)
        self._close_sent = (code, reason)
        self.outgoing.write(_CLOSE, payload)

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
            self.outgoing.write(opcode, self._deflate.compress(payload), _FIN_RSV1)
        else:
            self.outgoing.write(opcode, payload)

    def send_prepared(self, shared: PreparedMessage) -> bytes:
        """Send a message that other connections send as well.

        Returns:
            the bytes to write now; ``b""`` where they are queued, behind others or with a mask of their own.
        """
        if self._client:
            self._send(shared.opcode, shared.payload)  # with a mask of its own
            return b""
        self._check_sending()
        self.messages_sent += 1
        if self._deflate is None or len(shared.payload) < self._deflate.threshold:
            frame = shared.plain()
        else:
            frame = shared.compressed(self._deflate)
        return self.outgoing.write_encoded(frame)

    def ping(self, payload: bytes, now: float) -> None:
        """Queue a PING; its PONG will give the latency."""
        self._check_sending()
        self.liveness.ping(payload, now)

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin the closing handshake, or finish the one that the peer began; nothing when over."""
        encode_close(code, reason)  # refuses what may not be sent, in any state
        if not self.sending:
            return
        if self.state is _FAILING:
            self._send_failure()
        else:
            self._send_close(code, reason)
        self._move(Trigger.LOCAL_CLOSE)
        self._deadline = now + self._limits.close_timeout

    def messages_handed_over(self, now: float) -> None:
        """Note that the application has taken every message and has had its chance to reply.

        A Close that was held back for those replies goes now (section 5.5.1 allows to finish first).
        """
        if self.state is _ANSWERING:
            # "When sending a Close frame in response, the endpoint typically echos the status code" (section 5.5.1).
            assert self._close_received is not None
            self._send_close(self._close_received[0], self._close_received[1])
        elif self.state is _FAILING:
            self._send_failure()
        else:
            return
        self._move(Trigger.HANDED_OVER)
        self._deadline = now + self._limits.close_timeout

    def abort(self) -> None:
        """Give up at once: nothing that is queued will be sent."""
        self.outgoing.drop_unsent()
        if self.state is not _CLOSED:
            self._move(Trigger.ABORT)

    # --- time ----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The time at which :meth:`handle_timeout` wants to be called, None for never; it may move."""
        due = self._due()
        return None if due == inf else due

    def _due(self) -> float:
        if self.state is not _OPEN:
            return self._deadline
        return min(self.liveness.keepalive_due(), self.arrival_due())

    def arrival_due(self) -> float:
        """When what has begun to arrive has come too slowly; infinity where nothing has, or nothing is read."""
        arrival = self.liveness.arrival
        if arrival is None or self.read_paused or self.state is not _OPEN:
            return inf
        return arrival.due(self.receiver.bytes_received)

    def handle_timeout(self, now: float, unsent: int) -> list[Event]:
        """Do what is due at ``now``; nothing when it is called too early.

        Args:
            now: current time in seconds.
            unsent: bytes given to the driver that the kernel has not taken yet. While they shrink the peer is alive,
                though it cannot have seen the PING behind them.
        """
        if now < self._due():
            return []
        if self.state is _OPEN:
            arrival = self.liveness.arrival
            if arrival is not None and now >= self.arrival_due():
                return self.fail(arrival.error(self.receiver.bytes_received, now), now)
            return self._keep_alive(now, unsent)
        if self.state is _ANSWERING or self.state is _FAILING:
            self.messages_handed_over(now)
        else:
            self._move(Trigger.TIMEOUT)
        return []

    def _keep_alive(self, now: float, unsent: int) -> list[Event]:
        liveness, outgoing = self.liveness, self.outgoing
        unread = (self.read_paused or self.receiver.backlog) and unsent == 0
        taken = outgoing.bytes_sent - outgoing.unsent_size - unsent
        if not liveness.unanswered():
            self.release_idle(now)
            liveness.ping_to_keep_alive(taken, now)
        elif not liveness.silence_proves_nothing(taken, unread, now):
            self._failure = liveness.silence()
            self._send_failure()
            self._move(Trigger.PEER_SILENT)
            self._deadline = now + self._limits.close_timeout
            return [Failed(self._failure)]
        return []

    def reading_paused(self, now: float) -> None:
        """Note that nothing is read from now on: how fast the peer sends cannot be known."""
        self.read_paused = True
        self.liveness.reading_paused(now)

    def reading_resumed(self, now: float) -> None:
        """Note that reading goes on."""
        self.read_paused = False
        self.liveness.reading_resumed(now)

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

    # --- how it stands ---------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """As :meth:`FrameWriter.data_to_send`."""
        return self.outgoing.data_to_send()

    def put_back(self, rest: bytes) -> None:
        """As :meth:`FrameWriter.put_back`, unless the connection has ended."""
        if self.state is not _CLOSED:
            self.outgoing.put_back(rest)

    def counts(self) -> Counts:
        """As :meth:`BaseProtocol.counts`."""
        came, sent = self.receiver, self.outgoing
        frames = came.frames_received, sent.frames_sent
        messages = came.messages_received, self.messages_sent
        return Counts(*frames, *messages, came.bytes_received, sent.bytes_sent)

    @property
    def latency(self) -> float | None:
        """As :attr:`BaseProtocol.latency`."""
        return self.liveness.latency

    @property
    def half_close(self) -> bool:
        """Whether this end should now end its direction of the TCP stream, after all queued bytes.

        A server does so when the closing handshake is over (section 7.1.1 has it close first) and either end does when
        it fails the connection; reading goes on until the peer ends its own direction.
        """
        return self.state is _ENDING and (not self._client or self._close_received is None)

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
        BaseProtocol._move(self, trigger)
        if not self.sending:
            self.liveness.forget_pong()
        if self.state is not _OPEN and self.state is not _CLOSING:
            self.receiver.stop()
        if self.state is _CLOSED:
            self._deadline = inf
            if self._deflate is not None:
                self._deflate.close()
