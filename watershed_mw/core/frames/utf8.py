"""UTF-8 that comes in pieces: a fault in a large message shows before its end, and before any text is made of it.

This file is compiled as well as interpreted; the interpreted check uses Python's own decoder, which is faster there.
"""

from __future__ import annotations

import codecs
from typing import Any

from ...errors import RemoteProtocolError

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.libc.string import memcpy

__all__ = ["TextCheck", "not_utf8", "utf8_state"]

# The highest bit of each of eight bytes, which is 0 in ASCII.
_HIGH_BITS = 0x8080808080808080

if cython.compiled:

    def _past_ascii(source: Any, index: int, stop: int) -> int:
        """Where ASCII may end: four machine words at a time, as long as there is nothing else in them."""
        word0 = word1 = word2 = word3 = 0
        while index + 32 <= stop:
            memcpy(cython.address(word0), source + index, 8)
            memcpy(cython.address(word1), source + index + 8, 8)
            memcpy(cython.address(word2), source + index + 16, 8)
            memcpy(cython.address(word3), source + index + 24, 8)
            if (word0 | word1 | word2 | word3) & _HIGH_BITS:
                break
            index += 32
        return index


def utf8_state(data: bytes | bytearray, start: int, stop: int, state: int) -> int:
    """Check UTF-8 (RFC 3629 section 4) that comes in pieces.

    Args:
        data, start, stop: the next piece is ``data[start:stop]``.
        state: as it was returned for the piece before; 0 at first.

    Returns:
        0 between two characters, a number above 0 within one, and -1 once it is no UTF-8.
    """
    return _state_after(data, start, stop, state)


def _state_after(source: Any, start: int, stop: int, state: int) -> int:
    if state < 0:
        return -1
    # How many bytes the character still has, and between which two numbers the next of them must be.
    need, low, high = state & 0xFF, (state >> 8) & 0xFF, (state >> 16) & 0xFF
    index = start
    while index < stop:
        if need == 0:
            if cython.compiled:
                index = _past_ascii(source, index, stop)
                if index == stop:
                    break
            byte = source[index]
            index += 1
            if byte < 0x80:
                continue
            if byte < 0xC2 or byte > 0xF4:
                return -1
            low, high = 0x80, 0xBF
            if byte < 0xE0:
                need = 1
            elif byte < 0xF0:
                need = 2
                if byte == 0xE0:
                    low = 0xA0
                elif byte == 0xED:
                    high = 0x9F
            else:
                need = 3
                if byte == 0xF0:
                    low = 0x90
                elif byte == 0xF4:
                    high = 0x8F
        else:
            byte = source[index]
            index += 1
            if byte < low or byte > high:
                return -1
            low, high = 0x80, 0xBF
            need -= 1
    return need | low << 8 | high << 16 if need else 0


class TextCheck:
    """Checks one TEXT message while its pieces come."""

    __slots__ = ("_decoder", "_state")

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._state = 0

    def check(self, data: bytes | bytearray, start: int, stop: int, last: bool) -> None:
        """Check the next piece, ``data[start:stop]``.

        Raises:
            RemoteProtocolError: it is no UTF-8; close code 1007.
        """
        if cython.compiled:
            self.check_memory(data, start, stop, last)
            return
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            self._decoder.decode(data[start:stop], last)
            # CPython waits for a third byte to report that a surrogate has begun; the second one shows it.
            pending = self._decoder.getstate()[0]
            valid = len(pending) < 2 or pending[0] != 0xED or pending[1] < 0xA0
        except UnicodeDecodeError:
            valid = False
        if not valid:
            raise not_utf8()

    if cython.compiled:

        def check_memory(self, source: Any, start: int, stop: int, last: bool) -> None:
            """As :meth:`check`, of memory that is no object yet."""
            self._state = _state_after(source, start, stop, self._state)
            if self._state < 0 or (last and self._state > 0):
                raise not_utf8()


def not_utf8() -> RemoteProtocolError:
    """The error that fails a connection whose peer sends other bytes as text."""
    return RemoteProtocolError("expected UTF-8 in a TEXT message, got other bytes", close_code=1007)
