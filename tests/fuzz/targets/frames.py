"""Targets for a peer's bytes: the protocol in any chunks, compression, close codes, and frame boundaries."""

from __future__ import annotations

import contextlib
import zlib

from tests.fuzz.source import Source
from watershed_mw import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from watershed_mw.core.codes import decode_close, encode_close, is_sendable, shorten
from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.core.frames.boundaries import Boundaries
from watershed_mw.core.frames.codec import encode_frame
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role, State

# All that may escape. What the peer does wrong is an event of the protocol, never an exception.
PROTOCOL_RAISES = (ConnectionClosed, LocalProtocolError)
LIMITS = Limits(max_message_size=5000, max_fragments=50)
_OPCODES = (0, 1, 2, 8, 9, 10, 3, 15)


def _frame(source: Source, role: Role) -> bytes:
    """A frame that the peer of ``role`` may send, or almost."""
    key = source.data(4).ljust(4, b"\0") if role is Role.SERVER else None
    first_bits = source.pick((0x80, 0x00, 0xC0, 0x40, 0xA0))
    return encode_frame(source.pick(_OPCODES), source.data(200), key, first_bits)


def protocol(source: Source) -> None:
    """A peer's bytes in any chunks, interleaved with any calls of driver and application."""
    role = source.pick((Role.SERVER, Role.CLIENT))
    parameters = DeflateParameters(remote_max_window_bits=9) if source.boolean() else None
    subject = Protocol(role, 0.0, LIMITS, parameters)
    now = 0.0
    while source.remaining:
        now += source.integer(0, 5)
        with contextlib.suppress(*PROTOCOL_RAISES):
            _act(subject, source, now, role)
        assert len(subject.data_to_send()) < 100_000
        assert subject.ended is (subject.state in (State.ENDING, State.CLOSED))


def _act(subject: Protocol, source: Source, now: float, role: Role) -> None:
    """Do one thing, most often receive bytes from the peer."""
    match source.integer(0, 25):
        case 25:
            subject.send_text(source.text(20))
        case 24:
            subject.send_binary(source.data(100))
        case 23:
            subject.ping(source.data(130), now)
        case 22:
            subject.close(source.integer(995, 5005), source.text(130), now)
        case 21:
            subject.messages_handed_over(now)
        case 20:
            _check(subject.handle_timeout(now, source.integer(0, 3)))
        case 19:
            subject.write_paused = True
        case 18:
            subject.writing_resumed()
        case 17:
            subject.receive_eof()
        case 16:
            subject.abort()
        case choice if choice < 8:
            _check(subject.receive_data(_frame(source, role), now))
        case _:
            _check(subject.receive_data(source.data(200), now))


def _check(events: list[Event]) -> None:
    """A failure is always the last event, and has a text; no message exceeds the limit."""
    for number, event in enumerate(events):
        if isinstance(event, Failed):
            assert number == len(events) - 1
            assert str(event.error)
        elif isinstance(event, str):
            assert len(event.encode()) <= 5000
        elif isinstance(event, bytes):
            assert len(event) <= 5000
        elif isinstance(event, (Ping, Pong)):
            assert len(event.payload) <= 125
        else:
            assert isinstance(event, CloseReceived)


def chunks(source: Source) -> None:
    """The same bytes whole, in two parts and byte by byte have the same meaning."""
    role = source.pick((Role.SERVER, Role.CLIENT))
    parameters = DeflateParameters() if source.boolean() else None
    middle = source.integer(0, 200)
    frames = b"".join(_frame(source, role) for _ in range(source.integer(0, 4)))
    data = frames + source.rest()[:300]
    seen = []
    for parts in ([data], [data[:middle], data[middle:]], [data[i : i + 1] for i in range(len(data))]):
        subject = Protocol(role, 0.0, LIMITS, parameters)
        events = [event for part in parts for event in subject.receive_data(part, 0.0)]
        texts = [str(event.error) if isinstance(event, Failed) else event for event in events]
        seen.append((texts, subject.state, subject.counts().messages_received, subject.next_deadline()))
    assert seen[0] == seen[1] == seen[2], seen


def deflated(source: Source) -> None:
    """Two ends of this package interoperate with any parameters; bytes that are not deflate data end in an event."""
    bits, other_bits = source.integer(9, 15), source.integer(9, 15)
    taken, other_taken = source.boolean(), source.boolean()
    options = DeflateOptions(level=source.integer(0, 9), memory_level=source.integer(1, 9), threshold=0)
    server = Protocol(Role.SERVER, 0.0, LIMITS, DeflateParameters(taken, other_taken, bits, other_bits, options))
    client = Protocol(Role.CLIENT, 0.0, LIMITS, DeflateParameters(other_taken, taken, other_bits, bits, options))
    ends = (server, client)
    for number in range(source.integer(1, 6)):
        one = source.pick(ends)
        other = client if one is server else server
        message = source.data(60) * source.integer(1, 40)
        one.send_binary(message)
        assert other.receive_data(one.data_to_send(), 0.0) == [message]
        if source.rarely():
            other.release_idle(100.0 * (number + 1))
    garbage = encode_frame(2, source.rest()[:500], b"\0\0\0\0", 0xC0)
    _check(server.receive_data(garbage, 0.0))


def deflated_by_zlib(source: Source) -> None:
    """A message inflates to what zlib itself makes of it, within the limit."""
    level, bits = source.integer(0, 9), source.integer(9, 15)
    deflater = zlib.compressobj(level, zlib.DEFLATED, -bits)
    subject = Protocol(Role.SERVER, 0.0, LIMITS, DeflateParameters())
    for _ in range(source.integer(1, 4)):
        message = source.data(100) * source.integer(1, 100)
        payload = b""
        position = 0
        while position < len(message):
            step = source.integer(1, 3000)
            payload += deflater.compress(message[position : position + step])
            position += step
            if source.boolean():
                payload += deflater.flush(source.pick((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)))
        payload += deflater.flush(zlib.Z_SYNC_FLUSH)
        payload = payload or b"\x00\x00\x00\xff\xff"  # zlib has nothing to flush twice
        assert payload.endswith(b"\x00\x00\xff\xff")
        events = subject.receive_data(encode_frame(2, payload[:-4], b"\1\2\3\4", 0xC0), 0.0)
        if len(message) > 5000:
            assert isinstance(events[-1], Failed)
            assert events[-1].error.close_code == 1009
            return
        assert events == [message], (events, message)


def boundaries(source: Source) -> None:
    """A relay and a parser agree on where frames end, in any chunks."""
    role = source.pick((Role.SERVER, Role.CLIENT))
    data = b"".join(_frame(source, role) for _ in range(source.integer(0, 4))) + source.data(30)
    middle = source.integer(0, len(data))
    halves, bytewise = Boundaries(), Boundaries()
    halves.feed(data, 0, middle)
    halves.feed(data, middle, len(data))
    for index in range(len(data)):
        bytewise.feed(data, index, index + 1)
    assert halves.at_boundary == bytewise.at_boundary
    assert halves.close_passed == bytewise.close_passed
    first = Boundaries()
    at = position = 0
    while position < len(data) and at >= 0:
        first.feed(data, position, position + 1)
        at = first.feed_to_boundary(data, position + 1, len(data))
        assert at == -1 or position < at <= len(data)
        position = at
    assert first.at_boundary == halves.at_boundary
    assert halves.at_boundary is _ends_with_a_frame(data)


def _ends_with_a_frame(data: bytes) -> bool:
    """RFC 6455 section 5.2 again, in as few lines as possible."""
    while data:
        size = data[1] & 0x7F if len(data) > 1 else 0
        header = 2 + {126: 2, 127: 8}.get(size, 0)
        if len(data) < header:
            return False
        if size >= 126:
            size = int.from_bytes(data[2:header], "big")
        size += header + (4 if data[1] & 0x80 else 0)
        if len(data) < size:
            return False
        data = data[size:]
    return True


def close_codes(source: Source) -> None:
    """A Close payload is understood or refused, and an understood one can be sent again."""
    payload = source.data(130)
    try:
        code, reason = decode_close(payload)
    except RemoteProtocolError as error:
        assert error.close_code in (1002, 1007)
    else:
        assert code == 1005 or is_sendable(code)
        if len(payload) <= 125:
            assert encode_close(code, reason) == payload
    code, reason = source.integer(0, 5100), source.text(140)
    try:
        encoded = encode_close(code, reason)
    except LocalProtocolError:
        assert not is_sendable(code) or len(reason.encode("utf-8", "surrogatepass")) > 123 or _has_surrogates(reason)
    else:
        assert len(encoded) <= 125
        assert decode_close(encoded) == (code, reason)
    assert len(shorten(reason).encode()) <= 123
    assert encode_close(4000, shorten(reason))


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


TARGETS = (protocol, chunks, deflated, deflated_by_zlib, boundaries, close_codes)
