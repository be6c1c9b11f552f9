"""One server's end of a connection whose frames somebody else reads and writes: whole messages in, whole messages out.

An ASGI server without our door keeps the frames, the control frames and the closing handshake to
itself. What is left to decide is decided here, by the same states, limits and errors as in
:mod:`watershed_mw.core.protocol`, so that a connection looks the same to its application.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .base import BaseProtocol
from .codes import encode_close, encode_text, shorten
from .events import Event, Failed
from .limits import Limits, too_large
from .rate import MessageRate
from .states import State, Trigger

__all__ = ["MessageProtocol", "Outgoing"]

Outgoing: TypeAlias = "str | bytes | tuple[int, str]"
"""What the server is to send: a TEXT message, a BINARY message, or a Close with its code and reason."""


class MessageProtocol(BaseProtocol):
    """The state machine of a connection that travels as messages.

    Args:
        limits: those that bear on whole messages; frames and time are the server's own business.
        now: current time in seconds, of a clock that never goes back.

    Attributes:
        items_queued, items_taken: how many messages and Closes there were for the server, and how many it has taken.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        super().__init__()
        self._max_size = limits.max_message_size
        self._rate = None if limits.max_message_rate is None else MessageRate(limits.max_message_rate, now)
        self._outgoing: deque[Outgoing] = deque()
        self.items_queued = 0
        self.items_taken = 0

    # --- what came from the server -------------------------------------------------------------------

    def receive_message(self, message: str | bytes, now: float) -> list[Event]:
        """Take a message of the peer's, and return what it means: itself, or that it goes past a limit."""
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
        self.messages_received += 1
        self.bytes_received += size
        return [message]

    def fail(self, error: ProtocolError, now: float) -> list[Event]:  # no time limit follows from it
        """As :meth:`BaseProtocol.fail`."""
        # Applications keep errors for their logs: the frames of a traceback would keep the message, too.
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
        """Take note that the server has ended the connection, and how."""
        if self.state is not State.CLOSED:
            self._close_received = (code, reason)
            self._move(Trigger.EOF)

    # --- what the application wants --------------------------------------------------------------------

    def send_text(self, message: str) -> None:
        """Queue a TEXT message; raises as :class:`BaseProtocol` says, like all of these."""
        self._send(message, len(encode_text(message)))

    def send_binary(self, message: bytes) -> None:
        """Queue a BINARY message."""
        self._send(message, len(message))

    def _send(self, message: str | bytes, size: int) -> None:
        self._check_sending()
        self.messages_sent += 1
        self.bytes_sent += size
        self.unsent_size += size
        self._queue(message)

    def ping(self, payload: bytes, now: float) -> None:
        """Refuse: no ASGI message stands for a PING. Raises :class:`LocalProtocolError`."""
        raise LocalProtocolError("expected a connection whose frames are our own for a PING; here the server has them")

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin the closing handshake; nothing when the connection is ending already."""
        encode_close(code, reason)
        if self.sending:
            self._queue_close(code, reason)
            self._move(Trigger.LOCAL_CLOSE)

    def abort(self) -> None:
        """Give up at once: nothing that is queued will be sent."""
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

    # --- what goes to the server -----------------------------------------------------------------------

    def next_to_send(self) -> Outgoing | None:
        """What the server is to send next, None for nothing; :meth:`taken` follows when it has taken it."""
        return self._outgoing[0] if self._outgoing else None

    def taken(self) -> None:
        """The server has taken what :meth:`next_to_send` returned. After a Close the rest is its business."""
        if not self._outgoing:
            return  # given up meanwhile
        item = self._outgoing.popleft()
        self.items_taken += 1
        if isinstance(item, tuple):
            if self.state is not State.CLOSED:
                self._move(Trigger.EOF)
        else:
            self.unsent_size -= len(item) if isinstance(item, bytes) else len(item.encode())

    # --- how it stands ---------------------------------------------------------------------------------

    @property
    def reset(self) -> bool:
        """Whether the peer has vanished, and not because of a violation."""
        return self.state is State.CLOSED and self._failure is None and self._outcome()[0] == 1006

    def _outcome(self) -> tuple[int, str]:
        if self._failure is not None:
            return self._failure.close_code, str(self._failure)
        return self._close_received or self._close_sent or (1006, "")
