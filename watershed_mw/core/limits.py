"""Every limit and time-out of a connection, in one place, all on by default.

The protocol enforces them before it buffers and while it inflates; the shells only ask it when to
call again. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import RemoteProtocolError

__all__ = ["Limits", "too_large"]

_MAY_BE_NONE = frozenset({"max_message_size", "max_message_rate", "ping_interval", "ping_timeout"})
_HINT = "only max_message_size, max_message_rate, ping_interval and ping_timeout may be switched off, with None"
# Nothing larger fits a frame (RFC 6455 section 5.2), nor an event loop's timer.
_MOST = 2**63 - 1
_MOST_SECONDS = 10**9


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; None switches off those that say so.

    Args:
        max_message_size: largest message accepted, in bytes after inflating; default 16 MiB
            (uvicorn's default); None for no limit.
        max_fragments: most frames that one message may come in, empty ones included; default
            131,072 (node ws has the same, and it lets a 4 MiB message come in 64-byte frames).
        max_message_rate: messages, PINGs and PONGs per second that the peer may send, on average; one
            second's worth may come at once. Past it the connection is failed with 1008. Default None,
            as any number would break somebody's honest peer, and memory is bounded without it: a
            peer that is faster than the application has to wait (max_queued_messages).
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
    max_message_rate: float | None = None
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    close_timeout: float = 10.0
    reply_timeout: float = 1.0
    max_queued_messages: int = 32
    max_queued_bytes: int = 256 * 2**10
    max_unsent_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name in _MAY_BE_NONE:
                continue
            kind, most = "a whole number", _MOST
            if item.name.endswith(("_timeout", "_interval")):
                kind, most = "a number of seconds", _MOST_SECONDS
            elif item.name.endswith("_rate"):
                kind = "a number per second"
            # bool is an int to Python, never to a reader of max_message_size=True.
            fits = isinstance(value, int if kind == "a whole number" else (int, float)) and not isinstance(value, bool)
            if not fits or not 0 < value <= most:
                raise ValueError(f"expected {item.name} as {kind} above 0, got {value!r}: {_HINT}")


def too_large(limit: int, got: int) -> RemoteProtocolError:
    """The error that fails a connection whose peer sends a larger message than ``max_message_size`` allows."""
    return RemoteProtocolError(
        f"expected a message of at most {limit} bytes (max_message_size), got {got} or more", close_code=1009
    )
