"""The relay's engine: enforces its limits, and ends its two sides.

It parses only frame boundaries, so that its Close frames go out between two frames; everything else passes unchanged.
It runs on an event loop without a thread, a task or a timer of its own, and buffers a bounded number of bytes. What the
peers do is reported in the result and never raised.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from math import inf

from ..core.codes import CloseCode, Opcode, encode_close
from ..core.frames.codec import encode_frame
from ..runtime.timers import timers_of
from .outcome import RelayEnd, RelayResult
from .side import Phase, Side

__all__ = ["Engine"]

# Seconds for a side to close after the other was reset, once everything received before that has been written to it.
_LINGER = 1.0


class Engine:
    """Decides when the sides of a relay end, on the thread of their event loop.

    Args:
        loop: the event loop.
        client, server: the sides.
        idle_timeout, close_timeout, max_duration, max_bytes: as for :func:`~watershed_mw.relay.relay`.
        on_end: called with the result when both sides are closed.

    Attributes:
        began: when the relay was made, in seconds of ``time.monotonic()``.
        close_timeout: seconds for the peers to close once the relay is ending.
        end: why the relay ends; None until it is ending.
    """

    __slots__ = (
        "_client",
        "_closed",
        "_closing",
        "_idle_timeout",
        "_loop",
        "_max_bytes",
        "_max_until",
        "_on_end",
        "_server",
        "_timer_due",
        "_until",
        "began",
        "close_timeout",
        "end",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Side,
        server: Side,
        *,
        idle_timeout: float | None,
        close_timeout: float,
        max_duration: float | None,
        max_bytes: int | None,
        on_end: Callable[[RelayResult], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._server = server
        self._idle_timeout = inf if idle_timeout is None else idle_timeout
        self.close_timeout = close_timeout
        self._max_bytes = max_bytes
        self.began = time.monotonic()
        self._max_until = inf if max_duration is None else self.began + max_duration
        self._until = inf  # when the streams are aborted, once the relay is ending
        self._timer_due = inf
        self.end: RelayEnd | None = None
        self._closing = False
        self._closed = False
        self._on_end = on_end

    def start(self) -> None:
        """Start to relay."""
        for side, other in ((self._client, self._server), (self._server, self._client)):
            side.engine = self
            side.other = other
            side.limited = self._max_bytes is not None
            side.active = self.began
        self._client.begin()
        self._server.begin()
        self._update()

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._client, self._server

    # --- the sides call these ----------------------------------------------------------------------------------------

    def allows(self, size: int) -> bool:
        """Whether ``size`` more bytes may pass; if not, start to end the relay."""
        passed = self._client.passed + self._server.passed
        if self._max_bytes is None or passed + size <= self._max_bytes:
            return True
        payload = encode_close(CloseCode.POLICY_VIOLATION, "byte limit reached")
        self.end_with_close(RelayEnd.TOO_MUCH, payload, finish_frame=False)
        return False

    def ended(self, side: Side) -> None:
        """The peer of ``side`` has ended its direction of the stream."""
        side.phase = Phase.SHUT
        side.active = time.monotonic()  # close_timeout of the other direction starts now
        side.other.finish()
        if self.end is not None:
            side.finish()
        self._update()

    def breaking(self) -> None:
        """The peer of a side accepts no more bytes; those that it sent before may still be readable."""
        if self.end is None:
            self.end = RelayEnd.RESET
            self._until = time.monotonic() + self.close_timeout
        self._set_timer()

    def lost(self, side: Side) -> None:
        """The peer of ``side`` has reset the stream."""
        self.breaking()
        side.close(True)
        side.other.shut()
        side.other.finish()
        self._update()

    def finished(self) -> None:
        """A side has ended its stream to the peer, or has closed."""
        self._update()

    def answered(self) -> None:
        """A side has sent its Close frame since the relay started to end; after both have, no more bytes follow."""
        for side in self._sides:
            if side.boundaries.close_passed and side.other.phase is Phase.SHUT:
                side.finish()

    # --- the end -----------------------------------------------------------------------------------------------------

    def end_with_close(self, end: RelayEnd, payload: bytes, finish_frame: bool = True) -> None:
        """Start to end the relay, with a Close frame to both sides, unless it is already ending.

        Args:
            end: why the relay ends.
            payload: payload of the Close frame.
            finish_frame: whether the rest of a frame that has begun passes first; otherwise such a side gets no Close.
        """
        if self.end is not None or self._closed:
            return
        self.end = end
        self._until = time.monotonic() + self.close_timeout
        # cut() sends to the other side: frames to the client are unmasked, those to the server are masked.
        self._server.cut(encode_frame(Opcode.CLOSE, payload, None), finish_frame)
        self._client.cut(encode_frame(Opcode.CLOSE, payload, os.urandom(4)), finish_frame)
        self.answered()
        for side in self._sides:
            if side.at_end:
                side.finish()
        self._update()

    def _update(self) -> None:
        """Close both sides if both streams have ended; otherwise set the timer for the next deadline."""
        if self._closed:
            return
        client, server = self._client, self._server
        if client.closed and server.closed:
            self._set_result()
        elif not self._closing and all(side.closed or (side.at_end and side.finished) for side in self._sides):
            self._close(RelayEnd.ENDED)
        else:
            if self.end is RelayEnd.RESET and not self._closing and client.unsent() == server.unsent() == 0:
                self._until = min(self._until, time.monotonic() + _LINGER)
            self._set_timer()

    def abort(self) -> None:
        """Abort both streams."""
        if not self._closed:
            self.end = RelayEnd.BROKEN_OFF
            self._closing = True
            self._close(RelayEnd.BROKEN_OFF, late=True)

    def _close(self, end: RelayEnd, *, late: bool = False) -> None:
        """Close both sides; ``late`` if the deadline for unsent bytes has passed. The second late call aborts."""
        abort, self._closing = late and self._closing, True
        self.end = self.end or end
        self._until = time.monotonic() + self.close_timeout
        for side in self._sides:
            # If bytes are missing, the peer must not see an orderly end of the stream.
            side.close(abort or (late and side.unsent() > 0))
        self._update()

    def loop_failed(self) -> None:
        """End both streams after the event loop failed, and set the result for its waiters."""
        self.end = self.end or RelayEnd.BROKEN_OFF
        for side in self._sides:
            side.loop_failed()
        self._set_result()

    def _set_result(self) -> None:
        self._cancel_timer()
        client, server = self._client, self._server
        seconds = time.monotonic() - self.began
        self._closed = True
        self._on_end(RelayResult(self.end or RelayEnd.ENDED, client.passed, server.passed, seconds))

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _idle_at(self) -> float:
        # After one side has ended its stream, the other has at most close_timeout.
        timeout = self._idle_timeout
        if self._client.at_end or self._server.at_end:
            timeout = min(timeout, self.close_timeout)
        return max(self._client.active, self._server.active) + timeout

    def _set_timer(self) -> None:
        when = self._until if self.end is not None else min(self._idle_at(), self._max_until)
        if self._timer_due <= when:
            return  # an early call re-arms the timer, which is cheaper than moving it after each read
        self._cancel_timer()
        if when != inf:
            self._timer_due = timers_of(self._loop).set(when, _on_deadline, self)

    def _cancel_timer(self) -> None:
        if self._timer_due != inf:
            timers_of(self._loop).cancel(self._timer_due, self)
            self._timer_due = inf

    def _on_deadline(self) -> None:
        self._timer_due = inf
        now = time.monotonic()
        if self.end is not None:
            if now >= self._until:
                self._close(self.end, late=True)
        elif now >= self._idle_at():
            if self._client.at_end or self._server.at_end:
                self._close(RelayEnd.ENDED, late=True)
            else:
                self.end_with_close(RelayEnd.IDLE, encode_close(CloseCode.GOING_AWAY, "idle"))
        elif now >= self._max_until:
            self.end_with_close(RelayEnd.TOO_LONG, encode_close(CloseCode.GOING_AWAY, "time limit reached"))
        if not self._closed:
            self._set_timer()


def _on_deadline(engine: Engine) -> None:
    engine._on_deadline()
