"""What ``websocket.accept`` makes of the client's stream: a connection, the raw stream, or a relay to another server.

An outcome is planned before the accept, by default or through the native door, and lives as long as what it made.
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
# Seconds for the application to return once the relay it waits for has ended.
_RELAY_GRACE = 1.0

Fields = list[tuple[str, str]]


class RunningRelay(Protocol):
    """A relay that has taken over the raw stream, as far as the shutdown is concerned."""

    close_timeout: float
    shutdown_code: int | None

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """End it with a Close to both sides."""


class Outcome:
    """What follows the 101.

    Args:
        settings: settings of the connection, and of its negotiation.

    Attributes:
        result: what the accept made; None before.
        logged_as: what the log line about the answer says.
        outlives_transport: whether uvicorn has to wait for the application although its transport has gone.
    """

    __slots__ = ("result", "settings")

    logged_as: ClassVar[str] = "[detached]"
    outlives_transport: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.result: Any = None

    @property
    def connection(self) -> AsyncioConnection | None:
        """The connection, once there is one."""
        return None

    @property
    def seconds_to_return(self) -> float:
        """How long the application may take to return once the server stops."""
        return self.settings.limits.close_timeout

    @property
    def shutdown_code(self) -> int:
        """The close code that says that the server stops."""
        return self.settings.shutdown_code or 1012

    def response_fields(self, negotiated: Fields) -> Fields:
        """The fields of the opening handshake in the 101."""
        return negotiated

    def carry_out(
        self, transport: AsyncioTransport, agreement: Agreement, response: bytes, early: bytes, log: RequestLog
    ) -> None:
        """Write the 101 and take over the transport.

        Args:
            transport: the client's.
            agreement: what has been negotiated.
            response: the whole 101.
            early: bytes that came before it.
            log: knows the scope and the client.

        Raises:
            ConnectionClosed: the client has gone.
            HandshakeError: there is no descriptor for it (503); nothing has been written.
        """
        self.result = transport.detach(early, response)

    def shut_down(self) -> None:
        """End what was made: uvicorn is stopping."""


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
    """The raw stream, which the application owns from then on: uvicorn no longer ends it."""

    __slots__ = ()


class Relayed(Outcome):
    """The raw stream for a relay, after the 101 of another server.

    Args:
        settings: as the base class says.
        answer: the fields of that server's 101, in place of what is negotiated here.

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
        """As the base class says: a relay first gives its peers ``close_timeout``, then their streams."""
        return super().seconds_to_return if self.relay is None else 2 * self.relay.close_timeout + _RELAY_GRACE

    def response_fields(self, negotiated: Fields) -> Fields:
        """As the base class says."""
        return self._answer

    def shut_down(self) -> None:
        """As the base class says; nothing before the relay runs."""
        if self.relay is not None:
            self.relay.start_close(_RESTART, code=self.relay.shutdown_code or self.shutdown_code)
