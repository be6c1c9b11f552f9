"""What every party of an interoperability test looks like, ours and others alike: clients, sessions, servers.

Each party wraps one library; the scenarios are written once against these three shapes. All servers echo, and
obey the commands below. Nothing waits longer than `LIMIT` seconds.

A text message that starts with "!" is a command to the server:

    !close CODE REASON   close the connection with that code and reason
    !abort               drop the connection without a closing handshake
    !ping DATA           send a PING, and a text "pong DATA" once its PONG has come back
    !fragments           send the text "one two three" in three fragments

and a request for the path /forbidden... is refused with status 403.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from tests.support import LIMIT

PROTOCOLS = ("echo.watershed", "json")
"""The subprotocols that every server supports."""

Message = str | bytes


class Feature(Enum):
    """A feature that not every library has; scenarios are built only for pairs that have it."""

    ANY_CODE = (
        auto()
    )  # choose and report any close code, not only 1000 (node-watershed knows those of RFC 6455 by name)
    BARE_CLOSE = auto()  # send a CLOSE frame without a code
    FRAGMENTS = auto()  # send a message in several frames
    COMPRESSION = auto()  # permessage-deflate
    PING = auto()  # send a PING of its own choice
    ABORT = auto()  # drop the connection
    REFUSAL = auto()  # a server that checks subprotocols before it accepts, and answers 400


@dataclass(frozen=True)
class Ending:
    """The end of a connection as one side saw it: close code, reason, and whether the peer just vanished."""

    code: int | None
    reason: str
    reset: bool


class Refused(Exception):
    """The server answered the opening handshake with an HTTP error."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"refused with status {status}")
        self.status = status


class Session(Protocol):
    """An open connection, from the client's side."""

    @property
    def protocol(self) -> str | None: ...
    @property
    def compressed(self) -> bool: ...
    def send(self, message: Message) -> None: ...
    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None: ...
    def receive(self) -> Message: ...
    def ping(self, data: bytes) -> bytes:
        """Send a PING and return the payload of the PONG."""

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Start the closing handshake; code None sends a CLOSE frame without a body."""

    def abort(self) -> None: ...
    def ending(self) -> Ending:
        """Wait for the end of the connection."""


class Client(Protocol):
    name: str
    features: frozenset[Feature]

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> Session:
        """Open a connection; raises Refused."""


class Server(Protocol):
    name: str
    features: frozenset[Feature]

    @property
    def url(self) -> str:
        """ws://host:port, without a path."""

    def ending(self, path: str) -> Ending:
        """Wait for the end of the connection that asked for `path`."""


@dataclass
class Endings:
    """The endings that a server has seen, by request path. Safe from any thread."""

    _by_path: defaultdict[str, queue.Queue[Ending]] = field(default_factory=lambda: defaultdict(queue.Queue))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _of(self, path: str) -> queue.Queue[Ending]:
        with self._lock:
            return self._by_path[path]

    def put(self, path: str, ending: Ending) -> None:
        self._of(path).put(ending)

    def get(self, path: str) -> Ending:
        try:
            return self._of(path).get(timeout=LIMIT)
        except queue.Empty:
            raise AssertionError(f"the server saw no end of the connection for {path} within {LIMIT} s") from None


FRAGMENTED = (b"one ", b"two ", b"three")
"""The parts of what a server sends on `!fragments`."""


def parse_close(command: str) -> tuple[int, str]:
    """The code and reason of a `!close` command."""
    _, code, reason = command.split(" ", 2)
    return int(code), reason
