"""Calls an application's ``trace`` function; a connection without one has no tracer, at no cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.events import CloseReceived, Event, Ping, Pong

__all__ = ["Tracer"]


class Tracer:
    """Reports the events of one connection to its ``trace`` function, in order.

    Args:
        trace: the application's function.
    """

    __slots__ = ("_close_sent", "_trace")

    def __init__(self, trace: Callable[[str, Any, bytes], None]) -> None:
        self._trace = trace
        self._close_sent = False

    def __call__(self, probe: str, connection: Any, data: bytes) -> None:
        """Report ``data`` at ``probe``."""
        self._trace(probe, connection, data)

    def received(self, connection: Any, event: Event, answers: bool) -> None:
        """Report an event received from the peer.

        Args:
            answers: whether a PING is answered immediately.
        """
        if isinstance(event, str):
            self._trace("recv-text", connection, event.encode())
        elif isinstance(event, bytes):
            self._trace("recv-binary", connection, event)
        elif isinstance(event, (Ping, Pong)):
            self._trace("recv-ping" if isinstance(event, Ping) else "recv-pong", connection, event.payload)
            if isinstance(event, Ping) and answers:
                self._trace("send-pong", connection, event.payload)
        elif isinstance(event, CloseReceived):
            self._trace("recv-close", connection, b"%d %s" % (event.code, event.reason.encode()))

    def sent(self, connection: Any, message: str | bytes) -> None:
        """Report a message that has been queued for the peer."""
        if isinstance(message, str):
            self._trace("send-text", connection, message.encode())
        else:
            self._trace("send-binary", connection, message)

    def sent_close(self, connection: Any, close: tuple[int, str] | None) -> None:
        """Report, once, the Close that this end has sent; None if it has sent none."""
        if close is not None and not self._close_sent:
            self._close_sent = True
            self._trace("send-close", connection, b"%d %s" % (close[0], close[1].encode("utf-8", "replace")))
