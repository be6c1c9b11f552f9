"""One side of a relay on an asyncio transport, as needed for TLS."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ..runtime.timers import timers_of
from ..sockets.tls_views import break_stream
from .side import HIGH_WATER, LOW_WATER, Side, keep_alive

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython
if cython.compiled:
    from cython.cimports.cpython.time import monotonic
else:
    from time import monotonic

__all__ = ["TransportSide"]


# Seconds for a TLS peer to answer a Close frame before the stream ends: TLS has no half-close.
_TLS_LINGER = 1.0


class TransportSide(Side):
    """An asyncio transport, whose ``asyncio.Protocol`` this is.

    Args:
        loop: the event loop.
        transport: plain or TLS, of asyncio, uvloop, or :class:`~watershed_mw.sockets.tls_transport.TLSSocketTransport`.
        head: bytes already read from it.
        eof: whether its end was read as well, which the transport does not report again.
        keep: an object to keep alive, such as a StreamWriter, which would close the transport when collected.
        close_timeout: seconds for the peer to read unsent bytes once the transport is closing.
    """

    __slots__ = ("_close_timeout", "_eof", "_head", "_keep", "_previous", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Any,
        head: bytes,
        eof: bool,
        keep: Any,
        close_timeout: float,
    ) -> None:
        super().__init__(loop)
        self._transport = transport
        self._head = head
        self._eof = eof
        self._keep = keep
        self._close_timeout = close_timeout
        self._previous = transport.get_protocol()
        if not transport.is_closing():
            transport.pause_reading()
        transport.set_protocol(self)
        with contextlib.suppress(NotImplementedError):
            transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
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

    # --- called by the transport -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Forward bytes from the peer."""
        self.forward(data, len(data))

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream; return whether to keep the transport open."""
        if self.at_end:
            return not self.finishing
        self.at_end = True
        goes_on = bool(self._transport.can_write_eof())
        if not goes_on:
            self.finishing = True  # over TLS the transport ends both directions at once
            self.other.shut()
        self.engine.ended(self)
        return goes_on

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed."""
        lost = not self.at_end and not self.finishing
        self.closed = self.at_end = self.finishing = self.finished = True
        self.full = False
        previous, self._previous, self._keep = self._previous, None, None
        try:
            if lost or exc is not None:
                self.engine.lost(self)
            else:
                self.engine.ended(self)
        finally:
            if previous is not None:
                # The previous owner may be waiting for this, as StreamWriter.wait_closed does.
                previous.connection_lost(exc)

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self.full = True

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        self.active = monotonic()
        self.full = False
        self.other.resume()

    # --- called by the engine and the other side ---------------------------------------------------------------------

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
            # Transports may keep a reference to bytes that they cannot write immediately.
            whole = isinstance(data, bytes) and len(data) == size
            self._transport.write(data if whole else bytes(memoryview(data)[:size]))

    def finish(self) -> None:
        """As :meth:`Side.finish`; over TLS both directions end, after a short time for the answer to a Close frame."""
        if self.finishing:
            if self.boundaries.close_passed and not self.closed:
                self.close_transport()  # the peer has answered the Close frame
            return
        self.finishing = True
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):  # closed, which the transport will report
                self._transport.write_eof()
            self.finished = True
            self.engine.finished()
        elif self.other.boundaries.close_passed and not self.boundaries.close_passed:
            timers_of(self._loop).set(monotonic() + min(_TLS_LINGER, self._close_timeout), _close_transport, self)
        else:
            self.close_transport()

    def close_transport(self) -> None:
        """Let the transport flush its write buffer, end TLS, and close."""
        if not self._transport.can_write_eof():
            self._transport.close()

    def unsent(self) -> int:
        """As :meth:`Side.unsent`."""
        if self.closed:
            return 0
        try:
            return int(self._transport.get_write_buffer_size())
        except AttributeError:
            return 0  # asyncio's TLS transport is closed but has not reported it yet

    def loop_failed(self) -> None:
        """As :meth:`Side.loop_failed`."""
        break_stream(self._transport)

    def close(self, abort: bool) -> None:
        """As :meth:`Side.close`; ``closed`` is set once the transport reports it."""
        self.finishing = True
        if abort or self._transport.is_closing():
            self._transport.abort()
        else:
            self._transport.close()


def _close_transport(side: TransportSide) -> None:
    side.close_transport()
