"""A message that arrives in several pieces: fragments, compressed data, or one frame in several reads.

This file is compiled as well as interpreted; the C types are in ``incoming.pxd``. A small message that arrives whole
never comes here: :mod:`watershed_mw.core.protocol` takes it from the reader.
"""

from __future__ import annotations

from ..errors import RemoteProtocolError
from .deflate import Deflate
from .frames.codec import FrameReader
from .frames.payload_buffer import PayloadBuffer
from .frames.utf8 import TextCheck, not_utf8
from .limits import too_large
from .pace import InflateRate

__all__ = ["IncomingMessage"]

_TEXT = 0x1
_CONTEXT = 64 * 2**10  # bytes that a context of zlib counts for at least: a peer needs few to make this end hold it


class IncomingMessage:
    """One message, from its first frame's header to its last byte.

    Args:
        reader: stands at the first piece of the message's first frame.
        max_size: largest size in bytes, -1 for any.
        max_fragments: how many frames it may have.
        deflate: inflates it, None for a message that is not compressed.
        rate: how much it may inflate to, None where nothing limits that.

    Attributes:
        taken: bytes that the last call has added, or completed.
        inflated: bytes that zlib has returned in the last call.

    Raises:
        RemoteProtocolError: the first frame is larger than the message may be.
    """

    def __init__(
        self, reader: FrameReader, max_size: int, max_fragments: int, deflate: Deflate | None, rate: InflateRate | None
    ) -> None:
        self._reader = reader
        self._deflate = deflate
        self._rate = rate
        self._max_size = max_size
        self._max_fragments = max_fragments
        self._fragments = 0
        self._wire_size = 0
        self._text = reader.opcode == _TEXT
        self._utf8: TextCheck | None = None
        self._pieces = bytearray()
        self._buffer: PayloadBuffer | None = None
        self.taken = 0
        self.inflated = 0
        if rate is not None:
            rate.begin()
        self.begin_frame()
        if reader.fin and deflate is None:
            # A large message in one frame: its length is known, so its bytes go where they will stay.
            self._buffer = PayloadBuffer(reader.length)

    def begin_frame(self) -> None:
        """The reader stands at the first piece of the next frame.

        Raises:
            RemoteProtocolError: the message has too many frames, or becomes too large.
        """
        self._fragments += 1
        if self._fragments > self._max_fragments:
            raise RemoteProtocolError(
                f"expected a message in at most {self._max_fragments} frames, got more", close_code=1008
            )
        if self._max_size >= 0:
            # The declared length is checked before a byte of payload is kept. Compressed data may be a little longer
            # than what it stands for; what it inflates to is limited while inflating.
            remaining = self._max_size - self._wire_size
            if self._deflate is not None:
                remaining += self._max_size // 64 + 1024
            if self._reader.length > remaining:
                got = self._reader.length
                got += self._wire_size
                raise too_large(self._max_size, got)
            self._wire_size += self._reader.length

    def receive(self, now: float) -> str | bytes | None:
        """Take the piece at which the reader stands.

        Returns:
            the message if that is all of it.

        Raises:
            RemoteProtocolError: it is no UTF-8, does not inflate, or goes past a limit.
        """
        reader = self._reader
        if self._buffer is not None:
            start = self._buffer.size
            reader.gather(self._buffer)
            return self._gathered(start)
        piece = reader.take()
        last = reader.last and reader.fin
        if self._deflate is None:
            return self._add(piece, last)
        return self._add_inflated(self._inflate(piece, last, now))

    def inflate_more(self, now: float) -> str | bytes | None:
        """As :meth:`receive`, with what zlib has not returned yet."""
        return self._add_inflated(self._inflate(None, False, now))

    def size(self) -> int:
        """Bytes that are held, zlib's context included where the message is compressed."""
        if self._buffer is not None:
            return self._buffer.size
        size = len(self._pieces)
        return size if self._deflate is None else max(_CONTEXT, size + self._deflate.unfinished())

    # --- a large message in one frame -----------------------------------------------------------------

    def payload_to_come(self) -> int:
        """Bytes that are still to come of a message in one frame; 0 for any other."""
        return 0 if self._buffer is None else self._buffer.length - self._buffer.size

    def capacity(self) -> int:
        """Bytes of :meth:`payload_to_come` for which there is memory already."""
        return 0 if self._buffer is None else self._buffer.capacity()

    def get_buffer(self) -> memoryview:
        """Memory for some of :meth:`payload_to_come`, to be followed by :meth:`buffer_updated`."""
        assert self._buffer is not None
        return self._buffer.get_buffer()

    def buffer_updated(self, size: int) -> str | bytes | None:
        """As :meth:`receive`, with so many bytes in :meth:`get_buffer`."""
        assert self._buffer is not None
        start = self._buffer.size
        self._reader.buffer_updated(self._buffer, size)
        return self._gathered(start)

    def _gathered(self, start: int) -> str | bytes | None:
        assert self._buffer is not None
        last = self._reader.last
        if self._text:
            self._buffer.check(self._utf8_check(), start, last)
        self.taken = self._reader.length if last else 0
        return self._finished(self._buffer.take()) if last else None

    # --- a message that is put together ---------------------------------------------------------------

    def _add(self, piece: bytes, last: bool) -> str | bytes | None:
        if self._text:
            self._utf8_check().check(piece, 0, len(piece), last)
        self._pieces += piece
        self.taken = len(self._pieces) if last else len(piece)
        return self._finished(bytes(self._pieces)) if last else None

    def _add_inflated(self, piece: bytes) -> str | bytes | None:
        assert self._deflate is not None
        self.inflated = len(piece)
        return self._add(piece, not self._deflate.within_message)

    def _inflate(self, piece: bytes | None, last: bool, now: float) -> bytes:
        """Inflate ``piece``, or with None more of the one before it, within all limits."""
        assert self._deflate is not None
        left = -1 if self._max_size < 0 else self._max_size - len(self._pieces)
        rate = self._rate
        limited = False
        if rate is not None:
            allowed = rate.allow(0 if piece is None else len(piece), now)
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
                # Of two faults the first counts, in any chunking. zlib keeps what it inflated before a fault of its
                # own; but a text that does not inflate is no UTF-8 either.
                if error.close_code == 1007:
                    raise not_utf8() from None
                salvaged = self._deflate.salvaged
                self._utf8_check().check(salvaged, 0, len(salvaged), False)
            raise error from None

    # --- both -----------------------------------------------------------------------------------------

    def _utf8_check(self) -> TextCheck:
        if self._utf8 is None:
            self._utf8 = TextCheck()
        return self._utf8

    def _finished(self, message: bytes) -> str | bytes:
        return message.decode() if self._text else message
