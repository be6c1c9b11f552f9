"""Gives a middleware access to the stream under this package's uvicorn class, bypassing ASGI messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from ..connection.adopt import AsyncioTransport
from ..options import ConnectionOptions, Options, Settings
from .options import options_under, settings_of
from .outcomes import Connected, Detached, Outcome, Relayed, RunningRelay

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["NativeDoor"]


class Upgrading(Protocol):
    """The protocol behind a :class:`NativeDoor`."""

    config: Config
    options: ClassVar[ConnectionOptions]

    @property
    def transport(self) -> AsyncioTransport:
        """The client's transport."""

    @property
    def connect_received(self) -> bool:
        """As :attr:`NativeDoor.connected`."""

    def plan(self, outcome: Outcome) -> None:
        """Set the outcome of the next accept."""

    def keep(self, relay: RunningRelay) -> None:
        """As :meth:`NativeDoor.keep`."""

    def reset(self) -> None:
        """As :meth:`NativeDoor.reset`."""


class NativeDoor:
    """The value of ``scope["extensions"]["watershed_mw"]``: access to the stream, bypassing ASGI messages.

    The opening handshake still passes through ASGI ``send``; only frames bypass it. Before the accept, a middleware
    plans the outcome with :meth:`connect`, :meth:`detach` or :meth:`hand_over`, and reads its result after the accept;
    the last plan counts.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Upgrading) -> None:
        self._protocol = protocol

    def __deepcopy__(self, memo: object) -> NativeDoor:
        """The same object: applications copy scopes, but the connection exists only once."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: applications pickle scopes, and the process that unpickles one has no connection."""
        return type(None), ()

    @property
    def key(self) -> object:
        """A cache key for values computed from :attr:`options`."""
        return self._protocol.config

    @property
    def options(self) -> Options:
        """The defaults for options that the application does not set: uvicorn's settings and the class's options."""
        protocol = self._protocol
        return options_under(protocol.config, type(protocol), protocol.options)

    @property
    def connected(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._protocol.connect_received

    def connect(self, settings: Settings) -> Outcome:
        """Make the next accept create a connection with these settings."""
        return self._plan(Connected(settings))

    def detach(self, settings: Settings) -> Outcome:
        """Make the next accept hand over the raw stream.

        Raises:
            UnsupportedServerError: the transport cannot be detached; no answer has been sent.
        """
        self._protocol.transport.check_detachable()
        return self._plan(Detached(settings))

    def hand_over(self, answer: list[tuple[str, str]]) -> Outcome:
        """Make the next accept send the 101 of another server, and hand over the raw stream for a relay.

        Args:
            answer: the header fields of the opening handshake in that 101.

        Raises:
            UnsupportedServerError: as :meth:`detach`.
        """
        self._protocol.transport.check_detachable()
        protocol = self._protocol
        return self._plan(Relayed(settings_of(protocol.config, type(protocol), protocol.options), answer))

    def _plan(self, outcome: Outcome) -> Outcome:
        self._protocol.plan(outcome)
        return outcome

    def keep(self, relay: RunningRelay) -> None:
        """Close this relay, which has the raw stream, when uvicorn stops; it counts among uvicorn's connections."""
        self._protocol.keep(relay)

    def reset(self) -> None:
        """Drop the connection with an RST, so that the client cannot mistake a partial response for a complete one."""
        self._protocol.reset()
