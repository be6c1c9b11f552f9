"""The two sides of a relay: a socket that is read and written by itself, or an asyncio transport where there is TLS.

A side gives what comes from its peer to the other side, as it is, and reads no further while the other has too much
unsent. It follows the frames that pass, so that the stream can be ended between two of them. When to end it, and what
an end on one side means for the other, is for :mod:`watershed_mw.relay` to say. Everything runs on the loop's thread.

Sockets are read into memory that all of a thread's relays share and are written from there: two system calls for a
chunk, and nothing allocated while the peers keep up. This file is compiled as well as interpreted; compiled it calls
the kernel by itself, which takes half of the time that is spent outside of the kernel.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import socket
import struct
import threading
from enum import Enum
from typing import Any, cast

from ..core.frames.boundaries import Boundaries
from ..runtime.timers import alarm_of
from ..sockets.tls_views import break_stream

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.time import monotonic
    from cython.cimports.libc.errno import EAGAIN, EINTR, errno
else:
    from time import monotonic

__all__ = ["Phase", "Side", "SocketSide", "TransportSide"]

# Bytes that are read at once. More would be out of the processor's nearest caches before they are written.
_CHUNK = 128 * 2**10
# Bytes unsent above which the other side is not read, and below which it is again.
_HIGH_WATER = 64 * 2**10
_LOW_WATER = 16 * 2**10
# Seconds that a TLS peer has to answer a Close: TLS knows no half-close, so the answer could not come later.
_TLS_LINGER = 1.0
# Seconds of silence after which the kernel asks whether the peer is there, and between two times of asking; how often.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
# libuv, hence uvloop, tells of a socket that has an error once and never again. If there were bytes to read before it,
# the error would not be seen: so who has got bytes looks again, after so many seconds at least and twice that at most.
_LOOK_AGAIN = 0.125
# What reading and writing come to besides a number of bytes.
_NOTHING_NOW = -1
_BROKEN = -2
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Phase(Enum):
    """What becomes of the bytes that come from a side."""

    PASSING = 1
    CUTTING = 2  # they pass to the end of the frame
    SHUT = 3  # they are dropped


# Looked up once: a member of an Enum costs more than a call.
_PASSING = Phase.PASSING
_CUTTING = Phase.CUTTING
_SHUT = Phase.SHUT


class _Shared(threading.local):
    """Where bytes are between two system calls."""

    def __init__(self) -> None:
        self.memory = bytearray(_CHUNK)


_shared = _Shared()


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

    def strand(self) -> None:
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

    def cut(self, close_frame: bytes, patient: bool) -> None:
        """Let nothing more pass from here but ``close_frame``, at once or after the end of this frame.

        Args:
            close_frame: goes to the other side, unless its peer had a Close or cannot be given one.
            patient: whether to let the rest of a frame pass that has begun.
        """
        self.close_frame = close_frame
        if self.phase is not _PASSING:
            return
        if self.boundaries.close_passed or self.at_end:
            self.shut()
        elif self.boundaries.at_boundary:
            self._end_with_close()
        elif patient:
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


class SocketSide(Side):
    """A plain socket.

    Args:
        loop: what it runs on.
        sock: connected stream socket; its descriptor is this object's from now on.
        head: bytes that came from it early.
    """

    __slots__ = ("_broken", "_fd", "_head", "_looking", "_memory", "_queue", "_socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, head: bytes) -> None:
        super().__init__(loop)
        # The C module's: no method in Python around its calls, and those of gevent's and eventlet's would wait.
        self._socket = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._socket.setblocking(False)
        self._fd = self._socket.fileno()
        self._head = head
        self._broken = False  # whether the kernel takes no more
        self._looking = isinstance(loop, asyncio.BaseEventLoop)  # whether no other look is needed
        self._queue: bytearray | None = None
        self._memory = bytearray()
        keep_alive(self._socket)

    def begin(self) -> None:
        """As :meth:`Side.begin`."""
        self._memory = _shared.memory
        if self._head:
            head, self._head = self._head, b""
            self.came(head, len(head))
        if not self.other.full:
            self.resume()

    def _readable(self) -> None:
        size = self._receive()
        if size > 0:
            if not self._looking:
                self._look_later()
            try:
                self.came(self._memory, size)
            except BaseException:
                self.relay.lost(self)  # the loop only logs it, and what has been read is lost
                raise
        elif size == 0:
            self.pause()
            self.at_end = True
            if self._broken:
                self.relay.lost(self)
            else:
                self.relay.ended(self)
        elif size == _BROKEN:
            self.relay.lost(self)

    def _look_later(self) -> None:
        # At the same time as others of this loop.
        self._looking = True
        when = (monotonic() // _LOOK_AGAIN + 2) * _LOOK_AGAIN
        alarm_of(self._loop).set(when, _look_again, self)

    def look_again(self) -> None:
        """Read what is there, though nobody has said that there is."""
        self._looking = False
        if not self._paused and not self.at_end:
            self._readable()

    def _receive(self) -> int:
        """How many bytes came into the shared memory, 0 at the end of the stream; or one of the two below."""
        if cython.compiled:
            target: Any = self._memory
            size = call_recv(self._fd, target, _CHUNK)  # type: ignore[name-defined]  # noqa: F821
            if size >= 0:
                return size  # type: ignore[no-any-return]
            if size == -1:
                return _NOTHING_NOW if errno in (EAGAIN, EINTR) else _BROKEN
        try:
            return self._socket.recv_into(self._memory)
        except (BlockingIOError, InterruptedError):
            return _NOTHING_NOW
        except OSError:
            return _BROKEN

    def pause(self) -> None:
        """As :meth:`Side.pause`."""
        self._paused = True
        self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """As :meth:`Side.resume`."""
        if self._paused and not self.at_end:
            self._paused = False
            self._loop.add_reader(self._fd, self._readable)

    def write(self, data: bytes | bytearray, size: int) -> None:
        """As :meth:`Side.write`."""
        if self.finishing or size == 0:
            return
        if self._queue is None:
            sent = self._send(data, size)
            if sent == size:
                return
            if sent == _BROKEN:
                self._break()
                return
            self._queue = bytearray(memoryview(data)[sent:size])
            self._loop.add_writer(self._fd, self._writable)
        else:
            self._queue += memoryview(data)[:size]
        self.full = len(self._queue) > _HIGH_WATER

    def _send(self, data: bytes | bytearray, size: int) -> int:
        """How many bytes of it the kernel has taken."""
        if cython.compiled:
            source: Any = data
            sent = call_send(self._fd, source, size)  # type: ignore[name-defined]  # noqa: F821
            if sent >= 0:
                return sent  # type: ignore[no-any-return]
            if sent == -1:
                return 0 if errno in (EAGAIN, EINTR) else _BROKEN
        try:
            with memoryview(data) as whole, whole[:size] as piece:
                return self._socket.send(piece)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return _BROKEN

    def _writable(self) -> None:
        queue = cast(bytearray, self._queue)
        sent = self._send(queue, len(queue))
        if sent == _BROKEN:
            self._break()
            return
        self.active = monotonic()
        del queue[:sent]
        if not queue:
            self._queue = None
            self._loop.remove_writer(self._fd)
            if self.finishing:
                self._shut_down()
        if self.full and len(queue) <= _LOW_WATER:
            self.full = False
            self.other.resume()

    def _break(self) -> None:
        # Who has gone may have said something before: reading comes to that, and then to the end.
        self._broken = self.finishing = self.finished = True
        self.full = False
        if self._queue is not None:
            self._queue = None
            self._loop.remove_writer(self._fd)
        self.other.shut()
        if self.at_end:
            self.relay.lost(self)
            return
        if not self._paused:
            self.pause()
            self.resume()  # see _LOOK_AGAIN
        self.relay.breaking()

    def finish(self) -> None:
        """As :meth:`Side.finish`."""
        if not self.finishing:
            self.finishing = True
            if self._queue is None:
                self._shut_down()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # it has gone, as reading will tell
            self._socket.shutdown(socket.SHUT_WR)
        self.finished = True
        self.relay.finished()

    def unsent(self) -> int:
        """As :meth:`Side.unsent`."""
        return 0 if self._queue is None else len(self._queue)

    def strand(self) -> None:
        """As :meth:`Side.strand`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):  # the loop may have lost what it looks with
            self.close(False)
        self._socket.close()

    def close(self, abort: bool) -> None:
        """As :meth:`Side.close`."""
        if self.closed:
            return
        self.closed = self.at_end = self.finishing = self.finished = True
        self.full = False
        self._queue = None
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        with contextlib.suppress(OSError):
            if abort:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self._socket.close()


def _look_again(side: SocketSide) -> None:
    side.look_again()


class TransportSide(Side):
    """An asyncio transport, to which this is an ``asyncio.Protocol``.

    Args:
        loop: what it runs on.
        transport: plain or TLS, of asyncio, uvloop, or :class:`~watershed_mw.sockets.tls_transport.TLSSocketTransport`.
        head: bytes that came from it early.
        eof: whether the stream's end came early as well: the transport will not tell of it again.
        keep: object that must live as long, such as a StreamWriter that would close the transport when collected.
        patience: seconds that the peer has to take what is unsent once the transport is closed.
    """

    __slots__ = ("_eof", "_head", "_keep", "_patience", "_previous", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Any,
        head: bytes,
        eof: bool,
        keep: Any,
        patience: float,
    ) -> None:
        super().__init__(loop)
        self._transport = transport
        self._head = head
        self._eof = eof
        self._keep = keep
        self._patience = patience
        self._previous = transport.get_protocol()
        if not transport.is_closing():
            transport.pause_reading()
        transport.set_protocol(self)
        with contextlib.suppress(NotImplementedError):
            transport.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)
        if (sock := transport.get_extra_info("socket")) is not None:
            keep_alive(sock)

    def begin(self) -> None:
        """As :meth:`Side.begin`."""
        if self._head:
            self.data_received(self._head)
            self._head = b""
        if self._eof:
            self.eof_received()
        elif not self.other.full:
            self.resume()

    # --- the transport calls these -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came from the peer."""
        self.came(data, len(data))

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream; whether the transport is to stay open."""
        if self.at_end:
            return not self.finishing
        self.at_end = True
        goes_on = bool(self._transport.can_write_eof())
        if not goes_on:
            self.finishing = True  # TLS ends both directions at once, and the transport sees to it
            self.other.shut()
        self.relay.ended(self)
        return goes_on

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        lost = not self.at_end and not self.finishing
        self.closed = self.at_end = self.finishing = self.finished = True
        self.full = False
        previous, self._previous, self._keep = self._previous, None, None
        try:
            if lost or exc is not None:
                self.relay.lost(self)
            else:
                self.relay.ended(self)
        finally:
            if previous is not None:
                # Whoever had the transport before may be waiting for its end, as StreamWriter.wait_closed does.
                previous.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write."""
        self.full = True

    def resume_writing(self) -> None:
        """The peer reads again."""
        self.active = monotonic()
        self.full = False
        self.other.resume()

    # --- and the relay these ---------------------------------------------------------------------------------------

    def pause(self) -> None:
        """As :meth:`Side.pause`."""
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """As :meth:`Side.resume`."""
        if self._paused and not self.at_end and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def write(self, data: bytes | bytearray, size: int) -> None:
        """As :meth:`Side.write`."""
        if size > 0 and not self.finishing and not self._transport.is_closing():
            # Transports hold on to what they cannot write at once.
            whole = isinstance(data, bytes) and len(data) == size
            self._transport.write(data if whole else bytes(memoryview(data)[:size]))

    def finish(self) -> None:
        """As :meth:`Side.finish`; over TLS the whole stream ends, once a Close had its chance of being answered."""
        if self.finishing:
            if self.boundaries.close_passed and not self.closed:
                self.close_transport()  # no answer is to come any more
            return
        self.finishing = True
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):  # it has gone, as the transport will tell
                self._transport.write_eof()
            self.finished = True
            self.relay.finished()
        elif self.other.boundaries.close_passed and not self.boundaries.close_passed:
            alarm_of(self._loop).set(monotonic() + min(_TLS_LINGER, self._patience), _close_transport, self)
        else:
            self.close_transport()

    def close_transport(self) -> None:
        """Let the transport write what is unsent, tell the peer, and close in its own time."""
        if not self._transport.can_write_eof():
            self._transport.close()

    def unsent(self) -> int:
        """As :meth:`Side.unsent`."""
        if self.closed:
            return 0
        try:
            return int(self._transport.get_write_buffer_size())
        except AttributeError:
            return 0  # so says asyncio's TLS transport once it has closed, before it tells of that

    def strand(self) -> None:
        """As :meth:`Side.strand`."""
        break_stream(self._transport)

    def close(self, abort: bool) -> None:
        """As :meth:`Side.close`; ``closed`` is for the transport to say."""
        self.finishing = True
        if abort or self._transport.is_closing():
            self._transport.abort()
        else:
            self._transport.close()


def _close_transport(side: TransportSide) -> None:
    side.close_transport()


def keep_alive(sock: Any) -> None:
    """Have the kernel notice that a peer's cable has been cut, and send small frames at once."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in _KEEPALIVE:
        if (number := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    with contextlib.suppress(OSError):  # a socket of another family, or one that has gone
        for level, option, value in options:
            sock.setsockopt(level, option, value)
