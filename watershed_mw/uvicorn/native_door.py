"""What our uvicorn class offers to a middleware: the way past the ASGI messages, to the connection itself."""

from __future__ import annotations

from typing import Any, Protocol

from ..connection.adopt import AsyncioTransport
from ..options import Options, Settings

__all__ = ["NativeDoor", "RunningRelay"]


class RunningRelay(Protocol):
    """What goes on with the raw socket, as far as the shutdown is concerned."""

    close_timeout: float
    shutdown_code: int | None

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """End it with a Close to both sides."""


class Upgrading(Protocol):
    """What a door needs of the protocol behind it."""

    config: Any
    settings: Settings
    detached: bool
    answer: list[tuple[str, str]] | None
    told_connect: bool
    result: Any

    @property
    def way(self) -> AsyncioTransport:
        """The transport."""

    def own_options(self) -> Options:
        """Uvicorn's settings, and the options of the class."""

    def keep(self, relay: RunningRelay) -> None:
        """As :meth:`NativeDoor.keep`."""

    def reset(self) -> None:
        """As :meth:`NativeDoor.reset`."""


class NativeDoor:
    """What ``scope["extensions"]["watershed_mw"]`` holds: the way around the ASGI messages.

    The opening handshake still travels through ASGI ``send``; only what follows goes native.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Upgrading) -> None:
        self._protocol = protocol

    def __deepcopy__(self, memo: object) -> NativeDoor:
        """The same way: applications copy scopes, and there is one connection."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: applications pickle scopes, and there is no connection where such a one is read."""
        return type(None), ()

    @property
    def key(self) -> object:
        """What :attr:`options` depend on, to remember by what was made of them."""
        return self._protocol.config

    @property
    def options(self) -> Options:
        """The options that hold where an application gives none: uvicorn's settings, and those of the class."""
        return self._protocol.own_options()

    def use(self, settings: Settings) -> None:
        """Take these settings for the coming accept."""
        self._protocol.settings = settings

    def detach(self, answer: list[tuple[str, str]] | None = None) -> None:
        """Make the coming accept hand over the raw socket.

        Args:
            answer: fields of the 101 that another server has given, instead of what would be negotiated here.

        Raises:
            UnsupportedServerError: it cannot; nothing has been answered.
        """
        self._protocol.way.check_detachable()
        self._protocol.detached = True
        self._protocol.answer = answer

    def keep(self, relay: RunningRelay) -> None:
        """Have a relay, which got the socket, told of the shutdown, and counted among uvicorn's connections."""
        self._protocol.keep(relay)

    def reset(self) -> None:
        """Drop the connection, so that the client cannot take what it has got for the whole of an answer."""
        self._protocol.reset()

    @property
    def connected(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._protocol.told_connect

    @property
    def result(self) -> Any:
        """The connection, or what is raw here, once ``websocket.accept`` has been sent; None before."""
        return self._protocol.result
