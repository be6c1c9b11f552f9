"""The event handlers of one connection, called in registration order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from ..core.events import Event, Failed, Ping, Pong
from ..errors import ConnectionClosed
from ..runtime.interrupts import is_interrupt
from .awaitables import READY

__all__ = ["EVENTS", "MESSAGES", "NO_HANDLERS", "Handler", "Handlers", "called_once"]

Handler: TypeAlias = Callable[..., Any]
"""Called with the event's arguments; in the asyncio flavour it may be a coroutine function."""

EVENTS: Final = frozenset({"text", "binary", "ping", "pong", "error", "connection_reset", "end", "drain"})
MESSAGES: Final = frozenset({"text", "binary"})


class Handlers:
    """An immutable mapping of events to handlers, so that all connections without handlers can share one.

    The connection is an argument of the methods that call handlers, so the two do not keep each other alive.

    Args:
        pairs: alternating events and handlers. Most connections have two or three, which take less memory in a tuple
            than in a dictionary.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: tuple[Any, ...] = ()) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, Handler]]:
        return zip(self._pairs[::2], self._pairs[1::2], strict=True)

    def adding(self, event: str, handler: Handler) -> Handlers:
        """These handlers, and one more."""
        return Handlers((*self._pairs, event, handler))

    def without(self, event: str, handler: Handler) -> Handlers:
        """These handlers, without ``handler`` for ``event``."""
        kept: list[Any] = []
        for known_event, known in self:
            if known_event != event or (known != handler and getattr(known, "__wrapped__", None) != handler):
                kept += (known_event, known)
        return Handlers(tuple(kept))

    def has(self, event: str) -> bool:
        """Whether ``event`` has a handler."""
        return event in self._pairs[::2]

    def emit(self, connection: Any, event: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Call the handlers of ``event`` in order, and return their results, without completed awaitables."""
        results: tuple[Any, ...] = ()
        pairs = self._pairs
        for index in range(0, len(pairs), 2):
            if pairs[index] != event:
                continue
            handler = pairs[index + 1]
            try:
                result = handler(args[0]) if len(args) == 1 else handler(*args)
                if result is not None and result is not READY:
                    results = (*results, result)
            except ConnectionClosed:
                pass  # the handler replied too late, as the end event reports
            except BaseException as error:
                if is_interrupt(error):
                    raise
                connection._handler_failed(error)  # whatever its class, it ends only this connection
        return results

    def emit_event(self, connection: Any, event: Event) -> tuple[Any, ...]:
        """As :meth:`emit`, for one event taken from the receive queue."""
        if isinstance(event, str):
            return self.emit(connection, "text", (event,))
        if isinstance(event, bytes):
            return self.emit(connection, "binary", (event,))
        assert isinstance(event, (Ping, Pong))
        return self.emit(connection, "ping" if isinstance(event, Ping) else "pong", (event.payload,))

    def sort(self, connection: Any, events: list[Event]) -> tuple[Event, ...]:
        """Queue the protocol's events, and return those to emit immediately.

        If messages are pushed, all events go through the queue, in order; if they are pulled, control frames do not
        wait for a ``receive``.
        """
        queue, tracer, core = connection._queue, connection._trace, connection._core
        at_once: list[Event] | None = None
        for event in events:
            if tracer is not None:
                tracer.received(connection, event, core.sending and not core.write_paused)
            if isinstance(event, (str, bytes)):
                if queue.full and not core.sending:
                    # The application has ended the connection and does not read: drop the rest, so that the queued
                    # messages have no gaps.
                    queue.stay_full()
                    continue
                queue.put(event)
            elif isinstance(event, Failed):
                connection._error = event.error
            elif isinstance(event, (Ping, Pong)) and self.has("ping" if isinstance(event, Ping) else "pong"):
                if connection._push:
                    queue.put(event)
                else:
                    if at_once is None:
                        at_once = []
                    at_once.append(event)
        return () if at_once is None else tuple(at_once)


NO_HANDLERS = Handlers()


def called_once(handler: Handler, remove: Callable[[Handler], None]) -> Handler:
    """A handler that passes itself to ``remove``, then calls ``handler``."""

    def call(*args: Any) -> Any:
        remove(call)
        return handler(*args)

    call.__wrapped__ = handler  # type: ignore[attr-defined]  # so that off() finds it
    return call
