"""The raw relay: bytes between two streams after an opening handshake that was forwarded from one to the other.

Nothing is parsed but where frames end, so that :meth:`Relay.start_close` can say goodbye to both sides between two of
them; whatever the peers agreed upon passes as it is. A relay lives on an event loop, takes no thread, no task and no
timer of its own, and holds a bounded number of bytes. It trusts nobody: what peers do is told in the result, never
raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, TypeAlias

from ..connection.adopt import AsyncioTransport, drain_stream
from ..connection.base import logger
from ..core.codes import CloseCode, Opcode, encode_close
from ..core.frames.codec import encode_frame
from ..errors import ConnectionClosed
from ..runtime.greenlets import threads_are_greenlets
from ..runtime.interrupts import is_interrupt
from ..runtime.loop_end import end_with
from ..runtime.loop_thread import Serving, at_failure, background_loop
from ..runtime.registry import Registry
from ..runtime.timers import timers_of
from ..sockets.carrier import carrier_of
from ..sockets.tls_transport import TLSSocketTransport
from ..sockets.tls_views import HeldTLSSocket
from .side import Phase, Side
from .socket_side import SocketSide
from .transport_side import TransportSide

__all__ = ["Relay", "RelayEnd", "RelayResult", "Stream", "can_relay", "live_relays", "relay"]

Stream: TypeAlias = "socket.socket | asyncio.BaseTransport | tuple[asyncio.StreamReader, asyncio.StreamWriter]"
"""A connected socket, plain or TLS; an asyncio transport; or a pair as ``asyncio.open_connection`` gives."""

# Seconds that a side has to close once all that came before the other's reset has been written to it.
_LINGER = 1.0
# Seconds between two looks of a greenlet, which another thread cannot wake.
_LOOK_EVERY = 0.02

_live: Registry[Relay] = Registry()


class RelayEnd(Enum):
    """Why a relay ended."""

    ENDED = "both ends"
    """Both sides ended their streams; or one did, and the other had nothing more to say for ``close_timeout``."""
    RESET = "reset"
    """A side broke its stream, or vanished."""
    IDLE = "idle"
    """Nothing passed in either direction for ``idle_timeout``."""
    TOO_LONG = "too long"
    """It lasted for ``max_duration``."""
    TOO_MUCH = "too much"
    """More than ``max_bytes`` were to pass."""
    DRAINED = "drained"
    """:meth:`Relay.start_close` was called."""
    BROKEN_OFF = "broken off"
    """:meth:`Relay.abort` was called."""


@dataclass(frozen=True, slots=True)
class RelayResult:
    """What a relay has come to.

    Attributes:
        end: why it ended.
        to_server, to_client: bytes that were passed on, those that came early included; no Close frame of ours is.
        seconds: how long it lasted.
    """

    end: RelayEnd
    to_server: int
    to_client: int
    seconds: float


class Relay:
    """Bytes on their way between a client and a server. Made by :func:`relay`; awaiting it gives the result.

    Attributes:
        close_timeout: seconds that peers have at the end.
        shutdown_code: close code with which it ends where the process does; None where that is not ours to do.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_client",
        "_closing",
        "_end",
        "_idle_timeout",
        "_listeners",
        "_loop",
        "_max_bytes",
        "_max_until",
        "_result",
        "_server",
        "_timer_due",
        "_until",
        "close_timeout",
        "shutdown_code",
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
        shutdown_code: int | None,
    ) -> None:
        self._loop = loop
        self._client = client
        self._server = server
        self._idle_timeout = inf if idle_timeout is None else idle_timeout
        self.close_timeout = close_timeout
        self._max_bytes = max_bytes
        self._began = time.monotonic()
        self._max_until = inf if max_duration is None else self._began + max_duration
        self._until = inf  # when the streams are broken, once the end has begun
        self._timer_due = inf
        self._end: RelayEnd | None = None
        self._closing = False
        self._result: RelayResult | None = None
        # Called once there is a result, in whatever thread: each end of the deque may be used by another.
        self._listeners: deque[Callable[[], object]] = deque()
        self.shutdown_code = shutdown_code

    # --- from any thread -----------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether both streams have been closed."""
        return self._result is not None

    @property
    def at_work(self) -> bool:
        """Never: a relay has no handlers."""
        return False

    def cancel_handlers(self) -> None:
        """Nothing: a relay has none."""

    @property
    def ending(self) -> bool:
        """Whether the end has begun: nothing passes any more but the rest of frames that had."""
        return self._end is not None

    @property
    def result(self) -> RelayResult | None:
        """What it has come to; None while it has not ended."""
        return self._result

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """End both sides with a Close frame, each at the end of a frame, and wait for nothing.

        A side that has had a Close already gets no other; one in the middle of a frame that never ends gets none.
        Both are closed after ``close_timeout`` at the latest. From any thread.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: close code, 1001 (going away) unless given.

        Raises:
            LocalProtocolError: the code or the reason cannot be sent.
        """
        payload = encode_close(code, reason)
        self._call(self._end_with_close, RelayEnd.DRAINED, payload)

    def begin_end(self, reason: str = "", *, code: int = 1001) -> None:
        """As :meth:`start_close`: its first name."""
        self.start_close(reason, code=code)

    def break_off(self) -> None:
        """As :meth:`abort`: its first name."""
        self.abort()

    def abort(self) -> None:
        """Break both streams at once, from any thread; what is unsent is lost."""
        self._call(self._abort)

    def wait(self, timeout: float | None = None) -> RelayResult:
        """Wait for the end in a thread, never in that of the relay's own loop.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            TimeoutError: it has not ended in time.
        """
        if threads_are_greenlets():
            until = inf if timeout is None else time.monotonic() + timeout
            while self._result is None and time.monotonic() < until:
                time.sleep(_LOOK_EVERY)
        else:
            event = threading.Event()
            call = event.set
            self.when_gone(call)
            try:
                event.wait(timeout)
            finally:
                self._forget(call)
        if self._result is None:
            raise TimeoutError(f"expected the relay to end within {timeout} seconds")
        return self._result

    def __await__(self) -> Generator[Any, None, RelayResult]:
        # On any loop. Who is cancelled while waiting leaves the relay as it is.
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def set_outcome() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop has been closed
                loop.call_soon_threadsafe(set_outcome)

        self.when_gone(wake)
        try:
            yield from waiter
        finally:
            self._forget(wake)
        assert self._result is not None
        return self._result

    def when_gone(self, call: Callable[[], object]) -> None:
        """Call ``call`` once both streams have been closed, in whatever thread that is; at once if they are."""
        self._listeners.append(call)
        if self._result is not None:
            self._call_listeners()

    def _forget(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(ValueError):  # it has been called
            self._listeners.remove(call)

    def _call_listeners(self) -> None:
        while True:
            try:
                call = self._listeners.popleft()
            except IndexError:
                return
            try:
                call()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                # The others are waiting as well.
                logger.exception("%r raised, which was to hear of a relay's end", call)

    def _call(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and with it all that is here to end
            self._loop.call_soon_threadsafe(call, *args, context=Context())

    # --- on the loop: the begin ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        for side, other in ((self._client, self._server), (self._server, self._client)):
            side.relay = self
            side.other = other
            side.limited = self._max_bytes is not None
            side.active = self._began
        self._client.begin()
        self._server.begin()
        self._update()

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._client, self._server

    # --- on the loop: the sides call these -----------------------------------------------------------------------

    def allows(self, size: int) -> bool:
        """Whether ``size`` more bytes may pass; if not, the end begins."""
        passed = self._client.passed + self._server.passed
        if self._max_bytes is None or passed + size <= self._max_bytes:
            return True
        payload = encode_close(CloseCode.POLICY_VIOLATION, "too much")
        self._end_with_close(RelayEnd.TOO_MUCH, payload, finish_frame=False)
        return False

    def ended(self, side: Side) -> None:
        """The peer of ``side`` has ended its direction of the stream."""
        side.phase = Phase.SHUT
        side.active = time.monotonic()  # from now on the other direction has its time
        side.other.finish()
        if self._end is not None:
            side.finish()
        self._update()

    def breaking(self) -> None:
        """The peer of a side takes nothing any more; what it sent before that may still be there, for a while."""
        if self._end is None:
            self._end = RelayEnd.RESET
            self._until = time.monotonic() + self.close_timeout
        self._set_timer()

    def lost(self, side: Side) -> None:
        """The peer of ``side`` has broken the stream."""
        self.breaking()
        side.close(True)
        side.other.shut()
        side.other.finish()
        self._update()

    def finished(self) -> None:
        """A side has told its peer that nothing more will come, or has closed."""
        self._update()

    def answered(self) -> None:
        """A Close has come from a side since the end began: with both Closes there is nothing left to wait for."""
        for side in self._sides:
            if side.boundaries.close_passed and side.other.phase is Phase.SHUT:
                side.finish()

    # --- on the loop: the end ------------------------------------------------------------------------------------

    def _end_with_close(self, end: RelayEnd, payload: bytes, finish_frame: bool = True) -> None:
        if self._end is not None or self._result is not None:
            return
        self._end = end
        self._until = time.monotonic() + self.close_timeout
        # Whatever comes from a side goes to the other: towards the server we are the client, which masks.
        self._server.cut(encode_frame(Opcode.CLOSE, payload, None), finish_frame)
        self._client.cut(encode_frame(Opcode.CLOSE, payload, os.urandom(4)), finish_frame)
        self.answered()
        for side in self._sides:
            if side.at_end:
                side.finish()
        self._update()

    def _update(self) -> None:
        """Close when there is nothing left to do, and set the timer for what comes next."""
        if self._result is not None:
            return
        client, server = self._client, self._server
        if client.closed and server.closed:
            self._set_result()
        elif not self._closing and all(side.closed or (side.at_end and side.finished) for side in self._sides):
            self._over(RelayEnd.ENDED)
        else:
            if self._end is RelayEnd.RESET and not self._closing and client.unsent() == server.unsent() == 0:
                self._until = min(self._until, time.monotonic() + _LINGER)
            self._set_timer()

    def _abort(self) -> None:
        if self._result is None:
            self._end = RelayEnd.BROKEN_OFF
            self._closing = True
            self._over(RelayEnd.BROKEN_OFF, late=True)

    def _over(self, end: RelayEnd, *, late: bool = False) -> None:
        """Close both sides; if it is ``late``, what is unsent has had its time, and has it once only."""
        abort, self._closing = late and self._closing, True
        self._end = self._end or end
        self._until = time.monotonic() + self.close_timeout
        for side in self._sides:
            # The peer is not to think that it has had everything.
            side.close(abort or (late and side.unsent() > 0))
        self._update()

    def loop_failed(self) -> None:
        """The loop has failed: the peers have to see the end, and those who wait for the result get it."""
        self._end = self._end or RelayEnd.BROKEN_OFF
        for side in self._sides:
            side.loop_failed()
        self._set_result()

    def _set_result(self) -> None:
        self._cancel_timer()
        client, server = self._client, self._server
        seconds = time.monotonic() - self._began
        _live.discard(self)
        self._result = RelayResult(self._end or RelayEnd.ENDED, client.passed, server.passed, seconds)
        self._call_listeners()

    # --- on the loop: time ---------------------------------------------------------------------------------------

    def _idle_at(self) -> float:
        # Who waits for the second end after the first waits no longer than for an answer.
        timeout = self._idle_timeout
        if self._client.at_end or self._server.at_end:
            timeout = min(timeout, self.close_timeout)
        return max(self._client.active, self._server.active) + timeout

    def _set_timer(self) -> None:
        when = self._until if self._end is not None else min(self._idle_at(), self._max_until)
        if self._timer_due <= when:
            return  # It is called early and looks again, which is cheaper than moving it.
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
        if self._end is not None:
            if now >= self._until:
                self._over(self._end, late=True)
        elif now >= self._idle_at():
            if self._client.at_end or self._server.at_end:
                self._over(RelayEnd.ENDED, late=True)
            else:
                self._end_with_close(RelayEnd.IDLE, encode_close(CloseCode.GOING_AWAY, "idle"))
        elif now >= self._max_until:
            self._end_with_close(RelayEnd.TOO_LONG, encode_close(CloseCode.GOING_AWAY, "too long"))
        if self._result is None:
            self._set_timer()


def _on_deadline(relay: Relay) -> None:
    relay._on_deadline()


def can_relay(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this event loop waits for the sockets of a relay: Windows' ProactorEventLoop has no ``add_reader()``."""
    proactor: Any = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is None or not isinstance(loop, proactor)


def relay(
    a: Stream,
    b: Stream,
    *,
    idle_timeout: float | None = 3600.0,
    close_timeout: float = 10.0,
    max_duration: float | None = None,
    max_bytes: int | None = None,
    shutdown_code: int | None = None,
) -> Relay:
    """Pass on what comes from either stream to the other, until both have ended.

    An end of one stream becomes an end of the other once everything before it has been written, and the opposite
    direction goes on, except over TLS, which ends both at once. With an event loop running it runs there; elsewhere on
    the process's own loop, and this returns at once as well.

    Args:
        a: the WebSocket client's side. It belongs to the relay from now on, as ``b`` does.
        b: the WebSocket server's side.
        idle_timeout: seconds without a byte in either direction after which both get a Close (1001); None for no limit.
        close_timeout: seconds that peers have to answer a Close, to take what is unsent once the end has begun, and to
            say more once the opposite direction has ended.
        max_duration: seconds after which both get a Close (1001); None for no limit.
        max_bytes: bytes in both directions together, after which both get a Close (1008) or, in the middle of a frame,
            their stream's end; None for no limit.
        shutdown_code: the attribute of this name.

    Raises:
        TypeError: one of the two is no stream that a relay knows.
        ValueError: it is no connected stream, both are the same, or a limit is not positive.
        ConnectionClosed: it has been closed.
        NotImplementedError: the loop is Windows' ProactorEventLoop, which cannot wait for sockets of others.
    """
    limits = {
        "idle_timeout": idle_timeout,
        "close_timeout": close_timeout,
        "max_duration": max_duration,
        "max_bytes": max_bytes,
    }
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"expected {name} above 0, got {limit!r}")
    if a is b:
        raise ValueError("expected two streams, got the same twice")
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    for stream in (a, b):
        _check(stream, running)
    loop = running or background_loop()[0]
    if not can_relay(loop):
        raise NotImplementedError(f"expected an event loop with add_reader(), got {type(loop).__name__}")
    client, server = _side_of(a, loop, close_timeout), _side_of(b, loop, close_timeout)
    made = Relay(
        loop,
        client,
        server,
        idle_timeout=idle_timeout,
        close_timeout=close_timeout,
        max_duration=max_duration,
        max_bytes=max_bytes,
        shutdown_code=shutdown_code,
    )
    _live.add(made)
    # Not in the caller's context: it would be held on to, and a web framework's has a request in it.
    if running is not None:
        end_with(running, _living)
        Context().run(made._begin)
    else:
        loop.call_soon_threadsafe(made._begin, context=Context())
    return made


def live_relays() -> list[Relay]:
    """Every relay of this process that has not ended, the oldest first."""
    return sorted(_live, key=lambda relay: relay._began)


def _living(loop: asyncio.AbstractEventLoop) -> list[Relay]:
    return [relay for relay in live_relays() if relay._loop is loop]


def _on_loop_failure(serving: Serving) -> None:
    for relay in _living(serving.loop):
        relay.loop_failed()


at_failure(_on_loop_failure)


def _check(stream: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """Raises as :func:`relay`."""
    carrier = carrier_of(stream)
    if carrier.writer is not None and carrier.reader is None:
        raise TypeError(
            "expected a (StreamReader, StreamWriter) pair, got a StreamWriter alone: pass its reader, which may hold "
            "bytes, as well"
        )
    if (sock := carrier.socket) is not None:
        if sock.fileno() == -1:
            raise ConnectionClosed(1006, f"expected a connected socket, got a closed {type(sock).__name__}")
        if sock.type != socket.SOCK_STREAM or _listens(sock):
            raise ValueError(f"expected a connected stream socket, got {sock!r}")
        if isinstance(sock, ssl.SSLSocket) and sock.version() is None:
            raise ValueError("expected a TLS socket whose handshake is done, got one before it")
        return
    if loop is None:
        raise ValueError(f"expected sockets where no event loop is running, got {type(stream).__name__}")
    assert carrier.transport is not None
    if carrier.transport.is_closing():
        raise ConnectionClosed(1006, f"expected an open transport, got a closing {type(carrier.transport).__name__}")


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError):
        return False  # not every platform tells


def _side_of(stream: Any, loop: asyncio.AbstractEventLoop, timeout: float) -> Side:
    """The stream as a side of a relay, out of the reach of whoever had it."""
    carrier = carrier_of(stream)
    if (sock := carrier.socket) is not None:
        head = bytes(getattr(sock, "head", b""))
        if not isinstance(sock, ssl.SSLSocket):
            return SocketSide(loop, sock, head)
        sock.__class__ = HeldTLSSocket
        return TransportSide(loop, TLSSocketTransport(loop, sock), head, False, None, timeout)
    transport, reader, writer = carrier.transport, carrier.reader, carrier.writer
    assert transport is not None
    plain = transport.get_extra_info("ssl_object") is None and transport.get_extra_info("socket") is not None
    if plain and not transport.is_closing() and not transport.get_write_buffer_size():
        # By itself a socket costs less than through its transport.
        detached: Any = AsyncioTransport(transport, None if writer is None else (reader, writer)).detach(b"")
        return SocketSide(loop, detached, detached.head)
    head = drain_stream(reader)
    eof = reader is not None and reader.at_eof()
    return TransportSide(loop, transport, head, eof, writer, timeout)
