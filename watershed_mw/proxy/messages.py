"""Relaying messages, where the server in front has no raw socket to give: close codes, reasons and PINGs included."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from ..connection.aio.api import AsyncConnection
from ..core.codes import CloseCode
from ..errors import ConnectionClosed, UnsupportedServerError

__all__ = ["relay_messages"]

# What no Close frame may carry (RFC 6455 section 7.4.1), as the other side can be told of it.
_CLIENT_GONE: Final = {int(CloseCode.ABNORMAL): 1001, int(CloseCode.TLS_HANDSHAKE): 1001}
_UPSTREAM_GONE: Final = {int(CloseCode.ABNORMAL): 1014, int(CloseCode.TLS_HANDSHAKE): 1014}


class _Limits:
    """How long, how silent and how much: told of each message, asked when the next of them is due."""

    def __init__(self, idle_timeout: float | None, max_duration: float | None, max_bytes: int | None) -> None:
        self._idle_timeout = idle_timeout
        self._left = max_bytes
        now = time.monotonic()
        self._until = None if max_duration is None else now + max_duration
        self._active = now

    def passed(self, size: int) -> bool:
        """Note a message; False when it was one too many."""
        self._active = time.monotonic()
        if self._left is None:
            return True
        self._left -= size
        return self._left >= 0

    def due(self) -> float | None:
        """Seconds until time is up, at most 0 when it is; None for never."""
        ends = [self._until] if self._until is not None else []
        if self._idle_timeout is not None:
            ends.append(self._active + self._idle_timeout)
        return min(ends) - time.monotonic() if ends else None


async def relay_messages(
    client: AsyncConnection,
    upstream: AsyncConnection,
    *,
    idle_timeout: float | None,
    close_timeout: float,
    max_duration: float | None,
    max_bytes: int | None,
) -> None:
    """Relay messages both ways until both connections have ended.

    Args:
        client: the connection to the client.
        upstream: the one to the upstream.
        idle_timeout: seconds without a message after which both end with 1001; None for no limit.
        close_timeout: seconds that the two closing handshakes have together once time is up.
        max_duration: seconds in all; None for no limit.
        max_bytes: bytes of messages both ways; None for no limit.
    """
    limits = _Limits(idle_timeout, max_duration, max_bytes)
    for one, other in ((client, upstream), (upstream, client)):
        _Pings(one, other)
    ways = [
        asyncio.ensure_future(_pass_messages(client, upstream, limits, _CLIENT_GONE)),
        asyncio.ensure_future(_pass_messages(upstream, client, limits, _UPSTREAM_GONE)),
    ]
    try:
        pending = set(ways)
        while pending:
            due = limits.due()
            if due is not None and due <= 0:
                for connection in (client, upstream):
                    _end(connection, CloseCode.GOING_AWAY, "the proxy's time is up")
                await asyncio.wait(pending, timeout=close_timeout)
                return
            _, pending = await asyncio.wait(pending, timeout=due)
    finally:
        for way in ways:
            way.cancel()
        for connection in (client, upstream):
            if not connection.closed:
                _end(connection, CloseCode.GOING_AWAY, "")


class _Pings:
    """A PING of ``one`` is answered here, and passed on where both sides can: it shows that the whole way is alive.

    The next one waits for an answer to that, and only the latest waits (RFC 6455 section 5.5.3 lets peers do the same):
    nothing piles up for who does not read.
    """

    def __init__(self, one: AsyncConnection, other: AsyncConnection) -> None:
        self._other = other
        self._unanswered = False
        self._latest: bytes | None = None
        with contextlib.suppress(UnsupportedServerError):
            other.on("pong", self._pong)
            one.on("ping", self._ping)

    def _ping(self, payload: bytes) -> None:
        if self._unanswered:
            self._latest = payload
            return
        self._unanswered = True
        with contextlib.suppress(ConnectionClosed, UnsupportedServerError):
            self._other.ping(payload)

    def _pong(self, _: bytes) -> None:
        self._unanswered = False
        if self._latest is not None:
            payload, self._latest = self._latest, None
            self._ping(payload)


async def _pass_messages(one: AsyncConnection, other: AsyncConnection, limits: _Limits, gone: dict[int, int]) -> None:
    try:
        while True:
            message = await one.receive()
            if not limits.passed(len(message) if isinstance(message, bytes) else len(message.encode())):
                for connection in (one, other):
                    _end(connection, CloseCode.POLICY_VIOLATION, "too much for this proxy")
                return
            await other.send(message)
    except ConnectionClosed:
        code = one.close_code
        if code is not None:  # else it is the other one, whose end is passed on from there
            _end(other, gone.get(code, code), "" if code in gone else one.close_reason or "")
            await other.wait_closed()


def _end(connection: AsyncConnection, code: int, reason: str) -> None:
    try:
        connection.start_close(reason, code=code)
    except UnsupportedServerError:
        connection.start_close(reason)  # a server that sends few codes
