"""Frames on the wire (RFC 6455 section 5): masking, encoding, a writer, and a reader that never waits for a whole one.

This file is compiled as well as interpreted; the C types are in ``codec.pxd``. The reader trusts no byte: it reports
each piece of payload as it arrives and, unless it is asked to gather them, keeps nothing but an incomplete header.
What a frame means within its message is up to the protocol.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Any

from ...errors import RemoteProtocolError
from .payload_buffer import PayloadBuffer
from .utf8 import not_utf8

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
    from cython.cimports.cpython.unicode import PyUnicode_AsUTF8AndSize
    from cython.cimports.libc.string import memcpy

__all__ = ["FrameReader", "FrameWriter", "encode_frame", "encode_header", "mask"]

_FIN = 0x80
# Masking keys are drawn 64 at a time, with one system call.
_KEYS = Struct("4s" * 64)
# Bytes from which a payload is queued as it is, behind its header, instead of being copied into its frame.
_LARGE_PAYLOAD = 2 * 2**10

# The interpreted form exclusive-ors so many bytes at a time, with a key times this number: the key again and again.
_BLOCK = 16 * 2**10
_ONES = int.from_bytes(b"\x01\x00\x00\x00" * (_BLOCK // 4), "little")


def mask(data: bytes | bytearray, start: int, stop: int, key: bytes, phase: int) -> bytes:
    """``data[start:stop]`` exclusive-or the masking key, in new bytes (section 5.3); ``data`` is left alone.

    Args:
        data: masked or unmasked payload; the operation is its own inverse.
        start: first byte taken.
        stop: end of the bytes taken.
        key: masking key, 4 bytes.
        phase: how many bytes of the same payload came before, modulo 4.
    """
    size = stop - start
    if cython.compiled:
        # Fresh memory, written once.
        result = PyBytes_FromStringAndSize(cython.NULL, size)
        source: Any = data
        _mask_to(cython.cast("unsigned char *", PyBytes_AS_STRING(result)), source + start, size, _number(key), phase)
        return result  # type: ignore[no-any-return]
    # One exclusive-or of two long integers is the fastest loop that the interpreter has.
    turned = key[phase & 3 :] + key[: phase & 3] if phase else key
    if size < _BLOCK:
        return _mask_block(data[start:stop], turned)
    # Of integers that stay in the processor's cache, one of them made once.
    word = int.from_bytes(turned, "little") * _ONES
    pieces = []
    while stop - start >= _BLOCK:
        number = int.from_bytes(data[start : start + _BLOCK], "little") ^ word
        pieces.append(number.to_bytes(_BLOCK, "little"))
        start += _BLOCK
    pieces.append(_mask_block(data[start:stop], turned))
    return b"".join(pieces)


if not cython.compiled:

    def _mask_block(data: bytes | bytearray, key: bytes) -> bytes:
        size = len(data)
        repeated = (key * (size // 4 + 1))[:size]
        number = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
        return number.to_bytes(size, "little")


if cython.compiled:

    def _number(key: bytes) -> int:
        """A masking key as a number, its first byte the lowest."""
        keys = key
        # Unsigned: a byte of 0x80 and more has no place 24 bits further left in C's int.
        highest = keys[3]
        return keys[0] | keys[1] << 8 | keys[2] << 16 | highest << 24

    def _mask_to(target: Any, source: Any, size: int, key: int, phase: int) -> None:
        """As :func:`mask`, into memory that is there: eight bytes at a time, of which the C compiler makes vectors."""
        word = chunk = 0
        keys = cython.cast("unsigned char *", cython.address(word))
        for index in range(8):
            keys[index] = (key >> (8 * ((phase + index) & 3))) & 0xFF
        index = 0
        while index + 8 <= size:
            memcpy(cython.address(chunk), source + index, 8)
            chunk ^= word
            memcpy(target + index, cython.address(chunk), 8)
            index += 8
        while index < size:
            target[index] = source[index] ^ keys[index & 7]
            index += 1

    def _header_size(size: int) -> int:
        """Bytes of a frame's header that come before its masking key."""
        return 2 if size < 126 else 4 if size < 65536 else 10

    def _put_header(target: Any, first_byte: int, mask_bit: int, size: int) -> None:
        header_size = _header_size(size)
        target[0] = first_byte
        target[1] = mask_bit | (size if header_size == 2 else 126 if header_size == 4 else 127)
        for index in range(2, header_size):
            target[index] = (size >> (8 * (header_size - 1 - index))) & 0xFF


def encode_frame(opcode: int, payload: bytes | str, key: bytes | None, first_bits: int = 0x80) -> bytes:
    """One frame in its shortest form (section 5.2).

    Args:
        opcode: 0x0 to 0xF.
        payload: payload, unmasked; it is left alone. A ``str`` may hold ASCII alone.
        key: masking key of 4 bytes, or None for a frame without a mask.
        first_bits: FIN and RSV bits of the first byte; default FIN alone.

    Raises:
        ValueError: text that is not ASCII.
    """
    if isinstance(payload, str) and not payload.isascii():
        raise ValueError(f"expected ASCII alone where a frame's payload is text, got {payload!r}: encode it first")
    size = len(payload)
    if cython.compiled:
        # One copy of the payload, from where the message has it.
        if isinstance(payload, str):
            source = cython.cast("const unsigned char *", PyUnicode_AsUTF8AndSize(payload, cython.address(size)))
        else:
            source = cython.cast("const unsigned char *", PyBytes_AS_STRING(payload))
        header_size = _header_size(size)
        head = header_size if key is None else header_size + 4
        result = PyBytes_FromStringAndSize(cython.NULL, head + size)
        target = cython.cast("unsigned char *", PyBytes_AS_STRING(result))
        _put_header(target, first_bits | opcode, 0 if key is None else 0x80, size)
        if key is None:
            memcpy(target + head, source, size)
        else:
            memcpy(target + header_size, PyBytes_AS_STRING(key), 4)
            _mask_to(target + head, source, size, _number(key), 0)
        return result  # type: ignore[no-any-return]
    data = payload.encode("ascii") if isinstance(payload, str) else payload
    return encode_header(opcode, size, key, first_bits) + (data if key is None else mask(data, 0, size, key, 0))


def encode_header(opcode: int, size: int, key: bytes | None, first_bits: int = 0x80) -> bytes:
    """The header alone of a frame with ``size`` bytes of payload; the rest as for :func:`encode_frame`."""
    mask_bit = 0 if key is None else 0x80
    if cython.compiled:
        # Not by way of a tuple, which takes longer than the whole of a small frame.
        header_size = _header_size(size)
        header = PyBytes_FromStringAndSize(cython.NULL, header_size if key is None else header_size + 4)
        target = cython.cast("unsigned char *", PyBytes_AS_STRING(header))
        _put_header(target, first_bits | opcode, mask_bit, size)
        if key is not None:
            memcpy(target + header_size, PyBytes_AS_STRING(key), 4)
        return header  # type: ignore[no-any-return]
    if size < 126:
        header = bytes((first_bits | opcode, mask_bit | size))
    elif size < 65536:
        header = bytes((first_bits | opcode, mask_bit | 126, size >> 8, size & 0xFF))
    else:
        header = bytes((first_bits | opcode, mask_bit | 127)) + size.to_bytes(8, "big")
    return header if key is None else header + key


class FrameReader:
    """Turns bytes, in any chunking, into pieces of frames.

    Args:
        masked: whether the peer must mask (it is a client) or must not (section 5.1).
        rsv1: whether an extension gives RSV1 a meaning (RFC 7692 section 6).

    Attributes:
        opcode, fin, rsv1: of the frame that the current piece belongs to.
        length: payload length that this frame declares, in bytes.
        first, last: whether the piece begins the frame's payload, and whether it ends it.
        position, end: where reading goes on in what has come, and where that ends; once :meth:`read` has returned
            False, ``end`` is how many bytes have come of the next header.
    """

    def __init__(self, masked: bool, rsv1: bool) -> None:
        self._masked = masked
        self._rsv1_allowed = rsv1
        self._owner: bytes | bytearray = b""
        self._data: Any = self._owner  # compiled, a pointer into it
        self.end = 0
        self.position = 0
        self._remaining = 0
        self._key = 0
        self._phase = 0
        self._start = 0
        self._size = 0
        self.opcode = 0
        self.fin = False
        self.rsv1 = False
        self.length = 0
        self.first = False
        self.last = True

    def feed(self, data: bytes) -> None:
        """Add bytes that came from the peer; call :meth:`read` until it returns False before the next."""
        self.borrow(data, len(data))

    def borrow(self, data: bytes | bytearray, size: int) -> None:
        """As :meth:`feed` the first ``size`` bytes of ``data``.

        The caller may change them once :meth:`read` has returned False, or after :meth:`keep_rest`.
        """
        if self.end > 0:
            data = bytes(self._owner[self.position : self.end]) + data[:size]
            size = len(data)
            self.position = 0
        self._owner = self._data = data
        self.end = size

    def read(self) -> bool:
        """Go to the next piece, which may be empty; False when more bytes are needed.

        Raises:
            RemoteProtocolError: the frame breaks a rule that its header alone shows.
        """
        available = self.end - self.position
        if self.last:
            if available < 2 or not self._read_header(available):
                self.keep_rest()
                return False
            available = self.end - self.position
            self.first = True
        elif available == 0:
            self.keep_rest()
            return False
        else:
            self.first = False
        size = self._remaining
        if size > available:
            size = available
        self._start = self.position
        self._size = size
        self.position += size
        self._remaining -= size
        self.last = self._remaining == 0
        return True

    def take(self) -> bytes:
        """The piece, unmasked; once."""
        start = self._start
        if cython.compiled:
            source = self._data + start
            if not self._masked:
                return PyBytes_FromStringAndSize(cython.cast("char *", source), self._size)  # type: ignore[no-any-return]
            piece = PyBytes_FromStringAndSize(cython.NULL, self._size)
            target = cython.cast("unsigned char *", PyBytes_AS_STRING(piece))
            _mask_to(target, source, self._size, self._key, self._phase)
        else:
            stop = start + self._size
            if not self._masked:
                return bytes(self._data[start:stop])
            piece = mask(self._data, start, stop, self._key.to_bytes(4, "little"), self._phase)
        self._phase = (self._phase + self._size) & 3
        return piece  # type: ignore[no-any-return]

    def gather(self, buffer: PayloadBuffer) -> None:
        """Put the piece, unmasked, behind those before it of the same frame."""
        if cython.compiled:
            size = self._size
            if size == 0:
                return
            target = buffer.reserve(size)
            if self._masked:
                _mask_to(target, self._data + self._start, size, self._key, self._phase)
                self._phase = (self._phase + size) & 3
            else:
                memcpy(target, self._data + self._start, size)
            buffer.size += size
        else:
            buffer.add(self.take())

    def buffer_updated(self, buffer: PayloadBuffer, size: int) -> None:
        """Take note of the next piece, which is where ``buffer.get_buffer()`` said, masked as it came."""
        if cython.compiled:
            target = buffer.reserve(size)
            if self._masked:
                _mask_to(target, target, size, self._key, self._phase)
            buffer.size += size
        elif self._masked:
            buffer.add(mask(buffer.scratch, 0, size, self._key.to_bytes(4, "little"), self._phase))
        else:
            buffer.add(memoryview(buffer.scratch)[:size])
        self._phase = (self._phase + size) & 3
        self.first = False
        self._remaining -= size
        self.last = self._remaining == 0

    def take_text(self) -> str:
        """The text of a whole message, as :meth:`take`.

        Raises:
            RemoteProtocolError: it is not UTF-8; close code 1007.
        """
        try:
            return self.take().decode()
        except UnicodeDecodeError:
            pass
        # Raised out here, as an exception in the context of another holds on to the payload.
        raise not_utf8()

    def forget(self) -> None:
        """Let go of every byte: nothing more will be read."""
        self.position = self.end
        self.keep_rest()

    def suspend(self) -> bool:
        """Stop reading before :meth:`read` has returned False, to go on at any time; whether there is more to read."""
        more = self.position < self.end
        if not more or not isinstance(self._owner, bytes):
            self.keep_rest()  # only bytes stay as they are
        return more

    def keep_rest(self) -> None:
        """Copy the bytes that are still to be read: mostly none, or at most 13 of a header.

        An idle connection does not hold on to a whole read, and the memory that was lent goes back to its owner.
        """
        rest = b"" if self.position == self.end else bytes(self._data[self.position : self.end])
        self._owner = self._data = rest
        self.end = len(rest)
        self.position = 0

    def _read_header(self, available: int) -> bool:
        data = self._data
        position = self.position
        byte0 = data[position]
        byte1 = data[position + 1]
        self.opcode = byte0 & 0x0F
        self.fin = byte0 >= 0x80
        self.rsv1 = (byte0 & 0x40) != 0
        if byte0 & 0x7F not in (0x1, 0x2) or (byte1 >= 0x80) != self._masked:  # not just a message's first frame
            self._check_first_bytes(byte0, byte1)
        length = byte1 & 0x7F
        size = 6 if self._masked else 2
        # Check the length as soon as its bytes are here: the peer may send the rest slowly.
        if length == 126:
            if available < 4:
                return False
            length = (data[position + 2] << 8) | data[position + 3]
            if length < 126:
                raise RemoteProtocolError(f"expected the shortest form of a frame's length, got {length} in 16 bits")
            size += 2
        elif length == 127:
            if available < 10:
                return False
            if data[position + 2] >= 0x80:
                raise RemoteProtocolError("expected a frame length below 2**63, got its highest bit set")
            length = int.from_bytes(data[position + 2 : position + 10], "big")
            if length < 65536:
                raise RemoteProtocolError(f"expected the shortest form of a frame's length, got {length} in 64 bits")
            size += 8
        if available < size:
            return False
        if self._masked:
            key = position + size - 4
            highest = data[key + 3]  # unsigned, as in _number()
            self._key = data[key] | data[key + 1] << 8 | data[key + 2] << 16 | highest << 24
            self._phase = 0
        self.position = position + size
        self._remaining = length
        self.length = length
        return True

    def _check_first_bytes(self, byte0: int, byte1: int) -> None:
        if byte0 & 0x30 or (self.rsv1 and not self._rsv1_allowed):
            raise RemoteProtocolError("expected reserved bits of 0, got one that no extension has given a meaning")
        if self.rsv1 and (self.opcode == 0 or self.opcode >= 8):
            raise RemoteProtocolError("expected RSV1 on the first frame of a message alone, got it on another frame")
        if (self.opcode > 2 and self.opcode < 8) or self.opcode > 10:
            raise RemoteProtocolError(f"expected a known opcode, got {self.opcode}")
        if (byte1 >= 0x80) != self._masked:
            # Section 5.1: "a server MUST close the connection upon receiving a frame that is not masked",
            # and "a client MUST close a connection if it detects a masked frame".
            expected, got = ("a masked", "an unmasked") if self._masked else ("an unmasked", "a masked")
            raise RemoteProtocolError(f"expected {expected} frame, got {got} one")
        if self.opcode >= 8:
            if not self.fin:
                raise RemoteProtocolError("expected a control frame in one piece, got a fragment")
            if (byte1 & 0x7F) > 125:
                raise RemoteProtocolError("expected a control frame of at most 125 bytes, got a longer one")


class FrameWriter:
    """Encodes frames, and holds them until the driver writes them.

    Args:
        masked: whether this end must mask its frames (it is a client) or must not (section 5.1).

    Attributes:
        masked: as given.
        unsent_size: bytes that wait to be written.
        frames_sent, bytes_sent: how many frames and bytes have ever been queued.
    """

    def __init__(self, masked: bool) -> None:
        self.masked = masked
        self.unsent_size = 0
        self.frames_sent = 0
        self.bytes_sent = 0
        self._piece = b""
        self._pieces: list[bytes] | None = None  # only where there is more than one
        self._keys: list[bytes] | None = None

    def write(self, opcode: int, payload: bytes | str, first_bits: int = _FIN) -> None:
        """Queue a frame; the arguments are those of :func:`encode_frame`."""
        self.frames_sent += 1
        if len(payload) >= _LARGE_PAYLOAD and not self.masked and isinstance(payload, bytes):
            self._queue(encode_header(opcode, len(payload), None, first_bits))
            self._queue(payload)
        else:
            self._queue(encode_frame(opcode, payload, self._next_key() if self.masked else None, first_bits))

    def write_encoded(self, frame: bytes) -> bytes:
        """Queue a frame that other connections send as well.

        Returns:
            the frame where nothing else waits: it counts as sent, and the caller writes it at once; else ``b""``.
        """
        self.frames_sent += 1
        if self.unsent_size:
            self._queue(frame)
            return b""
        self.bytes_sent += len(frame)
        return frame

    def data_to_send(self) -> bytes:
        """Remove the bytes that wait and return them; ``b""`` when there are none."""
        data = self._piece if self._pieces is None else b"".join(self._pieces)
        self.drop_unsent()
        return data

    def pieces_to_send(self) -> list[bytes]:
        """As :meth:`data_to_send`, in pieces: large payloads have not been copied."""
        pieces = self._pieces
        if pieces is None:
            pieces = [self._piece] if self._piece else []
        self.drop_unsent()
        return pieces

    def put_back(self, rest: bytes) -> None:
        """Queue the end of what :meth:`data_to_send` returned, which could not be written, before everything else."""
        if rest:
            self._pieces = [rest, *self.pieces_to_send()]
            self.unsent_size = sum(map(len, self._pieces))

    def drop_unsent(self) -> None:
        """Forget the bytes that wait."""
        self._piece = b""
        self._pieces = None
        self.unsent_size = 0

    def _queue(self, piece: bytes) -> None:
        if self.unsent_size == 0:
            self._piece = piece
        elif self._pieces is None:
            self._pieces = [self._piece, piece]
        else:
            self._pieces.append(piece)
        self.bytes_sent += len(piece)
        self.unsent_size += len(piece)

    def _next_key(self) -> bytes:
        # "The masking key needs to be unpredictable" (section 5.3): a strong source, 4 fresh bytes for each frame.
        if not self._keys:
            self._keys = list(_KEYS.unpack(os.urandom(_KEYS.size)))
        key: bytes = self._keys.pop()
        return key
