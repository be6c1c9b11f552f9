"""One side of a relay: the base class of ``socket_side`` (plain sockets) and ``transport_side`` (asyncio transports).

A side forwards the bytes of its peer unchanged to the other side, and stops reading while the other side's write buffer
is full. It tracks frame boundaries, so that the stream can be ended between two frames. The engine decides when to end
it. Everything runs on the event loop's thread. This file is compiled as well as interpreted.
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


# Reading from the other side pauses above HIGH_WATER unsent bytes, and resumes at LOW_WATER.
HIGH_WATER = 64 * 2**10
LOW_WATER = 16 * 2**10
# TCP keepalive: seconds of silence before the first probe, seconds between probes, number of probes.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


class Phase(Enum):
    """What a side does with the bytes that it receives."""

    PASSING = 1
    CUTTING = 2  # forwards them up to the end of the current frame
    SHUT = 3  # reads and drops them


# Looked up once, as accessing a member of an Enum costs more than a function call.
_PASSING = Phase.PASSING
_CUTTING = Phase.CUTTING
_SHUT = Phase.SHUT


class Side:
    """One side of a relay.

    Args:
        loop: the event loop.

    Attributes:
        engine: the relay's engine. The side calls ``ended`` when the peer has ended its direction of the stream,
            ``breaking`` when the peer accepts no more bytes, ``lost`` when it has reset the stream, ``finished`` when
            everything has been written, ``answered`` when a Close frame has arrived, and ``allows`` before it forwards
            bytes.
        other: the other side.
        boundaries: frame boundaries of the bytes from this peer.
        phase: what happens to the bytes from this peer.
        limited: whether to call ``allows`` before forwarding bytes.
        passed: number of bytes from this peer that were forwarded.
        active: when bytes were last read or written here, in seconds of ``time.monotonic()``.
        full: whether the write buffer is too full to read more from the other side.
        at_end: whether the peer has ended its direction of the stream.
        finishing, finished: whether no more bytes are accepted for this peer, and whether its stream has been ended.
        closed: whether the stream is closed.
    """

    __slots__ = (
        "_loop",
        "_paused",
        "active",
        "at_end",
        "boundaries",
        "close_frame",
        "closed",
        "engine",
        "finished",
        "finishing",
        "full",
        "limited",
        "other",
        "passed",
        "phase",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused = True
        self.active = 0.0
        self.at_end = False
        self.boundaries = Boundaries()
        self.close_frame = b""
        self.closed = False
        self.engine: Any = None
        self.finished = False
        self.finishing = False
        self.full = False
        self.limited = False
        self.other: Any = None
        self.passed = 0
        self.phase = _PASSING

    # --- abstract methods --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forward bytes that were read before the relay started, and start reading."""
        raise NotImplementedError

    def write(self, data: bytes | bytearray, size: int) -> None:
        """Write the first ``size`` bytes of ``data``, and keep no reference: the caller reuses it."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop reading; further bytes stay in the kernel."""
        raise NotImplementedError

    def resume(self) -> None:
        """Resume reading."""
        raise NotImplementedError

    def finish(self) -> None:
        """Flush the write buffer, then end the stream to the peer."""
        raise NotImplementedError

    def unsent(self) -> int:
        """Bytes in the write buffer."""
        raise NotImplementedError

    def loop_failed(self) -> None:
        """End the stream without the event loop, which has failed."""
        raise NotImplementedError

    def close(self, abort: bool) -> None:
        """Close the stream; with ``abort``, reset it, which shows the peer that bytes are missing."""
        raise NotImplementedError

    # --- received bytes ----------------------------------------------------------------------------------------------

    def forward(self, data: bytes | bytearray, size: int) -> None:
        """Forward the first ``size`` bytes of ``data`` to the other side."""
        self.active = monotonic()
        if self.phase is not _PASSING or self.limited:
            self._forward_limited(data, size)
        else:
            self.boundaries.feed(data, 0, size)
            self._forward_now(data, size)

    def _forward_now(self, data: bytes | bytearray, size: int) -> None:
        self.passed += size
        self.other.write(data, size)
        if self.other.full and not self._paused:
            self.pause()

    def _forward_limited(self, data: bytes | bytearray, size: int) -> None:
        passed = 0
        if self.phase is _PASSING and self.engine.allows(size):
            self.boundaries.feed(data, 0, size)
            self._forward_now(data, size)
            return
        if self.phase is _CUTTING:
            passed = self.boundaries.feed_to_boundary(data, 0, size)
            self._forward_now(data, size if passed < 0 else passed)
            if passed < 0:
                return
            if self.boundaries.close_passed:
                self.shut()
            else:
                self._end_with_close()
        self.boundaries.feed(data, passed, size)
        if self.boundaries.close_passed:
            self.engine.answered()

    # --- the end -----------------------------------------------------------------------------------------------------

    def cut(self, close_frame: bytes, finish_frame: bool) -> None:
        """Stop forwarding, immediately or after the current frame, and send ``close_frame`` to the other side.

        Args:
            close_frame: written to the other side, unless a Close frame has passed or a frame stays incomplete.
            finish_frame: whether to forward the rest of the current frame first.
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
        """Read and drop bytes from now on: closing with unread bytes would reset the stream and lose sent bytes."""
        self.phase = _SHUT
        self.resume()


def keep_alive(sock: Any) -> None:
    """Enable TCP keepalive, to notice peers that vanish, and disable Nagle's algorithm."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in _KEEPALIVE:
        if (number := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    with contextlib.suppress(OSError):  # not a TCP socket, or not connected any more
        for level, option, value in options:
            sock.setsockopt(level, option, value)
