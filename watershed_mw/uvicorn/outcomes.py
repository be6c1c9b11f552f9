"""The outcomes of ``websocket.accept``: a connection, the raw stream, or a relay to another server.

An outcome is planned before the accept, by default or through :class:`NativeDoor`, and lives as long as its result.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ..connection.adopt import AsyncioTransport
from ..connection.aio.connection import AsyncioConnection
from ..core.handshake.negotiation import Agreement
from ..core.states import Role
from ..options import Settings
from .log import RequestLog

__all__ = ["Connected", "Detached", "Outcome", "Relayed", "RunningRelay"]

_RESTART = "the server restarts"
# Seconds for the application to return once its relay has ended.
_RELAY_GRACE = 1.0

Fields = list[tuple[str, str]]


class RunningRelay(Protocol):
    """A relay that has taken over the raw stream; the part that the shutdown needs."""

    close_timeout: float
    shutdown_code: int | None

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """Close both sides with a Close frame."""


class Outcome:
    """The result of an accept.

    Args:
        settings: settings of the connection, and of its negotiation.

    Attributes:
        result: the object that the accept created; None before that.
        logged_as: the text for the log line about the response.
        outlives_transport: whether uvicorn must wait for the application even after its transport is lost.
    """

    __slots__ = ("result", "settings")

    logged_as: ClassVar[str] = "[detached]"
    outlives_transport: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.result: Any = None

    @property
    def connection(self) -> AsyncioConnection | None:
        """The connection, or None."""
        return None

    @property
    def seconds_to_return(self) -> float:
        """Seconds for the application to return once the server stops."""
        return self.settings.limits.close_timeout

    @property
    def shutdown_code(self) -> int:
        """The close code for when the server stops."""
        return self.settings.shutdown_code or 1012

    def response_fields(self, negotiated: Fields) -> Fields:
        """The header fields of the opening handshake in the 101."""
        return negotiated

    def carry_out(
        self, transport: AsyncioTransport, agreement: Agreement, response: bytes, early: bytes, log: RequestLog
    ) -> None:
        """Write the 101 and take over the transport.

        Args:
            transport: the client's.
            agreement: the negotiated parameters.
            response: the complete 101.
            early: bytes that arrived before it.
            log: has the scope and the client's address.

        Raises:
            ConnectionClosed: the client has disconnected.
            HandshakeError: the process is out of descriptors (503); nothing has been written.
        """
        self.result = transport.detach(early, response)

    def shut_down(self) -> None:
        """Close the result, as uvicorn is stopping."""


class Connected(Outcome):
    """A connection of this package."""

    __slots__ = ()

    logged_as: ClassVar[str] = "[accepted]"

    @property
    def connection(self) -> AsyncioConnection | None:
        """As the base class says."""
        connection: AsyncioConnection | None = self.result
        return connection

    def carry_out(
        self, transport: AsyncioTransport, agreement: Agreement, response: bytes, early: bytes, log: RequestLog
    ) -> None:
        """As the base class says."""
        transport.write(response)
        limits, trace = self.settings.limits, self.settings.trace
        self.result = transport.connection(
            Role.SERVER, agreement, limits, trace, log.scope, early, remote=log.remote or None
        )

    def shut_down(self) -> None:
        """As the base class says."""
        if self.result is not None:
            self.result.end(_RESTART, code=self.shutdown_code)


class Detached(Outcome):
    """The raw stream, which the application then owns: uvicorn no longer closes it."""

    __slots__ = ()


class Relayed(Outcome):
    """The raw stream for a relay, after the 101 of another server.

    Args:
        settings: as the base class says.
        answer: header fields of that server's 101, which replace the ones negotiated here.

    Attributes:
        relay: the relay, while it runs.
    """

    __slots__ = ("_answer", "relay")

    outlives_transport: ClassVar[bool] = True

    def __init__(self, settings: Settings, answer: Fields) -> None:
        super().__init__(settings)
        self._answer = answer
        self.relay: RunningRelay | None = None

    @property
    def seconds_to_return(self) -> float:
        """As the base class says: a relay waits ``close_timeout`` for its peers, then again for their streams."""
        return super().seconds_to_return if self.relay is None else 2 * self.relay.close_timeout + _RELAY_GRACE

    def response_fields(self, negotiated: Fields) -> Fields:
        """As the base class says."""
        return self._answer

    def shut_down(self) -> None:
        """As the base class says; does nothing before the relay runs."""
        if self.relay is not None:
            self.relay.start_close(_RESTART, code=self.relay.shutdown_code or self.shutdown_code)
