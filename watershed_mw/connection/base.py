"""The connection that applications hold, with events, receive, send and end: the part common to both flavours.

:class:`WatershedConnection` has the handlers, the receive queue and the state of the end; the asyncio and the threads
flavour add I/O and waiting. :mod:`watershed_mw.core.protocol` makes all protocol decisions; this module does no I/O.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeVar, cast, overload

from .._native.malloc import keep_large_blocks
from ..core.base import BaseProtocol
from ..core.codes import MAX_CONTROL_PAYLOAD, encode_text
from ..core.events import Event
from ..core.handshake.negotiation import Agreement
from ..core.limits import Limits
from ..core.memory_budget import STEP, Account, Meter
from ..core.payloads import Sendable, as_message, as_ping_payload, exact_text
from ..core.prepared import PreparedMessage
from ..core.receive_queue import ReceiveQueue
from ..core.states import Role, State
from ..errors import ConnectionClosed, LocalProtocolError
from ..runtime.registry import Registry
from .handlers import EVENTS, MESSAGES, NO_HANDLERS, Handler, called_once
from .memory import Holder, open_account
from .tracer import Tracer

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.time import monotonic
else:
    from time import monotonic

__all__ = [
    "ConnectionInfo",
    "Handler",
    "Stats",
    "Trace",
    "WatershedConnection",
    "live_connections",
    "log_handler_failure",
]

Trace: TypeAlias = "Callable[[str, WatershedConnection, bytes], None]"
"""Called with a probe's name, the connection, and the bytes sent or received."""

_H = TypeVar("_H", bound=Handler)

logger = logging.getLogger("watershed_mw")
_ids = itertools.count(1)
_live: Registry[WatershedConnection] = Registry()


def checked_message(data: Sendable) -> str | bytes:
    """Check ``data`` before it goes to another thread, which could only log an error."""
    message = as_message(data)
    if isinstance(message, str):
        encode_text(message)
    return message


def checked_ping(data: Sendable) -> bytes:
    """The payload of a PING. Raises as :meth:`WatershedConnection.ping`."""
    payload = as_ping_payload(data)
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise LocalProtocolError(f"expected at most {MAX_CONTROL_PAYLOAD} bytes in a PING, got {len(payload)}")
    return payload


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of one connection since its opening handshake; bytes as on the wire."""

    frames_received: int
    frames_sent: int
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """The arguments of a connection, besides its transport.

    Attributes:
        role: client or server.
        agreement: the negotiated parameters.
        limits: limits and timeouts.
        request: the request as the application gave it; on a client, the server's response.
        remote, local: addresses as ``host:port``, or a path; empty if unknown.
        trace: probe called at start, end, and for everything received and sent; None costs nothing.
        closed: class of the exception raised after the end; a framework may need one of its own.
        ended: called once when the connection has ended, in an arbitrary thread.
        shutdown_code: close code for when the process stops; None leaves the connection to the application.
        continues: the connection whose stream this one continues: it keeps the id, and does not trace a start.
        listed: whether it is among :func:`live_connections`, in place of the connection that it continues.
    """

    role: Role
    agreement: Agreement
    limits: Limits
    request: Any = None
    remote: str = ""
    local: str = ""
    trace: Trace | None = None
    closed: type[ConnectionClosed] = ConnectionClosed
    ended: Callable[[], None] | None = None
    shutdown_code: int | None = None
    continues: WatershedConnection | None = None
    listed: bool = True


class WatershedConnection:
    """One WebSocket connection after its opening handshake.

    Messages are either pushed to handlers (``on("text", ...)``) or pulled (``receive()``, iteration). Once a handler
    for ``text`` or ``binary`` is registered, messages are pushed, and those of a type without a handler are dropped.

    Events and their arguments: ``text(str)``, ``binary(bytes)``, ``ping(bytes)``, ``pong(bytes)``,
    ``error(exception)``, ``connection_reset()``, ``end(code, reason)``, and ``drain()`` where ``send``
    does not block. ``error`` and ``connection_reset`` are each followed by ``end``, which comes exactly once.

    Attributes:
        id: number of this connection, unique within the process.
        request: the request as the application gave it to ``accept``; the response on a client.
        remote, local: addresses as ``host:port``, or a path; empty if unknown.
        protocol: the negotiated subprotocol, or None.
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_closed_as",
        "_core",
        "_destroyed",
        "_end_emitted",
        "_ended_at",
        "_error",
        "_handler_error",
        "_handlers",
        "_limits",
        "_meter",
        "_on_ended",
        "_opened",
        "_push",
        "_queue",
        "_ran",
        "_shutdown_code",
        "_state",
        "_trace",
        "id",
        "local",
        "protocol",
        "remote",
        "request",
    )

    _core: BaseProtocol  # the flavours use subclasses

    def __init__(self, info: ConnectionInfo, protocol: BaseProtocol, queue: ReceiveQueue | None = None) -> None:
        keep_large_blocks()
        earlier = info.continues
        self._state: SimpleNamespace | None = None if earlier is None else earlier._state
        self.id: int = next(_ids) if earlier is None else earlier.id
        self.request = info.request
        self.remote = info.remote
        self.local = info.local
        self.protocol = info.agreement.subprotocol
        # Not info itself, whose other attributes are needed only here.
        self._limits = info.limits
        self._closed_as = info.closed
        self._on_ended = info.ended
        self._shutdown_code = info.shutdown_code
        self._core = protocol
        self._opened: float = monotonic() if earlier is None else earlier._opened
        self._ended_at: float | None = None
        self._queue = ReceiveQueue(info.limits) if queue is None else queue
        # An account exists only while at least STEP bytes are buffered (core/memory_budget.py).
        self._account: Account | None = None
        self._meter: Meter | None = None
        self._handlers = NO_HANDLERS
        self._push = False
        self._ran = False  # whether run() or wait_closed() has been called
        self._error: BaseException | None = None
        self._handler_error: BaseException | None = None
        self._destroyed = False
        self._end_emitted = False
        self._trace = None if info.trace is None else Tracer(info.trace)
        if info.listed:
            _live.add(self)
            if earlier is not None:
                _live.discard(earlier)
        if self._trace is not None and earlier is None:
            self._trace("start", self, info.role.value.encode())

    # --- the application's own attributes --------------------------------------------------------------

    @property
    def state(self) -> SimpleNamespace:
        """The application's own attributes of this connection, like Starlette's ``request.state``: ``conn.state.user``.

        The connection itself accepts no further attributes, and its methods cannot be replaced.
        """
        if self._state is None:
            self._state = SimpleNamespace()
        return self._state

    # --- handlers ------------------------------------------------------------------------------------

    @overload
    def on(self, event: str, handler: _H) -> _H: ...

    @overload
    def on(self, event: str, handler: None = None) -> Callable[[_H], _H]: ...

    def on(self, event: str, handler: Handler | None = None) -> Any:
        """Call ``handler`` on each ``event``; without a handler, return a decorator.

        Returns:
            the handler.

        Raises:
            ValueError: the event does not exist.
        """
        if event not in EVENTS:
            raise ValueError(f"expected one of the events {', '.join(sorted(EVENTS))}, got {event!r}")
        if handler is None:
            return lambda function: self.on(event, function)
        self._handlers = self._handlers.adding(event, handler)
        if event in MESSAGES:
            self._push = True
            self._handlers_changed()
        return handler

    def once(self, event: str, handler: Handler) -> Handler:
        """Call ``handler`` only on the next ``event``. Raises as :meth:`on`."""
        self.on(event, called_once(handler, partial(self.off, event)))
        return handler

    def off(self, event: str, handler: Handler) -> None:
        """Stop calling ``handler`` on ``event``; does nothing if it is not registered."""
        self._handlers = self._handlers.without(event, handler)

    def warn_if_never_run(self) -> None:
        """Log a warning if an application returns without having called ``run()``: no handler was ever called."""
        unheard = self._push and not self._ran and self._core.sending
        if unheard and (self._queue or not self._core.counts().messages_received):
            events = ", ".join(sorted({event for event, _ in self._handlers if event in MESSAGES}))
            logger.warning(
                "%r is ended as it is left, with handlers for %s that were never called: call run() (asyncio: await "
                "it) after the last on(...), it returns when the connection has ended",
                self,
                events,
            )

    def _handlers_changed(self) -> None:
        """A handler for messages has been added; a flavour delivers queued messages."""

    def _handler_failed(self, error: BaseException) -> None:
        """A handler raised: the connection ends with 1011, and ``run`` raises the exception."""
        if self._handler_error is None:
            self._handler_error = error
        self._core.close(1011, "", monotonic())

    # --- the end, implemented by the flavours ------------------------------------------------------------

    def end(self, reason: str = "", *, code: int = 1000) -> Any:
        """Start the closing handshake (RFC 6455 section 7.1.2), from any thread; pending messages are sent first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Raises:
            LocalProtocolError: the code or the reason cannot be sent.
        """
        raise NotImplementedError

    def start_close(self, reason: str = "", *, code: int = 1000) -> None:
        """Send a Close frame as :meth:`end` does, from any thread, without waiting."""
        raise NotImplementedError

    def begin_end(self, reason: str = "", *, code: int = 1000) -> None:
        """Alias of :meth:`start_close`, its former name."""
        self.start_close(reason, code=code)

    def break_off(self) -> None:
        """Alias of :meth:`abort`, its former name."""
        self.abort()

    def abort(self) -> None:
        """Abort the TCP stream, from any thread; all waiters of the connection wake up and see the end."""
        raise NotImplementedError

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it already was."""
        raise NotImplementedError

    def _is_report_due(self, held: int) -> bool:
        """Whether a connection that buffers ``held`` bytes must report them."""
        return held >= STEP if self._meter is None else self._meter.is_due(held)

    def _report_memory(self, unsent: int, taking: int = 0) -> None:
        """Report the bytes that this connection buffers to the process's budget; called without holding a lock.

        Args:
            unsent: bytes that the peer has not accepted.
            taking: bytes of a queued message that is being taken.
        """
        if self._meter is None:
            if self._limits.max_memory is None:
                return
            self._meter = Meter(open_account(cast(Holder, self), self._limits.max_memory))
        account = self._meter.account
        incoming, queued = self._core.incoming_size(), max(0, self._queue.size - taking)
        self._account = account if self._meter.set_marks(incoming + queued + unsent) else None
        account.report(incoming, queued, unsent, monotonic())

    def _close_account(self) -> None:
        """Close the account: no bytes are buffered any more, or another object accounts for them."""
        account, self._account, self._meter = self._account, None, None
        if account is not None:
            account.close()

    def _message_after(self, event: Event) -> str | bytes:
        """The next message, starting with ``event`` from the queue; handlers are called for other events on the way."""
        while not isinstance(event, (str, bytes)):
            self._handlers.emit_event(self, event)
            event = self._queue.take()
        return event

    def _check_pull(self) -> None:
        if self._push:
            raise LocalProtocolError(
                "expected messages to be pulled or pushed, not both: there are handlers for them, so use run()"
            )

    def _closed_error(self) -> ConnectionClosed:
        error = self._closed_as(self.close_code or 1006, self.close_reason or "")
        error.__cause__ = self._error
        return error

    def _emit_end(self) -> tuple[Any, ...]:
        """Call the handlers for the end, once."""
        if self._end_emitted:
            return ()
        self._end_emitted = True
        self._note_end()
        results: tuple[Any, ...] = ()
        if self._error is not None:
            results = self._handlers.emit(self, "error", (self._error,))
        elif self._core.reset and not self._destroyed:
            results = self._handlers.emit(self, "connection_reset", ())
        code, reason = self.close_code or 1006, self.close_reason or ""
        if self._trace is not None:
            self._trace.sent_close(self, self._core.close_sent)
            self._trace("end", self, b"%d %s" % (code, reason.encode()))
        return results + self._handlers.emit(self, "end", (code, reason))

    def _note_end(self) -> None:
        if self._ended_at is not None:
            return
        self._ended_at = monotonic()
        _live.discard(self)
        if self._on_ended is not None:
            self._on_ended()

    # --- sending -------------------------------------------------------------------------------------

    def _queue_message(self, data: Sendable) -> None:
        """Frame one message."""
        if type(data) is not str and type(data) is not bytes:
            data = as_message(data)
        try:
            if isinstance(data, str):
                self._core.send_text(data)
            else:
                self._core.send_binary(data)
        except ConnectionClosed as error:
            raise self._closed_as(error.code, error.reason) from self._error
        if self._trace is not None:
            self._trace.sent(self, data)

    def _send_prepared(self, shared: PreparedMessage) -> None:
        """Send a message that is shared with other connections; does nothing once this one is ending."""
        if self.sending:
            self.send(shared.message)

    def send(self, data: Sendable) -> Any:
        """Send one message; see the flavours.

        A ``str``, or an instance of a subclass, is sent as TEXT. Any object that exports a buffer is sent as BINARY, as
        its bytes in C order: ``bytes``, ``bytearray``, ``memoryview``, ``array.array``, ``mmap``, NumPy arrays.
        """
        raise NotImplementedError

    def _queue_ping(self, data: Sendable) -> None:
        payload = checked_ping(data)
        self._core.ping(payload, monotonic())
        if self._trace is not None:
            self._trace("send-ping", self, payload)

    def _queue_close(self, code: int, reason: str) -> None:
        self._core.close(code, exact_text(reason), monotonic())

    # --- state ---------------------------------------------------------------------------------------

    def get_protocol(self) -> str | None:
        """The negotiated subprotocol, or None (RFC 6455 section 1.9)."""
        return self.protocol

    @property
    def closed(self) -> bool:
        """Whether messages can no longer be sent or received; messages received before may still be queued."""
        return self._core.ended

    @property
    def shutdown_code(self) -> int | None:
        """Close code for when the process stops, see :class:`~watershed_mw.Options`."""
        return self._shutdown_code

    @property
    def gone(self) -> bool:
        """Whether the TCP stream has ended as well."""
        return self._core.state is State.CLOSED

    @property
    def sending(self) -> bool:
        """Whether messages can still be sent: this end has not sent its Close, and the connection has not ended."""
        return self._core.sending

    @property
    def close_code(self) -> int | None:
        """The close code (RFC 6455 section 7.4): the peer's code, 1005 if it sent none, the code with which this end
        failed the connection, or 1006 if the peer vanished; None while the connection is open."""
        return self._core.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason that goes with :attr:`close_code`, often empty; None while the connection is open."""
        return self._core.close_reason

    @property
    def latency(self) -> float | None:
        """Round-trip time in seconds of the last answered PING, keepalive included; None before the first."""
        return self._core.latency

    @property
    def stats(self) -> Stats:
        """Frames, messages and bytes in each direction since the opening handshake."""
        return Stats(*self._core.counts())

    @property
    def duration(self) -> float:
        """Seconds since the opening handshake; after the end, the connection's total duration."""
        return (monotonic() if self._ended_at is None else self._ended_at) - self._opened

    def __repr__(self) -> str:
        state = self._core.state.name.lower()
        return f"<{type(self).__name__} {self.id} {state} {self.remote or 'unknown'} protocol={self.protocol!r}>"


def log_handler_failure(connection: WatershedConnection, error: BaseException) -> None:
    """Log the exception of a handler that no caller receives."""
    logger.error("a handler of %r raised", connection, exc_info=error)


def live_connections() -> list[WatershedConnection]:
    """All connections of this process that have not ended, oldest first: for a status page or a log.

    Each has ``id``, ``remote``, ``protocol``, ``duration``, ``latency``, ``stats`` and ``request``, and any thread may
    end it.
    """
    return sorted(_live, key=lambda connection: connection.id)
