"""The server side of a connection that exchanges whole messages with an ASGI server.

An ASGI server handles frames, control frames and the closing handshake itself. This module does the rest with the same
states, limits and errors as :mod:`watershed_mw.core.protocol`, so that a connection looks the same to the application.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .base import BaseProtocol, Counts
from .codes import encode_close, encode_text, shorten
from .events import Event, Failed
from .limits import Limits, too_large
from .rate import MessageRate
from .states import State, Trigger

__all__ = ["MessageProtocol", "Outgoing"]

Outgoing: TypeAlias = "str | bytes | tuple[int, str]"
"""What the server has to send: a TEXT message, a BINARY message, or a Close with its code and reason."""


class MessageProtocol(BaseProtocol):
    """The state machine of a connection that consists of whole messages.

    Args:
        limits: limits on whole messages apply; those on frames and time are up to the server.
        now: current time in seconds, of a monotonic clock.

    Attributes:
        unsent_size: bytes of payload that wait for the server.
        items_queued, items_taken: number of messages and Closes queued for the server, and taken by it.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        super().__init__()
        self._max_size = limits.max_message_size
        self._rate = None if limits.max_message_rate is None else MessageRate(limits.max_message_rate, now)
        self._outgoing: deque[Outgoing] = deque()
        self.unsent_size = 0
        self._messages_received = self._bytes_received = self._bytes_sent = 0
        self.items_queued = 0
        self.items_taken = 0

    # --- received from the server --------------------------------------------------------------------

    def receive_message(self, message: str | bytes, now: float) -> list[Event]:
        """Process a message from the peer; returns the events: the message, or a failure if it exceeds a limit."""
        if self.state is not State.OPEN and self.state is not State.CLOSING:
            return []
        size = len(message) if isinstance(message, bytes) else len(message.encode("utf-8", "replace"))
        try:
            if self._rate is not None:
                self._rate.spend(now)
            if self._max_size is not None and size > self._max_size:
                raise too_large(self._max_size, size)
        except RemoteProtocolError as error:
            return self.fail(error, now)
        self._messages_received += 1
        self._bytes_received += size
        return [message]

    def fail(self, error: ProtocolError, now: float) -> list[Event]:  # now: no deadline follows
        """As :meth:`BaseProtocol.fail`."""
        # Applications may keep the error; the frames of a traceback would keep the message alive.
        error.__traceback__ = None
        self._failure = error
        if self.state is State.OPEN:
            self._queue_close(error.close_code, shorten(str(error)))
            self._move(Trigger.VIOLATION)
            self._move(Trigger.HANDED_OVER)
        elif self.state is State.CLOSING:
            self._move(Trigger.VIOLATION)
        else:
            self.abort()
            return []
        return [Failed(error)]

    def receive_disconnect(self, code: int, reason: str) -> None:
        """Record that the server has closed the connection, with its code and reason."""
        if self.state is not State.CLOSED:
            self._close_received = (code, reason)
            self._move(Trigger.EOF)

    # --- from the application --------------------------------------------------------------------------

    def send_text(self, message: str) -> None:
        """Queue a TEXT message. Raises as :class:`BaseProtocol`, like all of these methods."""
        self._send(message, len(encode_text(message)))

    def send_binary(self, message: bytes) -> None:
        """Queue a BINARY message."""
        self._send(message, len(message))

    def _send(self, message: str | bytes, size: int) -> None:
        self._check_sending()
        self.messages_sent += 1
        self._bytes_sent += size
        self.unsent_size += size
        self._queue(message)

    def ping(self, payload: bytes, now: float) -> None:
        """Refuse, as ASGI has no message for a PING. Raises :class:`LocalProtocolError`."""
        raise LocalProtocolError("ASGI has no message for a PING: the server sends its own")

    def close(self, code: int, reason: str, now: float) -> None:
        """Start the closing handshake; no effect if the connection is already closing."""
        encode_close(code, reason)
        if self.sending:
            self._queue_close(code, reason)
            self._move(Trigger.LOCAL_CLOSE)

    def abort(self) -> None:
        """Drop the connection at once; queued items are discarded."""
        self._outgoing.clear()
        self.unsent_size = 0
        if self.state is not State.CLOSED:
            self._move(Trigger.ABORT)

    def _queue_close(self, code: int, reason: str) -> None:
        self._close_sent = (code, reason)
        self._queue((code, reason))

    def _queue(self, item: Outgoing) -> None:
        self.items_queued += 1
        self._outgoing.append(item)

    # --- to the server ---------------------------------------------------------------------------------

    def next_to_send(self) -> Outgoing | None:
        """The next item for the server, or None; call :meth:`taken` when the server has taken it."""
        return self._outgoing[0] if self._outgoing else None

    def taken(self) -> None:
        """Record that the server has taken the item of :meth:`next_to_send`; a Close ends this side's part."""
        if not self._outgoing:
            return  # aborted in the meantime
        item = self._outgoing.popleft()
        self.items_taken += 1
        if isinstance(item, tuple):
            if self.state is not State.CLOSED:
                self._move(Trigger.EOF)
        else:
            self.unsent_size -= len(item) if isinstance(item, bytes) else len(item.encode())

    # --- state ----------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """As :meth:`BaseProtocol.counts`."""
        return Counts(0, 0, self._messages_received, self.messages_sent, self._bytes_received, self._bytes_sent)

    @property
    def reset(self) -> bool:
        """Whether the peer disconnected without a Close, and not because of a violation."""
        return self.state is State.CLOSED and self._failure is None and self._outcome()[0] == 1006

    def _outcome(self) -> tuple[int, str]:
        if self._failure is not None:
            return self._failure.close_code, str(self._failure)
        return self._close_received or self._close_sent or (1006, "")
