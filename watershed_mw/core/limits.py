"""Every limit and timeout of a connection; nearly all are on by default.

The protocol enforces them before buffering and during decompression; the drivers call it when a deadline is due. Sizes
are in bytes, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import RemoteProtocolError

__all__ = ["INFLATE_ALLOWANCE", "SLOWEST_MESSAGE", "Limits", "inflates_too_much", "too_large", "too_slow"]

SLOWEST_MESSAGE = 512
"""Bytes per second at which a message must arrive once ``message_timeout`` seconds have passed."""

INFLATE_ALLOWANCE = 4096
"""Bytes that any compressed message may inflate to, whatever its ratio (``max_compression_ratio``)."""

_OPTIONAL = (
    "max_message_size",
    "max_message_rate",
    "max_memory",
    "message_timeout",
    "max_compression_ratio",
    "ping_interval",
    "ping_timeout",
)
_HINT = f"only {', '.join(_OPTIONAL[:-1])} and {_OPTIONAL[-1]} may be None"
# The maximum of a frame (RFC 6455 section 5.2), and of an event loop's timer.
_MOST = 2**63 - 1
_MOST_SECONDS = 10**9


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; None disables a limit where the list says so.

    Args:
        max_message_size: largest message accepted, in bytes after decompression; default 16 MiB (uvicorn's default);
            None for no limit.
        max_fragments: maximum number of frames of a message, empty ones included; default 131,072 (as node ws), which
            allows a 4 MiB message in 64-byte frames.
        max_message_rate: messages, PINGs and PONGs per second that the peer may send on average, with bursts of one
            second's worth. When exceeded, the connection is failed with 1008. Default None: no number suits every
            application, and memory is bounded without it, as a peer that is faster than the application is throttled
            (``max_queued_messages``).
        message_timeout: seconds after which an incomplete message or control frame must have arrived at 512 bytes per
            second or faster; default 30. A message of 16 KiB may thus take 62 s. Time in which this end does not read
            does not count. When exceeded, the connection is failed with 1008. None for no limit.
        max_compression_ratio: bytes that a compressed byte may inflate to at any speed, averaged over a message;
            default 64 (JSON and logs have 5 to 50). The first 4 KiB of each message are free. ``max_inflate_rate``
            limits what exceeds it. None for no limit of either kind.
        max_inflate_rate: bytes per second, on average, that may be inflated beyond ``max_compression_ratio``; default
            64 MiB. Bursts of one second's worth, or of ``max_message_size`` if that is larger, are allowed: a message
            of zeros is accepted, a stream of them is not. When exceeded, the connection is failed with 1008.
        ping_interval: seconds between keepalive PINGs; default 20, below the 60 seconds after which nginx drops an idle
            connection; None for no keepalive.
        ping_timeout: seconds without a byte from the peer, after such a PING, until the connection is dropped; default
            20; None for no limit.
        close_timeout: seconds to wait for the peer's Close, and for the end of the TCP stream; default 10.
        reply_timeout: seconds that the application has, after the peer's Close or a violation, to reply to earlier
            messages; default 1.
        max_queued_messages: number of messages received but not taken by the application above which reading pauses;
            default 32.
        max_queued_bytes: the same in bytes of payload; default 256 KiB. A single message may exceed it.
        max_memory: bytes that all connections of the process together may hold in messages that are incomplete, not
            taken, or unsent; a number below 1 is a share of the memory available to the process (the limit of its
            control group, else the machine's). Default 0.25. At three quarters of it, reading pauses on the connections
            that hold the most; above it they are closed, with 1009 for an incomplete message and 1013 otherwise. If
            connections have different values, the lowest among those that hold something applies. None excludes a
            connection.
        max_unsent_bytes: unsent bytes above which an asyncio connection is dropped whose application does not await
            ``send``; default 64 MiB.
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
            # bool is a subclass of int, but max_message_size=True is a mistake.
            fits = isinstance(value, int if kind == "a whole number" else (int, float)) and not isinstance(value, bool)
            if not fits or not 0 < value <= most:
                if item.name == "max_memory":
                    kind = "a share of the memory below 1, or a whole number"
                raise ValueError(f"expected {item.name} as {kind} above 0, got {value!r}: {_HINT}")


def too_large(limit: int, got: int) -> RemoteProtocolError:
    """The error for a message that exceeds ``max_message_size``."""
    return RemoteProtocolError(
        f"message too large: at most {limit} bytes (max_message_size), got {got} or more", close_code=1009
    )


def too_slow(timeout: float, seconds: float, size: int) -> RemoteProtocolError:
    """The error for a message that arrives more slowly than ``message_timeout`` allows."""
    return RemoteProtocolError(
        f"message too slow: at least {SLOWEST_MESSAGE} bytes per second after {timeout:g} seconds (message_timeout), "
        f"got {size} bytes in {seconds:.0f} seconds",
        close_code=1008,
    )


def inflates_too_much(ratio: float, rate: float) -> RemoteProtocolError:
    """The error for messages that exceed ``max_compression_ratio`` and ``max_inflate_rate``."""
    return RemoteProtocolError(
        f"compressed data inflates to more than {ratio:g} times its size (max_compression_ratio) plus {rate:g} bytes "
        "per second (max_inflate_rate)",
        close_code=1008,
    )
