"""What every connection's core has in common: where it stands, how it ended, and what it has counted.

This file is compiled as well as interpreted. Frames and messages are the business of those who build on it,
:mod:`watershed_mw.core.protocol` and :mod:`watershed_mw.core.message_protocol`.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConnectionClosed, ProtocolError
from .events import Event
from .states import TRANSITIONS, State, Trigger

__all__ = ["BaseProtocol", "Counts"]

# Looked up at most once per change of state, never per message.
_OPEN = State.OPEN
_ANSWERING = State.ANSWERING
_FAILING = State.FAILING
_ENDING = State.ENDING
_CLOSED = State.CLOSED


class Counts(NamedTuple):
    """Counts of both directions since the opening handshake.

    Where another program reads and writes the frames, there are none, and bytes are those of payload.
    """

    frames_received: int
    frames_sent: int
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


class BaseProtocol:
    """One end of one connection after its opening handshake, whatever frames its messages.

    Attributes:
        state: a :class:`~watershed_mw.core.states.State`.
        sending: whether messages can still be sent.
        write_paused: set by the driver while the peer does not read.
        messages_sent: how many messages have been queued.
    """

    def __init__(self) -> None:
        self.state = _OPEN
        self.sending = True
        self.write_paused = False
        self._close_received: tuple[int, str] | None = None
        self._close_sent: tuple[int, str] | None = None
        self._failure: ProtocolError | None = None
        self.messages_sent = 0

    # --- what the application wants ----------------------------------------------------------------

    def send_text(self, message: str) -> None:
        """Queue a TEXT message.

        Raises:
            ConnectionClosed: a Close has been sent, or the connection has ended.
            LocalProtocolError: the text holds a lone surrogate, which UTF-8 cannot encode.
        """
        raise NotImplementedError

    def send_binary(self, message: bytes) -> None:
        """Queue a BINARY message. Raises as :meth:`send_text`."""
        raise NotImplementedError

    def ping(self, payload: bytes, now: float) -> None:
        """Queue a PING; its PONG will give the latency.

        Raises:
            ConnectionClosed: as :meth:`send_text`.
            LocalProtocolError: more than 125 bytes (section 5.5), or no frames of our own.
        """
        raise NotImplementedError

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin the closing handshake, or finish the one that the peer began; nothing when over.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Give up at once: nothing that is queued will be sent."""
        raise NotImplementedError

    def fail(self, error: ProtocolError, now: float) -> list[Event]:
        """Fail the connection for a reason of this end's; what is incomplete is forgotten.

        Returns:
            that it has failed; nothing where the end had begun, and is now at once.
        """
        raise NotImplementedError

    def counts(self) -> Counts:
        """What has come and what has been queued so far."""
        raise NotImplementedError

    def incoming_size(self) -> int:
        """Bytes that are held of the message that is arriving."""
        return 0

    def _check_sending(self) -> None:
        if not self.sending:
            code, reason = self._outcome()
            raise ConnectionClosed(code, reason)

    # --- how it stands ---------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether no message can come or go any more; the TCP stream may still be winding down."""
        return self.state is _ENDING or self.state is _CLOSED

    @property
    def close_sent(self) -> tuple[int, str] | None:
        """Code and reason of the Close that was queued, None before."""
        return self._close_sent

    @property
    def close_received(self) -> tuple[int, str] | None:
        """Code and reason of the peer's Close, None before."""
        return self._close_received

    @property
    def latency(self) -> float | None:
        """Seconds from the last answered PING to its PONG, None before the first."""
        return None

    @property
    def reset(self) -> bool:
        """Whether the peer has vanished: no Close of its, and no violation."""
        raise NotImplementedError

    @property
    def close_code(self) -> int | None:
        """Close code once the connection has ended, else None: the peer's, or what failed it, or 1006."""
        return self._outcome()[0] if self.ended else None

    @property
    def close_reason(self) -> str | None:
        """Close reason that goes with :attr:`close_code`."""
        return self._outcome()[1] if self.ended else None

    def _outcome(self) -> tuple[int, str]:
        raise NotImplementedError

    def _move(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.state][trigger]
        self.sending = self.state is _OPEN or self.state is _ANSWERING or self.state is _FAILING
