"""Every limit and time-out of a connection, in one place, all on by default.

The protocol enforces them before it buffers and while it inflates; the drivers only ask it when to
call again. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import RemoteProtocolError

__all__ = ["INFLATE_ALLOWANCE", "SLOWEST_MESSAGE", "Limits", "inflates_too_much", "too_large", "too_slow"]

SLOWEST_MESSAGE = 512
"""Bytes per second at which a message has to come, once ``message_timeout`` seconds have passed."""

INFLATE_ALLOWANCE = 4096
"""Bytes that each compressed message may inflate to, whatever its size, before ``max_compression_ratio`` counts."""

_OPTIONAL = (
    "max_message_size",
    "max_message_rate",
    "max_memory",
    "message_timeout",
    "max_compression_ratio",
    "ping_interval",
    "ping_timeout",
)
_HINT = f"only {', '.join(_OPTIONAL[:-1])} and {_OPTIONAL[-1]} may be switched off, with None"
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
        message_timeout: seconds after which a message (or a control frame) that has begun to arrive must have come at
            512 bytes per second or faster; default 30. It needs that many seconds and its size divided by 512, at
            most: 62 s for 16 KiB. Time in which this end does not read does not count. Past it the connection is
            failed with 1008. None for messages that may trickle in for ever.
        max_compression_ratio: bytes that one byte of compressed data may inflate to at any speed, averaged over a
            message; default 64, where JSON and logs come to 5 to 50. Each message has 4 KiB besides. What goes beyond
            that is limited by ``max_inflate_rate``. None for no limit of either kind.
        max_inflate_rate: bytes per second, on average, that may be inflated beyond ``max_compression_ratio``; default
            64 MiB. One second's worth or ``max_message_size`` may come at once, the larger of the two: a message of
            zeros is fine, one after the other is not. Past it the connection is failed with 1008.
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
        max_memory: bytes that all connections of the process may hold together of messages that are arriving, received
            and not taken, or unsent; a number below 1 is a share of the memory that the process may have (its control
            group's limit, else the machine's). Default 0.25. At three quarters of it, reading pauses for those that
            hold most; past it they end, with 1009 for a message that was arriving and 1013 for the rest. Where
            connections differ in it, the lowest of those that hold something counts for all. None leaves a connection
            out of the account.
        max_unsent_bytes: bytes sent and not taken by the peer, above which an asyncio connection
            whose application does not wait for ``send`` is given up; default 64 MiB.
    """

    max_message_size: int | None = 16 * 2**20
    max_fragments: int = 131072
    max_message_rate: float | None = None
    message_timeout: float | None = 30.0
    max_compression_ratio: float | None = 64.0
    max_inflate_rate: float = 64 * 2.0**20
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    close_timeout: float = 10.0
    reply_timeout: float = 1.0
    max_queued_messages: int = 32
    max_queued_bytes: int = 256 * 2**10
    max_memory: float | None = 0.25
    max_unsent_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name in _OPTIONAL:
                continue
            if item.name == "max_memory" and isinstance(value, float) and 0 < value < 1:
                continue
            kind, most = "a whole number", _MOST
            if item.name.endswith(("_timeout", "_interval")):
                kind, most = "a number of seconds", _MOST_SECONDS
            elif item.name.endswith("_rate"):
                kind = "a number per second"
            elif item.name.endswith("_ratio"):
                kind = "a number"
            # bool is an int to Python, never to a reader of max_message_size=True.
            fits = isinstance(value, int if kind == "a whole number" else (int, float)) and not isinstance(value, bool)
            if not fits or not 0 < value <= most:
                if item.name == "max_memory":
                    kind = "a share of the memory below 1, or a whole number"
                raise ValueError(f"expected {item.name} as {kind} above 0, got {value!r}: {_HINT}")


def too_large(limit: int, got: int) -> RemoteProtocolError:
    """The error that fails a connection whose peer sends a larger message than ``max_message_size`` allows."""
    return RemoteProtocolError(
        f"expected a message of at most {limit} bytes (max_message_size), got {got} or more", close_code=1009
    )


def too_slow(timeout: float, seconds: float, size: int) -> RemoteProtocolError:
    """The error that fails a connection whose peer sends a message more slowly than ``message_timeout`` allows."""
    return RemoteProtocolError(
        f"expected a message to arrive at {SLOWEST_MESSAGE} bytes a second or faster after {timeout:g} seconds "
        f"(message_timeout), got {size} bytes of it in {seconds:.0f} seconds",
        close_code=1008,
    )


def inflates_too_much(ratio: float, rate: float) -> RemoteProtocolError:
    """The error that fails a connection whose peer's messages inflate to more than the two limits on it allow."""
    return RemoteProtocolError(
        f"expected compressed data to inflate to at most {ratio:g} times its size (max_compression_ratio) and {rate:g} "
        "bytes a second beyond that (max_inflate_rate), got more",
        close_code=1008,
    )
