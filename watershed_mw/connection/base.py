"""What an application holds: one connection with events, receive, send and end, in either flavour.

:class:`WatershedConnection` knows handlers, the receive queue and what an end looks like; the
asyncio and the threads flavour add how bytes travel and how waiting works. Every decision about
the protocol is asked of :mod:`watershed_mw.core.protocol`; no socket is touched here.
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
"""Called with a probe's name, the connection, and the bytes concerned."""

_H = TypeVar("_H", bound=Handler)

logger = logging.getLogger("watershed_mw")
_ids = itertools.count(1)
_live: Registry[WatershedConnection] = Registry()


def checked_message(data: Sendable) -> str | bytes:
    """``data`` as it can be handed to another thread, which could only log what is wrong with it."""
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
    """Counters of one connection since its opening handshake; bytes are those on the wire."""

    frames_received: int
    frames_sent: int
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What a connection is made with, besides its way to the peer.

    Attributes:
        role: which end this is.
        agreement: what the opening handshake settled.
        limits: limits and timeouts.
        request: the request as the application gave it, or the server's response on a client.
        remote, local: addresses as ``host:port``, or a path; empty when unknown.
        trace: probe called at start, end, and for everything received and sent; None costs nothing.
        closed: exception raised after the end; a framework may want a class of its own kind.
        ended: called once when the connection has ended, in whatever thread finds out.
        shutdown_code: close code with which it ends where the process does; None where that is not ours to do.
        continues: connection whose bytes this one goes on with: it has the same id, and its start is not traced again.
        listed: whether it is one of :func:`live_connections`, in place of the one that it continues.
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

    Messages are either pushed to handlers (``on("text", ...)``) or pulled (``receive()``,
    iteration). As soon as a handler for ``text`` or ``binary`` is there, messages are pushed, and
    those of a type without a handler are dropped.

    Events and their arguments: ``text(str)``, ``binary(bytes)``, ``ping(bytes)``, ``pong(bytes)``,
    ``error(exception)``, ``connection_reset()``, ``end(code, reason)``, and ``drain()`` where ``send``
    does not block. ``error`` and ``connection_reset`` are each followed by ``end``, which comes exactly once.

    Attributes:
        id: number of this connection, unique within the process.
        request: the request as the application gave it to ``accept``; the response on a client.
        remote, local: addresses as ``host:port``, or a path; empty when unknown.
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

    _core: BaseProtocol  # which kind it is, the flavours know

    def __init__(self, info: ConnectionInfo, protocol: BaseProtocol, queue: ReceiveQueue | None = None) -> None:
        keep_large_blocks()
        earlier = info.continues
        self._state: SimpleNamespace | None = None if earlier is None else earlier._state
        self.id: int = next(_ids) if earlier is None else earlier.id
        self.request = info.request
        self.remote = info.remote
        self.local = info.local
        self.protocol = info.agreement.subprotocol
        # Not the object itself, most of which is needed here alone.
        self._limits = info.limits
        self._closed_as = info.closed
        self._on_ended = info.ended
        self._shutdown_code = info.shutdown_code
        self._core = protocol
        self._opened: float = monotonic() if earlier is None else earlier._opened
        self._ended_at: float | None = None
        self._queue = ReceiveQueue(info.limits) if queue is None else queue
        # What is held counts from STEP bytes on (core/memory_budget.py): while it does, there is an account.
        self._account: Account | None = None
        self._meter: Meter | None = None
        self._handlers = NO_HANDLERS
        self._push = False
        self._ran = False  # whether something has waited while handlers are called: run(), or wait_closed()
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

    # --- what the application keeps here -------------------------------------------------------------

    @property
    def state(self) -> SimpleNamespace:
        """The application's own attributes of this connection, as Starlette's ``request.state``: ``conn.state.user``.

        The connection itself takes no further attributes, and none of its methods can be replaced.
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
        """Call ``handler`` at each ``event``; without a handler, return a decorator that does.

        Returns:
            the handler.

        Raises:
            ValueError: there is no such event.
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
        """Call ``handler`` at the next ``event`` alone. Raises as :meth:`on`."""
        self.on(event, called_once(handler, partial(self.off, event)))
        return handler

    def off(self, event: str, handler: Handler) -> None:
        """Stop calling ``handler`` at ``event``; nothing happens when it was never called there."""
        self._handlers = self._handlers.without(event, handler)

    def warn_if_never_run(self) -> None:
        """Log that an application returns without having called ``run()``: its handlers would never be called."""
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
        """A handler for messages has come; a flavour may have messages waiting for it."""

    def _handler_failed(self, error: BaseException) -> None:
        """A handler raised: the connection ends with 1011, and ``run`` raises the exception."""
        if self._handler_error is None:
            self._handler_error = error
        self._core.close(1011, "", monotonic())

    # --- the end, as each flavour brings it about ------------------------------------------------------

    def end(self, reason: str = "", *, code: int = 1000) -> Any:
        """Begin the closing handshake (RFC 6455 section 7.1.2), from any thread; everything sent before arrives first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        raise NotImplementedError

    def start_close(self, reason: str = "", *, code: int = 1000) -> None:
        """Send a Close frame as :meth:`end` does, from any thread, and wait for nothing."""
        raise NotImplementedError

    def begin_end(self, reason: str = "", *, code: int = 1000) -> None:
        """As :meth:`start_close`: its first name."""
        self.start_close(reason, code=code)

    def break_off(self) -> None:
        """As :meth:`abort`: its first name."""
        self.abort()

    def abort(self) -> None:
        """Break the TCP stream, from any thread: everything that waits for the connection wakes up and sees the end."""
        raise NotImplementedError

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already."""
        raise NotImplementedError

    def _is_report_due(self, held: int) -> bool:
        """Whether a connection that holds ``held`` bytes has to report them."""
        return held >= STEP if self._meter is None else self._meter.is_due(held)

    def _report_memory(self, unsent: int, taking: int = 0) -> None:
        """Report to the process's budget what this connection holds; called with no lock held.

        Args:
            unsent: bytes that the peer has not taken.
            taking: bytes of a message in the queue that is being taken.
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
        """Forget the account: nothing is held any more, or another object holds it."""
        account, self._account, self._meter = self._account, None, None
        if account is not None:
            account.close()

    def _message_after(self, event: Event) -> str | bytes:
        """The first message from ``event`` on, which was taken from the queue; handlers of others are called."""
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
        """Call the handlers of the end, once."""
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

    # --- what goes out -------------------------------------------------------------------------------

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
        """Send a message that other connections are sent as well, here as any other; nothing once it is ending."""
        if self.sending:
            self.send(shared.message)

    def send(self, data: Sendable) -> Any:
        """Send one message, as the flavours say.

        A ``str`` goes as TEXT, and so does an instance of any subclass. Whatever exports a buffer goes as BINARY, by
        its bytes in C order: ``bytes``, ``bytearray``, ``memoryview``, ``array.array``, ``mmap``, arrays of NumPy's.
        """
        raise NotImplementedError

    def _queue_ping(self, data: Sendable) -> None:
        payload = checked_ping(data)
        self._core.ping(payload, monotonic())
        if self._trace is not None:
            self._trace("send-ping", self, payload)

    def _queue_close(self, code: int, reason: str) -> None:
        self._core.close(code, exact_text(reason), monotonic())

    # --- how it stands -------------------------------------------------------------------------------

    def get_protocol(self) -> str | None:
        """The negotiated subprotocol, or None (RFC 6455 section 1.9)."""
        return self.protocol

    @property
    def closed(self) -> bool:
        """Whether no message can come or go any more; messages received before may still be waiting."""
        return self._core.ended

    @property
    def shutdown_code(self) -> int | None:
        """Close code with which the connection ends where the process does, see :class:`~watershed_mw.Options`."""
        return self._shutdown_code

    @property
    def gone(self) -> bool:
        """Whether the TCP stream has ended as well."""
        return self._core.state is State.CLOSED

    @property
    def sending(self) -> bool:
        """Whether messages can still be sent: not once this end has sent its Close, or the connection has ended."""
        return self._core.sending

    @property
    def close_code(self) -> int | None:
        """How it ended (RFC 6455 section 7.4): the peer's code, 1005 if it gave none, the code with
        which this end failed the connection, or 1006 if the peer vanished; None while it is open."""
        return self._core.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason that goes with :attr:`close_code`, often empty; None while the connection is open."""
        return self._core.close_reason

    @property
    def latency(self) -> float | None:
        """Seconds that the last answered PING took, keepalive included; None before the first."""
        return self._core.latency

    @property
    def stats(self) -> Stats:
        """Frames, messages and bytes each way since the opening handshake."""
        return Stats(*self._core.counts())

    @property
    def duration(self) -> float:
        """Seconds since the opening handshake; once the connection has ended, those that it lasted."""
        return (monotonic() if self._ended_at is None else self._ended_at) - self._opened

    def __repr__(self) -> str:
        state = self._core.state.name.lower()
        return f"<{type(self).__name__} {self.id} {state} {self.remote or 'unknown'} protocol={self.protocol!r}>"


def log_handler_failure(connection: WatershedConnection, error: BaseException) -> None:
    """Log what a handler raised, where no caller can be given it."""
    logger.error("a handler of %r raised", connection, exc_info=error)


def live_connections() -> list[WatershedConnection]:
    """Every connection of this process that has not ended, the oldest first: for a status page or a log.

    Each has ``id``, ``remote``, ``protocol``, ``duration``, ``latency``, ``stats`` and ``request``, and may be ended
    from any thread.
    """
    return sorted(_live, key=lambda connection: connection.id)
