"""permessage-deflate's transformation of payloads (RFC 7692 section 7.2), with the limit inside.

This file is compiled as well as interpreted. It trusts the parameters that were negotiated and
no byte of the peer's: inflating stops at the first byte past the limit, and zlib's contexts exist
only once a compressed message has travelled in their direction.
"""

from __future__ import annotations

import zlib
from typing import Any

from ..core.extensions import DeflateParameters
from ..errors import RemoteProtocolError

__all__ = ["Deflate"]

# Section 7.2.1: the sender removes these 4 bytes from the end of each message.
_TAIL = b"\x00\x00\xff\xff"
# A block with BFINAL ends a zlib stream and costs a new context; no sender has a reason for many.
_MAX_STREAMS_PER_MESSAGE = 64


class Deflate:
    """Compresses outgoing messages and inflates incoming ones, for one connection.

    Args:
        parameters: what the opening handshake agreed on.

    Attributes:
        salvaged: what came out of the piece before its fault, as far as zlib tells.
    """

    def __init__(self, parameters: DeflateParameters) -> None:
        options = parameters.options
        self.threshold = options.threshold
        self._level = options.level
        self._memory_level = options.memory_level
        self._local_bits = parameters.local_max_window_bits
        self._remote_bits = max(9, parameters.remote_max_window_bits)
        self._local_takeover = not parameters.local_no_context_takeover
        self._remote_takeover = not parameters.remote_no_context_takeover
        self._deflater: Any = None  # zlib does not name the types of its contexts
        self._inflater: Any = None
        self._streams = 0
        self.salvaged = b""

    def compress(self, payload: bytes) -> bytes:
        """One message's payload, compressed (section 7.2.1)."""
        deflater = self._deflater
        if deflater is None:
            deflater = zlib.compressobj(self._level, zlib.DEFLATED, -self._local_bits, self._memory_level)
            if self._local_takeover:
                self._deflater = deflater
        compressed = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        # Never a negative index: the compiled form has none.
        return bytes(compressed[: len(compressed) - 4])

    def inflate(self, piece: bytes, room: int, last: bool) -> bytes:
        """The next piece of a compressed message, inflated (section 7.2.2).

        Args:
            piece: compressed bytes as they came.
            room: how many inflated bytes the message may still have; negative for any number.
            last: whether the message ends with this piece.

        Raises:
            RemoteProtocolError: no valid DEFLATE data (1007), more than ``room`` bytes (1009), too many
                streams (1008); nothing can be inflated any more.
        """
        inflated = self._inflate(piece, room)
        if last:
            try:
                inflated += self._inflate(_TAIL, room - len(inflated) if room >= 0 else room)
            except RemoteProtocolError:
                self.salvaged = inflated + self.salvaged
                raise
            self._streams = 0
            if not self._remote_takeover:
                self._inflater = None
        return inflated

    def _inflate(self, piece: bytes, room: int) -> bytes:
        inflated = b""
        while piece:
            inflater = self._inflater
            if inflater is None:
                inflater = self._inflater = zlib.decompressobj(-self._remote_bits)
            try:
                # One byte more than there is room for tells "exactly full" from "too much"; 0 would mean no limit.
                inflated += inflater.decompress(piece, 0 if room < 0 else room - len(inflated) + 1)
            except zlib.error:
                raise self._fault(
                    inflated, "expected DEFLATE data in a compressed message, got other bytes", 1007
                ) from None
            if 0 <= room < len(inflated):
                raise self._fault(
                    inflated, "expected a message within max_message_size, got more while inflating", 1009
                )
            piece = inflater.unconsumed_tail
            if inflater.eof:
                # Section 7.2.3.4: a block with BFINAL is allowed; what follows starts a new stream.
                piece = inflater.unused_data
                self._inflater = None
                self._streams += 1
                if self._streams > _MAX_STREAMS_PER_MESSAGE:
                    raise self._fault(inflated, "expected few DEFLATE streams in a message, got too many", 1008)
        return inflated

    def _fault(self, inflated: bytes, message: str, close_code: int) -> RemoteProtocolError:
        self._inflater = None
        self.salvaged = inflated
        return RemoteProtocolError(message, close_code=close_code)
