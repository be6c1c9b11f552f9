"""The two sides of a relay: a socket that is read and written by itself, or an asyncio transport where there is TLS.

A side gives what comes from its peer to the other side, as it is, and reads no further while the other has too much
unsent. It follows the frames that pass, so that the stream can be ended between two of them. When to end it, and what
an end on one side means for the other, is for :mod:`watershed_mw.relay` to say. Everything runs on the loop's thread.

Sockets are read into memory that all of a thread's relays share and are written from there: two system calls for a
chunk, and nothing allocated while the peers keep up. This file is compiled as well as interpreted; compiled it calls
the kernel by itself, which takes half of the time that is spent outside of the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from enum import Enum
from typing import Any

from ..core.frames.boundaries import Boundaries

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.time import monotonic
else:
    from time import monotonic

__all__ = ["HIGH_WATER", "LOW_WATER", "Phase", "Side", "keep_alive"]


# Bytes unsent above which the other side is not read, and below which it is again.
HIGH_WATER = 64 * 2**10
LOW_WATER = 16 * 2**10
# Seconds of silence after which the kernel asks whether the peer is there, and between two times of asking; how often.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


class Phase(Enum):
    """What becomes of the bytes that come from a side."""

    PASSING = 1
    CUTTING = 2  # they pass to the end of the frame
    SHUT = 3  # they are dropped


# Looked up once: a member of an Enum costs more than a call.
_PASSING = Phase.PASSING
_CUTTING = Phase.CUTTING
_SHUT = Phase.SHUT


class Side:
    """One side of a relay.

    Args:
        loop: what it runs on.

    Attributes:
        relay: what it tells that its peer has ended the stream (``ended``), that it takes nothing any more
            (``breaking``), that it has gone (``lost``), that the end of what it was to write has been written
            (``finished``), that its Close has come (``answered``), and asks whether bytes may pass (``allows``).
        other: the other side.
        boundaries: of the frames that come from here.
        phase: of the bytes that come from here.
        limited: whether the relay is to be asked.
        passed: bytes that came from here and were passed on.
        active: when bytes last went anywhere here, in seconds of ``time.monotonic()``.
        full: whether there is too much unsent here to read more from the other side.
        at_end: whether the peer has ended its direction of the stream.
        finishing, finished: whether nothing more will be written here, and whether the peer has been told so.
        closed: whether nothing is left.
    """

    __slots__ = (
        "_loop",
        "_paused",
        "active",
        "at_end",
        "boundaries",
        "close_frame",
        "closed",
        "finished",
        "finishing",
        "full",
        "limited",
        "other",
        "passed",
        "phase",
        "relay",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused = True
        self.active = 0.0
        self.at_end = False
        self.boundaries = Boundaries()
        self.close_frame = b""
        self.closed = False
        self.finished = False
        self.finishing = False
        self.full = False
        self.limited = False
        self.other: Any = None
        self.passed = 0
        self.phase = _PASSING
        self.relay: Any = None

    # --- what the kinds of sides do in their own ways --------------------------------------------------------

    def begin(self) -> None:
        """Pass on what came early, and begin to read."""
        raise NotImplementedError

    def write(self, data: bytes | bytearray, size: int) -> None:
        """Write the first ``size`` bytes of ``data``, which is not to be held on to."""
        raise NotImplementedError

    def pause(self) -> None:
        """Leave bytes with the kernel."""
        raise NotImplementedError

    def resume(self) -> None:
        """Read on."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is unsent, then tell the peer that it was the last."""
        raise NotImplementedError

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        raise NotImplementedError

    def loop_failed(self) -> None:
        """Let the peer see the end, on a loop that runs no more."""
        raise NotImplementedError

    def close(self, abort: bool) -> None:
        """Close, or ``abort`` in such a way that the peer sees that something is missing."""
        raise NotImplementedError

    # --- what came ---------------------------------------------------------------------------------------------

    def came(self, data: bytes | bytearray, size: int) -> None:
        """Pass on the first ``size`` bytes of ``data``."""
        self.active = monotonic()
        if self.phase is not _PASSING or self.limited:
            self._came_late(data, size)
        else:
            self.boundaries.feed(data, 0, size)
            self._pass_on(data, size)

    def _pass_on(self, data: bytes | bytearray, size: int) -> None:
        self.passed += size
        self.other.write(data, size)
        if self.other.full and not self._paused:
            self.pause()

    def _came_late(self, data: bytes | bytearray, size: int) -> None:
        passed = 0
        if self.phase is _PASSING and self.relay.allows(size):
            self.boundaries.feed(data, 0, size)
            self._pass_on(data, size)
            return
        if self.phase is _CUTTING:
            passed = self.boundaries.feed_to_boundary(data, 0, size)
            self._pass_on(data, size if passed < 0 else passed)
            if passed < 0:
                return
            if self.boundaries.close_passed:
                self.shut()
            else:
                self._end_with_close()
        self.boundaries.feed(data, passed, size)
        if self.boundaries.close_passed:
            self.relay.answered()

    # --- the end -------------------------------------------------------------------------------------------------

    def cut(self, close_frame: bytes, finish_frame: bool) -> None:
        """Let nothing more pass from here but ``close_frame``, at once or after the end of this frame.

        Args:
            close_frame: goes to the other side, unless its peer had a Close or cannot be given one.
            finish_frame: whether to let the rest of a frame pass that has begun.
        """
        self.close_frame = close_frame
        if self.phase is not _PASSING:
            return
        if self.boundaries.close_passed or self.at_end:
            self.shut()
        elif self.boundaries.at_boundary:
            self._end_with_close()
        elif finish_frame:
            self.phase = _CUTTING
        else:
            self.shut()
            self.other.finish()

    def _end_with_close(self) -> None:
        self.shut()
        self.other.write(self.close_frame, len(self.close_frame))

    def shut(self) -> None:
        """Drop from now on what comes; read it all the same, as what stays unread would break what was written."""
        self.phase = _SHUT
        self.resume()


def keep_alive(sock: Any) -> None:
    """Have the kernel notice that a peer's cable has been cut, and send small frames at once."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in _KEEPALIVE:
        if (number := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    with contextlib.suppress(OSError):  # a socket of another family, or one that has gone
        for level, option, value in options:
            sock.setsockopt(level, option, value)
