"""Relays messages, close codes, reasons and PINGs where the server in front does not hand over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from ..connection.aio.api import AsyncConnection
from ..core.codes import CloseCode
from ..errors import ConnectionClosed, UnsupportedServerError

__all__ = ["relay_messages"]

# Codes that no Close frame may carry (RFC 6455 section 7.4.1), and what the other side gets instead.
_CLIENT_GONE: Final = {int(CloseCode.ABNORMAL): 1001, int(CloseCode.TLS_HANDSHAKE): 1001}
_UPSTREAM_GONE: Final = {int(CloseCode.ABNORMAL): 1014, int(CloseCode.TLS_HANDSHAKE): 1014}


class _Limits:
    """The limits on duration, idle time and bytes, updated with each message."""

    def __init__(self, idle_timeout: float | None, max_duration: float | None, max_bytes: int | None) -> None:
        self._idle_timeout = idle_timeout
        self._remaining = max_bytes
        now = time.monotonic()
        self._until = None if max_duration is None else now + max_duration
        self._active = now

    def passed(self, size: int) -> bool:
        """Count a message of ``size`` bytes; False if it exceeds the limit."""
        self._active = time.monotonic()
        if self._remaining is None:
            return True
        self._remaining -= size
        return self._remaining >= 0

    def due(self) -> float | None:
        """Seconds until the next deadline, 0 or less once it has passed; None without a deadline."""
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
    """Relay messages in both directions until both connections have closed.

    Args:
        client: the connection to the client.
        upstream: the connection to the upstream.
        idle_timeout: seconds without a message after which both close with 1001; None for no limit.
        close_timeout: seconds for the two closing handshakes together after such a deadline.
        max_duration: seconds in total; None for no limit.
        max_bytes: bytes of messages in both directions together; None for no limit.
    """
    limits = _Limits(idle_timeout, max_duration, max_bytes)
    for one, other in ((client, upstream), (upstream, client)):
        _Pings(one, other)
    directions = [
        asyncio.ensure_future(_pass_messages(client, upstream, limits, _CLIENT_GONE)),
        asyncio.ensure_future(_pass_messages(upstream, client, limits, _UPSTREAM_GONE)),
    ]
    try:
        pending = set(directions)
        while pending:
            due = limits.due()
            if due is not None and due <= 0:
                for connection in (client, upstream):
                    _end(connection, CloseCode.GOING_AWAY, "time limit reached")
                await asyncio.wait(pending, timeout=close_timeout)
                return
            _, pending = await asyncio.wait(pending, timeout=due)
    finally:
        for direction in directions:
            direction.cancel()
        for connection in (client, upstream):
            if not connection.closed:
                _end(connection, CloseCode.GOING_AWAY, "")


class _Pings:
    """Forwards PINGs that arrive from ``one``, which ``one`` also answers itself, if both sides support PINGs.

    At most one PING is unanswered, and only the latest one waits behind it (allowed by RFC 6455 section 5.5.3), so
    PINGs do not pile up for a peer that does not read.
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
                    _end(connection, CloseCode.POLICY_VIOLATION, "byte limit reached")
                return
            await other.send(message)
    except ConnectionClosed:
        code = one.close_code
        if code is not None:  # otherwise the other connection closed, and the opposite direction forwards its code
            _end(other, gone.get(code, code), "" if code in gone else one.close_reason or "")
            await other.wait_closed()


def _end(connection: AsyncConnection, code: int, reason: str) -> None:
    try:
        connection.start_close(reason, code=code)
    except UnsupportedServerError:
        connection.start_close(reason)  # not every server can send this code
