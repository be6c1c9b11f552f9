"""One side of a relay on a plain socket, which it reads and writes directly.

All relays of a thread read into one buffer and write from it: two system calls per chunk, and no allocation while the
peers keep up. This file is compiled as well as interpreted; compiled, it calls recv and send in C.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import socket
import struct
import threading
from typing import Any, cast

from ..runtime.timers import timers_of
from .side import HIGH_WATER, LOW_WATER, Side, keep_alive

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython
if cython.compiled:
    from cython.cimports.cpython.time import monotonic
    from cython.cimports.libc.errno import EAGAIN, EINTR, errno
else:
    from time import monotonic

__all__ = ["SocketSide"]


# Bytes per read. A larger chunk would be evicted from the CPU's nearest caches before it is written.
_CHUNK = 128 * 2**10


# libuv, and so uvloop, reports a socket error only once. The read that follows may return bytes that arrived before the
# error, which would then go unnoticed. So a side that has read bytes reads again after one to two of these intervals
# (in seconds).
_POLL_AGAIN = 0.125

# Results of reading and writing other than a number of bytes.
_NOTHING_NOW = -1
_BROKEN = -2

# SO_LINGER on, with 0 seconds: close() sends a reset.
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class _Shared(threading.local):
    """The buffer of a thread's relays, which holds bytes only between two system calls."""

    def __init__(self) -> None:
        self.memory = bytearray(_CHUNK)


_shared = _Shared()


class SocketSide(Side):
    """A plain socket.

    Args:
        loop: the event loop.
        sock: connected stream socket; this object takes its descriptor.
        head: bytes already read from it.
    """

    __slots__ = ("_broken", "_fd", "_head", "_memory", "_polling", "_queue", "_socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, head: bytes) -> None:
        super().__init__(loop)
        # The C module's class has no Python wrappers around its calls, and those of gevent and eventlet would block.
        self._socket = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._socket.setblocking(False)
        self._fd = self._socket.fileno()
        self._head = head
        self._broken = False  # whether writing has failed
        self._polling = isinstance(loop, asyncio.BaseEventLoop)  # whether a poll is pending, or never needed
        self._queue: bytearray | None = None
        self._memory = bytearray()
        keep_alive(self._socket)

    def begin(self) -> None:
        """As :meth:`Side.begin`."""
        self._memory = _shared.memory
        if self._head:
            head, self._head = self._head, b""
            self.forward(head, len(head))
        if not self.other.full:
            self.resume()

    def _readable(self) -> None:
        size = self._receive()
        if size > 0:
            if not self._polling:
                self._poll_later()
            try:
                self.forward(self._memory, size)
            except BaseException:
                self.engine.lost(self)  # the loop only logs the error, and the bytes are lost
                raise
        elif size == 0:
            self.pause()
            self.at_end = True
            if self._broken:
                self.engine.lost(self)
            else:
                self.engine.ended(self)
        elif size == _BROKEN:
            self.engine.lost(self)

    def _poll_later(self) -> None:
        # Rounded, so that all relays of this loop share one timer.
        self._polling = True
        when = (monotonic() // _POLL_AGAIN + 2) * _POLL_AGAIN
        timers_of(self._loop).set(when, _poll_again, self)

    def poll_again(self) -> None:
        """Try to read without waiting for an event."""
        self._polling = False
        if not self._paused and not self.at_end:
            self._readable()

    def _receive(self) -> int:
        """Read into the shared buffer: the number of bytes, 0 at the end of the stream, _NOTHING_NOW or _BROKEN."""
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
        self.full = len(self._queue) > HIGH_WATER

    def _send(self, data: bytes | bytearray, size: int) -> int:
        """Send; the number of bytes that the kernel accepted, or _BROKEN."""
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
        if self.full and len(queue) <= LOW_WATER:
            self.full = False
            self.other.resume()

    def _break(self) -> None:
        # The peer may have sent bytes before it vanished: reading returns those, then the end.
        self._broken = self.finishing = self.finished = True
        self.full = False
        if self._queue is not None:
            self._queue = None
            self._loop.remove_writer(self._fd)
        self.other.shut()
        if self.at_end:
            self.engine.lost(self)
            return
        if not self._paused:
            self.pause()
            self.resume()  # a new registration reports the error again, see _POLL_AGAIN
        self.engine.breaking()

    def finish(self) -> None:
        """As :meth:`Side.finish`."""
        if not self.finishing:
            self.finishing = True
            if self._queue is None:
                self._shut_down()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # not connected any more, which reading will report
            self._socket.shutdown(socket.SHUT_WR)
        self.finished = True
        self.engine.finished()

    def unsent(self) -> int:
        """As :meth:`Side.unsent`."""
        return 0 if self._queue is None else len(self._queue)

    def loop_failed(self) -> None:
        """As :meth:`Side.loop_failed`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):  # the selector of a failed loop may be closed
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


def _poll_again(side: SocketSide) -> None:
    side.poll_again()
