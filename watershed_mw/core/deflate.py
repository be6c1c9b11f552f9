"""Compression and decompression of messages (RFC 7692 section 7.2), with limits enforced during decompression.

Decompression stops at the first byte above the limit. A zlib context is created with the first compressed message of
its direction, and can be released between any two messages. This file is compiled as well as interpreted.
"""

from __future__ import annotations

import sys
import zlib
from collections import OrderedDict
from typing import Any

from ..errors import RemoteProtocolError
from .handshake.extensions import DeflateParameters

__all__ = ["Contexts", "Deflate"]

# Section 7.2.1: the sender removes these 4 bytes from the end of each message.
_TAIL = b"\x00\x00\xff\xff"
# A block with BFINAL ends a zlib stream, and the next one needs a new context; no sender has a reason for many.
_MAX_STREAMS_PER_MESSAGE = 64
# Seconds without use after which release_if_idle() releases contexts.
_IDLE_AFTER = 1.0
# A few bytes may inflate to megabytes: one call produces at most this many, so that other connections are not delayed.
_MOST_AT_ONCE = 2**20

# How many connections of one event loop may hold contexts, which take some 55 KiB each with the default options (38 of
# them for sending). Connections that have compressed one message each way, and may never do so again, go through a
# small pool; those that come back share a large one of at most 55 MiB. Creating contexts is cheap, but a new one cannot
# refer to earlier messages: the large pool has to hold all busy connections, for the sake of the compression ratio.
_NEWCOMERS = 16
_REGULARS = 1024
# Shorter histories are not packed. Clients that do not support client_max_window_bits, such as Firefox, leave histories
# of up to 32 KiB.
_WORTH_PACKING = 512
_PACK_BITS = -12
# Bytes of zlib's inflater without its window.
_INFLATER = 8 * 2**10


class Contexts:
    """The connections of one event loop that hold zlib contexts; their number is bounded.

    Eviction follows S3-FIFO: the oldest newcomer is evicted, unless it has used its contexts again and so becomes a
    regular; of the regulars, the oldest that has not used them since it was last examined. A use only sets a flag,
    which is cheaper than maintaining an LRU order.
    """

    def __init__(self, newcomers: int = _NEWCOMERS, regulars: int = _REGULARS) -> None:
        self._most_newcomers = newcomers
        self._most_regulars = regulars
        # Queues with removal of any item; a plain dict is slow when its oldest items are removed.
        self._newcomers: OrderedDict[Deflate, None] = OrderedDict()
        self._regulars: OrderedDict[Deflate, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._newcomers) + len(self._regulars)

    def add(self, deflate: Deflate) -> None:
        """Add one that has created a context; another one's may be evicted."""
        if deflate.returned:
            self._add_regular(deflate)
            return
        while len(self._newcomers) >= self._most_newcomers:
            oldest = self._newcomers.popitem(last=False)[0]
            if oldest.used:
                self._add_regular(oldest)
            else:
                oldest.give_back(True)
        self._newcomers[deflate] = None

    def _add_regular(self, deflate: Deflate) -> None:
        while len(self._regulars) >= self._most_regulars:
            oldest = self._regulars.popitem(last=False)[0]
            if oldest.used:
                oldest.used = False
                self._regulars[oldest] = None
            else:
                oldest.give_back(False)  # not packed, as it may be back soon
        deflate.used = False
        self._regulars[deflate] = None

    def discard(self, deflate: Deflate) -> None:
        """Remove one that has no context any more."""
        self._newcomers.pop(deflate, None)
        self._regulars.pop(deflate, None)


class Deflate:
    """Compresses outgoing messages and decompresses incoming ones, for one connection.

    Between two messages, contexts can be released. The sending side then starts with an empty window, as section 7.2.1
    allows at any time. Of the receiving side, the last window of decompressed data is kept, from which the context is
    restored.

    Args:
        parameters: the negotiated parameters.
        now: current time in seconds, for :meth:`release_if_idle`.

    Attributes:
        threshold: messages shorter than this many bytes are sent uncompressed.
        salvaged: bytes decompressed from a piece before an error in it, as far as zlib reports them.
        active: whether there was a message since it was last set to False.
        within_message: whether a message has started and is not completely decompressed.
        pending: whether the last piece contains more data: call :meth:`inflate_more` before anything else is
            decompressed.
        contexts: the pool that it belongs to; None if contexts are kept until :meth:`release`.
        used, returned: for the pool: whether a context has been used again, and whether one was released before.
    """

    def __init__(self, parameters: DeflateParameters, now: float = 0.0) -> None:
        self._idle_since = now
        options = parameters.options
        # zlib does not support deflating with 2**8: nothing is compressed then.
        self.threshold = options.threshold if parameters.local_max_window_bits > 8 else sys.maxsize
        self.level = options.level
        self.memory_level = options.memory_level
        self.local_bits = parameters.local_max_window_bits
        self._remote_bits = max(9, parameters.remote_max_window_bits)
        self._local_takeover = not parameters.local_no_context_takeover
        self._remote_takeover = not parameters.remote_no_context_takeover
        self._deflater: Any = None  # zlib does not export the types of its contexts
        self._inflater: Any = None
        # Without an inflater: the last window of decompressed data, possibly packed.
        self._history = b""
        self._packed = False
        # With an inflater: recent pieces of decompressed data, at least a window if there was that much.
        self._recent: list[bytes] | None = None
        self._recent_size = 0
        self.within_message = False
        # The piece that is being inflated, as far as zlib has not taken it, and whether its message ends with it.
        self._rest = b""
        self._last = False
        self.pending = False
        self._streams = 0
        self.salvaged = b""
        self.active = False
        self.contexts: Contexts | None = None
        self._listed = False
        self.used = False
        self.returned = False

    # --- sending -------------------------------------------------------------------------------------

    def compress(self, payload: bytes) -> bytes:
        """One message's payload, compressed (section 7.2.1)."""
        self.active = True
        deflater = self._deflater
        if deflater is None:
            deflater = new_deflater(self.level, self.local_bits, self.memory_level)
            if self._local_takeover:
                self._deflater = deflater
                self._register()
        else:
            self.used = True
        return compress_with(deflater, payload)

    def reset_context(self) -> None:
        """Start anew, as a message for the peer was compressed elsewhere: the next must not refer to earlier ones."""
        self._deflater = None

    # --- receiving -----------------------------------------------------------------------------------

    def inflate(self, piece: bytes, remaining: int, last: bool) -> bytes:
        """Decompress the next piece of a message (section 7.2.2), up to 1 MiB at a time.

        Args:
            piece: compressed bytes as received.
            remaining: how many decompressed bytes the message may still have; negative for no limit.
            last: whether the message ends with this piece.

        Raises:
            RemoteProtocolError: invalid DEFLATE data (1007), more than ``remaining`` bytes (1009), or too many streams
                (1008); the instance cannot be used for decompression any more.
        """
        self.active = True
        if self._inflater is not None:
            self.used = True
        self.within_message = True
        self._rest = piece + _TAIL if last else piece
        self._last = last
        return self.inflate_more(remaining)

    def inflate_more(self, remaining: int) -> bytes:
        """Continue with the piece that :meth:`inflate` was given. Raises as :meth:`inflate`."""
        inflated = self._inflate(remaining)
        if self._last and not self.pending:
            self.within_message = False
            self._streams = 0
            if not self._remote_takeover:
                self._forget_inflater()
            elif not self._listed:
                self._register()
        return inflated

    def _inflate(self, remaining: int) -> bytes:
        inflated = b""
        piece = self._rest
        # One byte above the limit distinguishes "exactly full" from "too much".
        most = remaining + 1 if 0 <= remaining < _MOST_AT_ONCE else _MOST_AT_ONCE
        more = self.pending or len(piece) > 0
        while more and len(inflated) < most:
            inflater = self._inflater
            if inflater is None:
                inflater = self._new_inflater()
            limit = most - len(inflated)
            try:
                part: bytes = inflater.decompress(piece, limit)
            except zlib.error:
                raise self._fault(inflated, "invalid DEFLATE data in a compressed message", 1007) from None
            inflated = inflated + part if inflated else part
            if 0 <= remaining < len(inflated):
                raise self._fault(inflated, "message exceeds max_message_size during decompression", 1009)
            piece = inflater.unconsumed_tail
            # zlib may have consumed the piece and still hold output that did not fit.
            more = len(piece) > 0 or len(part) == limit
            if inflater.eof:
                # Section 7.2.3.4 allows a block with BFINAL; a new stream follows.
                piece = inflater.unused_data
                more = len(piece) > 0
                self._forget_inflater()
                self._streams += 1
                if self._streams > _MAX_STREAMS_PER_MESSAGE:
                    message = f"too many DEFLATE streams in one message (max {_MAX_STREAMS_PER_MESSAGE})"
                    raise self._fault(inflated, message, 1008)
            elif self._remote_takeover:
                self._record(part)
        self.pending = more
        self._rest = piece
        return inflated

    def _new_inflater(self) -> Any:
        history = zlib.decompress(self._history, _PACK_BITS) if self._packed else self._history
        inflater = (
            zlib.decompressobj(-self._remote_bits, zdict=history) if history else zlib.decompressobj(-self._remote_bits)
        )
        self._inflater = inflater
        self._recent = [history] if history else []
        self._recent_size = len(history)
        self._history = b""
        self._packed = False
        return inflater

    def _record(self, part: bytes) -> None:
        """Keep what a restored inflater needs: the last window of decompressed data."""
        recent = self._recent
        assert recent is not None  # there is an inflater
        size = len(part)
        window = 1 << self._remote_bits
        if size >= window:
            self._recent = [part[size - window :]]
            self._recent_size = window
        elif size:
            recent.append(part)
            self._recent_size += size
            # Join many small pieces, as each is an object.
            if self._recent_size > 2 * window or len(recent) > 64:
                self._recent = [self._joined()]
                self._recent_size = len(self._recent[0])

    def _joined(self) -> bytes:
        assert self._recent is not None
        history = b"".join(self._recent)
        window = 1 << self._remote_bits
        return history[len(history) - window :] if len(history) > window else history

    def _forget_inflater(self) -> None:
        self._inflater = self._recent = None
        self._history = b""
        self._packed = False

    def _fault(self, inflated: bytes, message: str, close_code: int) -> RemoteProtocolError:
        self._forget_inflater()
        self.pending = False
        self._rest = b""
        self.salvaged = inflated
        return RemoteProtocolError(message, close_code=close_code)

    # --- memory --------------------------------------------------------------------------------------

    def unfinished(self) -> int:
        """Bytes of the context of an incomplete message, which cannot be released; 0 between messages."""
        if not self.within_message or self._inflater is None:
            return 0
        return _INFLATER + (1 << self._remote_bits) + self._recent_size

    @property
    def holding(self) -> bool:
        """Whether there is a context that can be released."""
        return self._deflater is not None or (self._inflater is not None and not self.within_message)

    def share(self, contexts: Contexts) -> None:
        """Join a pool."""
        self.contexts = contexts
        if self.holding:
            self._register()

    def release_due(self) -> float | None:
        """The time from which :meth:`release_if_idle` may release something; None if there is nothing to release."""
        return self._idle_since + _IDLE_AFTER if self.holding else None

    def release_if_idle(self, now: float) -> None:
        """Release contexts that were not used since the last call, which was at least a second ago."""
        if now < self._idle_since + _IDLE_AFTER:
            return
        self._idle_since = now
        if self.active:
            self.active = False
        else:
            self.release()

    def release(self) -> None:
        """Release everything that can be released, as the connection is idle; it rejoins its pool as a newcomer."""
        if self._listed and self.contexts is not None:
            self.contexts.discard(self)
        self.give_back(True)
        self.returned = False

    def close(self) -> None:
        """Release everything for good, at the end of the connection."""
        if self._listed and self.contexts is not None:
            self.contexts.discard(self)
        self._listed = False
        self._deflater = self.contexts = None
        self.pending = False
        self._rest = b""
        self._forget_inflater()

    def give_back(self, pack: bool) -> None:
        """Release contexts until they are needed again; the pool has already removed this instance.

        Args:
            pack: whether to compress the history that is kept.
        """
        self._listed = False
        self.used = False
        self.returned = True
        resting = self._inflater is None
        history = self._history
        if not resting and not self.within_message and _between_blocks(self._inflater):
            resting = True
            history = self._joined()
        if pack and not self._packed and len(history) >= _WORTH_PACKING:
            packer = zlib.compressobj(6, zlib.DEFLATED, _PACK_BITS, 5)
            packed = packer.compress(history) + packer.flush()
            if len(packed) < len(history):
                history = packed
                self._packed = True
        # Only now, so that the history is not allocated within the freed memory, which would fragment it.
        self._deflater = None
        if resting:
            self._inflater = self._recent = None
            self._history = history

    def _register(self) -> None:
        if not self._listed and self.contexts is not None:
            self._listed = True
            self.contexts.add(self)


def new_deflater(level: int, window_bits: int, memory_level: int) -> Any:
    """A compressor with an empty window; it may replace any other at the start of a message."""
    return zlib.compressobj(level, zlib.DEFLATED, -window_bits, memory_level)


def compress_with(deflater: Any, payload: bytes) -> bytes:
    """One message's payload, compressed (section 7.2.1) with a compressor of :func:`new_deflater`."""
    compressed = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
    # Not [:-4]: negative indices are disabled in the compiled build.
    return bytes(compressed[: len(compressed) - 4])


def _between_blocks(inflater: Any) -> bool:
    """Whether the next bit starts a block, as it does after a message of a peer that complies with section 7.2.1.

    A peer that does not has left zlib within a block, and its next message needs the same context.
    """
    probe = inflater.copy()
    try:
        probe.decompress(b"\x03\x00")  # an empty last block
    except zlib.error:
        return False
    return bool(probe.eof and not probe.unused_data)
