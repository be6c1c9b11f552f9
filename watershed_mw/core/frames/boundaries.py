"""Where frames begin and end in one direction of a stream that is passed on unread (RFC 6455 section 5.2).

Who ends such a stream with a Close frame of its own must not put it into the middle of somebody else's frame. Headers
are walked over, payload is skipped and never kept. Nothing is checked: to the two ends, not to those between, belongs
what the frames mean. What is no stream of frames is at a boundary at the wrong times or never; nothing worse comes of
it. This file is compiled as well as interpreted.
"""

from __future__ import annotations

__all__ = ["Boundaries"]

_CLOSE = 0x8
_MASK_BIT = 0x80
_MASKING_KEY = 4  # bytes
# "the most significant bit MUST be 0" (section 5.2): a length that has it never ends, as far as anybody can tell.
_ENDLESS = 2**63 - 1


class Boundaries:
    """The place in one direction of a stream, from its first frame on.

    Attributes:
        close_passed: whether a Close frame has passed, to its end. "After sending a control frame indicating the
            connection should be closed, a peer does not send any further data" (section 1.4).
    """

    __slots__ = ("_close", "_header", "_length", "_missing", "_payload", "close_passed")

    def __init__(self) -> None:
        self._payload = 0  # bytes of this frame, its masking key among them, that are to come
        self._header = False  # whether the first byte of a header has come, and the second has not
        self._missing = 0  # bytes of the extended length that are to come
        self._length = 0
        self._close = False  # whether this frame is a Close
        self.close_passed = False

    @property
    def at_boundary(self) -> bool:
        """Whether the stream stands between two frames."""
        return self._payload == 0 and not self._header and self._missing == 0

    def feed(self, data: bytes | bytearray, start: int, stop: int) -> None:
        """Pass over ``data[start:stop]``, all of which must be there."""
        self._scan(data, start, stop, False)

    def feed_to_boundary(self, data: bytes | bytearray, start: int, stop: int) -> int:
        """Pass over ``data[start:stop]`` up to the first boundary, and no further.

        Returns:
            where that is, ``start`` if the stream stands at one already; -1 if it is not in there, and all has passed.
        """
        return start if self.at_boundary else self._scan(data, start, stop, True)

    def _scan(self, data: bytes | bytearray, start: int, stop: int, once: bool) -> int:
        source = data
        position = start
        while position < stop:
            if self._missing > 0:
                self._length = self._length << 8 | source[position]
                position += 1
                self._missing -= 1
                if self._missing > 0:
                    continue
                if self._length > _ENDLESS:
                    self._length = _ENDLESS
                self._payload += self._length
            elif self._payload > 0:
                step = stop - position
                if self._payload < step:
                    step = self._payload
                position += step
                self._payload -= step
                if self._payload > 0:
                    break
            elif not self._header:
                self._header = True
                self._close = source[position] & 0xF == _CLOSE
                position += 1
                continue
            else:
                second = source[position]
                position += 1
                self._header = False
                self._payload = _MASKING_KEY if second & _MASK_BIT else 0
                self._length = second & 0x7F
                if self._length >= 126:
                    self._missing = 2 if self._length == 126 else 8
                    self._length = 0
                    continue
                self._payload += self._length
            if self._payload == 0:
                if self._close:
                    self.close_passed = True
                if once:
                    return position
        return -1
