"""The way out: from the protocol's unsent frames to an asyncio transport.

A lone reply leaves at once. What follows in the same iteration of the event loop leaves in one write, when the
application waits for more or the iteration ends: a system call costs more than everything else about a small message.
"""

from __future__ import annotations

import asyncio
import sys

from ..._native.raw_send import descriptor_to_bypass
from ...core.protocol import Protocol

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

__all__ = ["SENDS_PER_TURN", "Writer"]

# From this size on a write is not held back until the end of the iteration. Each may wake a peer on another core.
_WRITE_NOW = 256 * 2**10
# Pieces that are smaller than this on average are joined before they are written.
_WORTH_A_PIECE = 16 * 2**10
# After this many messages in one iteration of the event loop, or two writes of _WRITE_NOW bytes, `await send()` yields:
# an application that only sends would never notice that its peer has gone.
SENDS_PER_TURN = 256
_SENDS_PER_WRITE = SENDS_PER_TURN // 2
# asyncio's own writelines() never reports that the peer does not read (CVE-2024-12254).
_NEVER_PAUSES = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)


class Writer:
    """Writes what a protocol has to send to an asyncio transport.

    Args:
        core: the protocol.
        transport: plain or TLS, of any event loop.

    Attributes:
        paused: whether the transport's write buffer is above its high-water mark.
        corked: whether frames wait for the end of the read that is being processed.
        scheduled: whether the owner is to flush at the end of this iteration of the event loop.
        sends: messages sent in this iteration.
        over_mark: whether something was written while paused: the owner has to look at :meth:`buffered`.
        half_closed: whether this end's direction of the stream has ended; nothing is written any more.
        lost: whether the transport is gone.
    """

    __slots__ = (
        "_closing",
        "_core",
        "_fd",
        "_loop",
        "_transport",
        "corked",
        "half_closed",
        "lost",
        "over_mark",
        "paused",
        "scheduled",
        "sends",
    )

    def __init__(self, core: Protocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._transport = transport
        self._loop = loop
        self._fd = descriptor_to_bypass(transport) if cython.compiled else -1
        self._closing: asyncio.TimerHandle | None = None
        self.sends = 0
        self.paused = False
        self.corked = False
        self.scheduled = False
        self.over_mark = False
        self.half_closed = False
        self.lost = False

    @property
    def bypasses_transport(self) -> bool:
        """Whether frames go to the kernel past the transport when nothing waits there."""
        return self._fd >= 0

    def message_queued(self, alone: bool) -> bool:
        """Write now, or leave it for later, one message more.

        Args:
            alone: whether the application has taken everything that was received, so that no more replies are likely.

        Returns:
            whether the owner has to schedule a flush for the end of this iteration of the event loop.
        """
        self.sends += 1
        large = self._core.outgoing.unsent_size >= _WRITE_NOW
        if large:
            self.sends += _SENDS_PER_WRITE
            self.flush()
        if self.corked or self.scheduled:
            return False
        if self.sends == 1 and alone and not large:
            self.flush()  # to wait for company would cost as much as the write
            return False
        self.scheduled = True
        return True

    def flush(self) -> None:
        """Write all that the protocol has to send."""
        core = self._core
        size = core.outgoing.unsent_size
        if size == 0:
            return
        pieces = core.outgoing.pieces_to_send() if size >= _WORTH_A_PIECE else None
        data = core.outgoing.data_to_send()
        if self.lost or self.half_closed:
            return
        # One message may exceed max_unsent_bytes: the connection ends for those that are piled on top of it.
        self.over_mark = self.paused
        if pieces is None:
            self.write(data)
        elif size // len(pieces) < _WORTH_A_PIECE or (_NEVER_PAUSES and isinstance(self._transport, asyncio.Transport)):
            self.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def write(self, data: bytes) -> None:
        """Write ``data``: past the transport, where nothing waits in it (see ``_native/raw_send.py``)."""
        # uvloop closes the descriptors of a loop that is closed without a callback. A loop that has just brought bytes
        # is open. The transport is asked each time: others write to it, too, as the opening handshake does.
        if (
            cython.compiled
            and self._fd >= 0
            and (self.corked or not self._loop.is_closed())
            and self._transport.get_write_buffer_size() == 0
        ):
            sent = call_send(self._fd, cython.cast("const char *", data), len(data))  # type: ignore[name-defined]  # noqa: F821
            if sent == len(data):
                return
            if sent > 0:
                # Not a copy: each slow reader of a large broadcast would keep one.
                self._transport.write(memoryview(data)[sent:])
                return
        self._transport.write(data)

    def is_stalled(self) -> bool:
        """Whether the peer does not read."""
        return self.paused and not self.lost

    def buffered(self) -> int:
        """Bytes in the transport's write buffer."""
        return self._transport.get_write_buffer_size()

    # --- the end -----------------------------------------------------------------------------------------

    def half_close(self, linger: float) -> None:
        """End this end's direction of the stream after what is queued.

        Args:
            linger: seconds that a TLS peer has to end the stream by itself. TLS knows no half-close: close() sends
                close_notify after what is queued, and does not read what still comes.
        """
        self.half_closed = True
        if not self._transport.can_write_eof():
            self._closing = self._loop.call_later(linger, self._transport.close)
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the peer has gone already, which asyncio only notices here

    def close(self, at_once: bool) -> bool:
        """Close the transport, as nothing more will be read.

        Args:
            at_once: whether to drop what is queued.

        Returns:
            whether it is closed. If not, what was sent before may still arrive, and over TLS the peer is due a
            close_notify (RFC 8446 section 6.1): the owner has to set a limit.
        """
        done = self.buffered() == 0 and self._transport.can_write_eof()
        if at_once or self.half_closed or done:
            self._transport.abort()
            return True
        self._transport.close()
        return False

    def lose(self) -> None:
        """The transport is gone."""
        self.lost = True
        if self._closing is not None:
            self._closing.cancel()
