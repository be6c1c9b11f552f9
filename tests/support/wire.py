"""Hand-built frames (RFC 6455 section 5.2), independent of the package: what tests send and read back.

Builds invalid frames as readily as valid ones, and favours readability over speed. The package imports nothing from
here, and this module imports nothing from the package.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = bytes.fromhex("37fa213d")  # the masking key of section 5.7


@dataclass(frozen=True)
class Frame:
    """One frame as it was on the wire, with its payload unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    key: bytes | None = None


def xor(payload: bytes, key: bytes) -> bytes:
    """Section 5.3: each octet of the payload XOR the octet of the key at its index modulo 4."""
    masked = bytearray(payload)
    for index, octet in enumerate(key):
        masked[index::4] = payload[index::4].translate(_exclusive_or(octet))
    return bytes(masked)


@functools.cache
def _exclusive_or(octet: int) -> bytes:
    return bytes(other ^ octet for other in range(256))


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    declared: int | None = None,
    form: int | None = None,
) -> bytes:
    """The bytes of a frame.

    Args:
        opcode: 0x0 to 0xF.
        payload: payload before masking.
        fin: the FIN bit.
        rsv: RSV1, RSV2, RSV3 as a number; 4 is RSV1.
        key: masking key, or None for a frame without a mask.
        declared: length that the header declares; that of ``payload`` unless given.
        form: 7, 16 or 64 bits of length; the shortest unless given.
    """
    size = len(payload) if declared is None else declared
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    masked = 0x80 if key is not None else 0
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if form == 7:
        header = bytes([first, masked | size])
    elif form == 16:
        header = bytes([first, masked | 126]) + size.to_bytes(2, "big")
    else:
        header = bytes([first, masked | 127]) + size.to_bytes(8, "big")
    return header + (payload if key is None else key + xor(payload, key))


def close(code: int, reason: str = "", *, key: bytes | None = None) -> bytes:
    """A Close frame with any code."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode(), key=key)


def message(opcode: int, pieces: Iterable[bytes], *, rsv: int = 0, key: bytes | None = None) -> bytes:
    """A message, one frame per piece."""
    parts = list(pieces)
    return b"".join(
        frame(
            CONTINUATION if index else opcode,
            piece,
            fin=index == len(parts) - 1,
            rsv=0 if index else rsv,
            key=key,
        )
        for index, piece in enumerate(parts)
    )


def frames(data: bytes) -> list[Frame]:
    """All frames of ``data``, which must end at a frame's end."""
    return list(_frames(data))


def _frames(data: bytes) -> Iterator[Frame]:
    while data:
        first, second = data[0], data[1]
        size, start = second & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
            assert size >= 126, "not the shortest form"
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
            assert size >= 65536, "not the shortest form"
        key = None
        if second & 0x80:
            key, start = data[start : start + 4], start + 4
        payload = data[start : start + size]
        assert len(payload) == size, "the last frame is incomplete"
        yield Frame(
            first & 0x0F,
            payload if key is None else xor(payload, key),
            bool(first & 0x80),
            first >> 4 & 7,
            key,
        )
        data = data[start + size :]
