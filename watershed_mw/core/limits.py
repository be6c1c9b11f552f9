"""Every limit and time-out of a connection, in one place, all on by default.

The protocol enforces them before it buffers and while it inflates; the shells only ask it when to
call again. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; None switches off those that say so.

    Args:
        max_message_size: largest message accepted, in bytes after inflating; default 16 MiB
            (uvicorn's default); None for no limit.
        max_fragments: most frames that one message may come in, empty ones included; default
            131,072 (node ws has the same, and it lets a 4 MiB message come in 64-byte frames).
        ping_interval: seconds between keepalive PINGs; default 20, under the 60 seconds after
            which nginx drops a silent connection; None for no keepalive.
        ping_timeout: seconds without any byte from the peer, after such a PING, until the
            connection is given up; default 20; None to never give up.
        close_timeout: seconds to wait for the peer's Close, and for the end of the TCP stream;
            default 10.
        reply_timeout: seconds that the application has, once the peer's Close or a violation
            has come, to reply to the messages before it; default 1.
        max_queued_messages: messages received and not yet taken by the application, above which
            reading pauses; default 32.
        max_queued_bytes: the same in bytes of payload; default 256 KiB. One message may exceed it.
        max_unsent_bytes: bytes sent and not taken by the peer, above which an asyncio connection
            whose application does not wait for ``send`` is given up; default 64 MiB.
    """

    max_message_size: int | None = 16 * 2**20
    max_fragments: int = 131072
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    close_timeout: float = 10.0
    reply_timeout: float = 1.0
    max_queued_messages: int = 32
    max_queued_bytes: int = 256 * 2**10
    max_unsent_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name, value in self._values():
            if value is None and name in ("max_message_size", "ping_interval", "ping_timeout"):
                continue
            # bool is an int to Python, never to a reader of max_message_size=True.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ValueError(f"expected {name} to be a number above 0, got {value!r}")

    def _values(self) -> Iterator[tuple[str, object]]:
        return ((item.name, getattr(self, item.name)) for item in fields(self))
