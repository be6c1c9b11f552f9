"""permessage-deflate's transformation of payloads (RFC 7692 section 7.2), with the limit inside.

This file is compiled as well as interpreted. It trusts the parameters that were negotiated and
no byte of the peer's: inflating stops at the first byte past the limit. zlib's contexts exist only once a
compressed message has travelled in their direction, and can be given back between any two messages.
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
# A block with BFINAL ends a zlib stream and costs a new context; no sender has a reason for many.
_MAX_STREAMS_PER_MESSAGE = 64
# Seconds after which contexts that nobody has used are given back, where somebody asks.
_IDLE_AFTER = 1.0
# A few bytes stand for megabytes: so many are inflated by one call, in a millisecond or two, and then others have their
# turn.
_MOST_AT_ONCE = 2**20

# How many connections of one event loop may hold contexts: some 55 KiB each with the default options, of which the
# sender's are 38. Connections that have compressed one message each way, and may never do so again, go through a small
# pool; those that come back for more share a large one, 55 MiB at the most. To make both contexts anew takes 0.7 us, a
# fiftieth of what a message of 4 KiB takes; but what is sent next cannot refer to what was sent before, so the large
# pool has to hold those that are busy: JSON messages of 170 bytes take twice the bytes without a context.
_NEWCOMERS = 16
_REGULARS = 1024
# Shorter histories are kept as they are. To pack 4 KiB of JSON takes 23 us and leaves 1 KiB, to unpack it 5 us.
# Clients that do not let their window be limited, such as Firefox, leave up to 32 KiB: 0.4 ms to pack, 7.5 KiB packed.
_WORTH_PACKING = 512
_PACK_BITS = -12
# What zlib's inflater takes besides its window.
_INFLATER = 8 * 2**10


class Contexts:
    """The connections of one event loop that hold contexts of zlib's: so many at the most.

    Who is to give them back is decided as in S3-FIFO: of the newcomers the oldest, unless it has used them again and
    so becomes a regular; of the regulars the oldest that has not used them since it was looked at. A use costs the
    setting of a flag, which an order of last use would not.
    """

    def __init__(self, newcomers: int = _NEWCOMERS, regulars: int = _REGULARS) -> None:
        self._most_newcomers = newcomers
        self._most_regulars = regulars
        # Queues that anybody may leave; a plain dictionary is slow where the oldest leave.
        self._newcomers: OrderedDict[Deflate, None] = OrderedDict()
        self._regulars: OrderedDict[Deflate, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._newcomers) + len(self._regulars)

    def add(self, deflate: Deflate) -> None:
        """Take note of one that has made a context; another may have to give its own back."""
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
                oldest.give_back(False)  # There are more than there is room for: it may be back at once.
        deflate.used = False
        self._regulars[deflate] = None

    def discard(self, deflate: Deflate) -> None:
        """Forget one that has no context any more."""
        self._newcomers.pop(deflate, None)
        self._regulars.pop(deflate, None)


class Deflate:
    """Compresses outgoing messages and inflates incoming ones, for one connection.

    Between two messages the contexts can be given back. The sender's then begins anew, which refers to nothing before
    and which section 7.2.1 leaves to it; of the receiver's there remains the last window of what was inflated, as far
    as there was that much, from which it is made again.

    Args:
        parameters: what the opening handshake agreed on.
        now: current time in seconds, for :meth:`release_if_idle`.

    Attributes:
        threshold: messages shorter than so many bytes are to go uncompressed.
        salvaged: what came out of the piece before its fault, as far as zlib tells.
        active: whether there was a message since somebody set it to False.
        within_message: whether a message has begun, and has not been inflated to its end.
        pending: whether the last piece stands for more than has been inflated: :meth:`inflate_more` is to be called
            before anything else is inflated.
        contexts: the pool that it belongs to; None where contexts are kept until :meth:`release`.
        used, returned: for the pool: whether a context has been used again, and whether one had been given back before.
    """

    def __init__(self, parameters: DeflateParameters, now: float = 0.0) -> None:
        self._idle_since = now
        options = parameters.options
        # zlib cannot deflate with 2**8: no message is long enough then.
        self.threshold = options.threshold if parameters.local_max_window_bits > 8 else sys.maxsize
        self.level = options.level
        self.memory_level = options.memory_level
        self.local_bits = parameters.local_max_window_bits
        self._remote_bits = max(9, parameters.remote_max_window_bits)
        self._local_takeover = not parameters.local_no_context_takeover
        self._remote_takeover = not parameters.remote_no_context_takeover
        self._deflater: Any = None  # zlib does not name the types of its contexts
        self._inflater: Any = None
        # Without an inflater: the end of what was inflated before, as it was or packed.
        self._history = b""
        self._packed = False
        # With an inflater: pieces of what was inflated, which hold at least a window if there was one.
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
        """Somebody else has compressed a message for the peer: the next one must not refer to what went before."""
        self._deflater = None

    # --- receiving -----------------------------------------------------------------------------------

    def inflate(self, piece: bytes, remaining: int, last: bool) -> bytes:
        """The next piece of a compressed message, inflated (section 7.2.2); 1 MiB of it where it stands for more.

        Args:
            piece: compressed bytes as they came.
            remaining: how many inflated bytes the message may still have; negative for any number.
            last: whether the message ends with this piece.

        Raises:
            RemoteProtocolError: no valid DEFLATE data (1007), more than ``remaining`` bytes (1009), too many
                streams (1008); nothing can be inflated any more.
        """
        self.active = True
        if self._inflater is not None:
            self.used = True
        self.within_message = True
        self._rest = piece + _TAIL if last else piece
        self._last = last
        return self.inflate_more(remaining)

    def inflate_more(self, remaining: int) -> bytes:
        """What follows of the piece that :meth:`inflate` was given. Raises as that does."""
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
        # One byte more than there is room for tells "exactly full" from "too much".
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
                raise self._fault(
                    inflated, "expected DEFLATE data in a compressed message, got other bytes", 1007
                ) from None
            inflated = inflated + part if inflated else part
            if 0 <= remaining < len(inflated):
                raise self._fault(
                    inflated, "expected a message within max_message_size, got more while inflating", 1009
                )
            piece = inflater.unconsumed_tail
            # zlib may have taken all of the piece, and yet hold back what did not fit.
            more = len(piece) > 0 or len(part) == limit
            if inflater.eof:
                # Section 7.2.3.4: a block with BFINAL is allowed; what follows starts a new stream.
                piece = inflater.unused_data
                more = len(piece) > 0
                self._forget_inflater()
                self._streams += 1
                if self._streams > _MAX_STREAMS_PER_MESSAGE:
                    raise self._fault(inflated, "expected few DEFLATE streams in a message, got too many", 1008)
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
        """Keep what an inflater made anew would need: the last window of what was inflated."""
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
            # Many small pieces are put together now and then: each costs an object.
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
        """Bytes of the context of a message that has begun, which cannot be given back; 0 between two messages."""
        if not self.within_message or self._inflater is None:
            return 0
        return _INFLATER + (1 << self._remote_bits) + self._recent_size

    @property
    def holding(self) -> bool:
        """Whether there is a context that could be given back."""
        return self._deflater is not None or (self._inflater is not None and not self.within_message)

    def share(self, contexts: Contexts) -> None:
        """Belong to a pool from now on."""
        self.contexts = contexts
        if self.holding:
            self._register()

    def release_due(self) -> float | None:
        """The time from which on :meth:`release_if_idle` may give something back; None where there is nothing."""
        return self._idle_since + _IDLE_AFTER if self.holding else None

    def release_if_idle(self, now: float) -> None:
        """Give all back, unless it was used since this was called a second ago or earlier."""
        if now < self._idle_since + _IDLE_AFTER:
            return
        self._idle_since = now
        if self.active:
            self.active = False
        else:
            self.release()

    def release(self) -> None:
        """Give back all that can be given back, as the connection is idle: it comes back as a newcomer."""
        if self._listed and self.contexts is not None:
            self.contexts.discard(self)
        self.give_back(True)
        self.returned = False

    def close(self) -> None:
        """Let go of everything, as no message comes or goes any more."""
        if self._listed and self.contexts is not None:
            self.contexts.discard(self)
        self._listed = False
        self._deflater = self.contexts = None
        self.pending = False
        self._rest = b""
        self._forget_inflater()

    def give_back(self, pack: bool) -> None:
        """Do without contexts until they are needed again; the pool has forgotten them.

        Args:
            pack: whether what remains is worth the time to make it small.
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
        # Only now: what stays is not to lie in the middle of what becomes free, which others could not use as a whole.
        self._deflater = None
        if resting:
            self._inflater = self._recent = None
            self._history = history

    def _register(self) -> None:
        if not self._listed and self.contexts is not None:
            self._listed = True
            self.contexts.add(self)


def new_deflater(level: int, window_bits: int, memory_level: int) -> Any:
    """A compressor without a past; it may take the place of any other at the begin of a message."""
    return zlib.compressobj(level, zlib.DEFLATED, -window_bits, memory_level)


def compress_with(deflater: Any, payload: bytes) -> bytes:
    """One message's payload, compressed (section 7.2.1) by what :func:`new_deflater` made."""
    compressed = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
    # Never a negative index: the compiled form has none.
    return bytes(compressed[: len(compressed) - 4])


def _between_blocks(inflater: Any) -> bool:
    """Whether the next bit begins a block, as it does after the message of any peer that keeps to section 7.2.1.

    One that does not has left zlib within a block, and is understood as before only by the same context.
    """
    probe = inflater.copy()
    try:
        probe.decompress(b"\x03\x00")  # an empty last block
    except zlib.error:
        return False
    return bool(probe.eof and not probe.unused_data)
