"""What this package's uvicorn class offers to a middleware: access to the stream itself, past the ASGI messages."""

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
    """What a door needs of the protocol behind it."""

    config: Config
    options: ClassVar[ConnectionOptions]

    @property
    def transport(self) -> AsyncioTransport:
        """The client's transport."""

    @property
    def connect_received(self) -> bool:
        """As :attr:`NativeDoor.connected`."""

    def plan(self, outcome: Outcome) -> None:
        """Have the coming accept make this."""

    def keep(self, relay: RunningRelay) -> None:
        """As :meth:`NativeDoor.keep`."""

    def reset(self) -> None:
        """As :meth:`NativeDoor.reset`."""


class NativeDoor:
    """What ``scope["extensions"]["watershed_mw"]`` holds: access to the stream, past the ASGI messages.

    The opening handshake still travels through ASGI ``send``; only what follows goes native. Before the accept, a
    middleware plans its outcome with one of :meth:`connect`, :meth:`detach` and :meth:`hand_over`, and finds it there
    afterwards; the last plan holds.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Upgrading) -> None:
        self._protocol = protocol

    def __deepcopy__(self, memo: object) -> NativeDoor:
        """The same door: applications copy scopes, and there is one connection."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: applications pickle scopes, and there is no connection where such a one is read."""
        return type(None), ()

    @property
    def key(self) -> object:
        """What :attr:`options` depend on: a key for a cache of what is made of them."""
        return self._protocol.config

    @property
    def options(self) -> Options:
        """The options that hold where an application gives none: uvicorn's settings, and those of the class."""
        protocol = self._protocol
        return options_under(protocol.config, type(protocol), protocol.options)

    @property
    def connected(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._protocol.connect_received

    def connect(self, settings: Settings) -> Outcome:
        """Have the coming accept make a connection with these settings."""
        return self._plan(Connected(settings))

    def detach(self, settings: Settings) -> Outcome:
        """Have the coming accept hand over the raw stream.

        Raises:
            UnsupportedServerError: it cannot; nothing has been answered.
        """
        self._protocol.transport.check_detachable()
        return self._plan(Detached(settings))

    def hand_over(self, answer: list[tuple[str, str]]) -> Outcome:
        """Have the coming accept send the 101 of another server, and hand over the raw stream for a relay.

        Args:
            answer: the fields of the opening handshake in that 101.

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
        """End the relay that got the raw stream when uvicorn stops, and count it among uvicorn's connections."""
        self._protocol.keep(relay)

    def reset(self) -> None:
        """Drop the connection with a RST, so that the client cannot take a partial answer for a whole one."""
        self._protocol.reset()
