"""An HTTP response instead of the 101, under uvicorn: complete or streamed, by the application or by this package.

The connection closes after it. The client has a bounded time to read it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, MutableMapping
from enum import Enum
from typing import Any

from ..core.handshake.headers import check_outgoing
from ..errors import ConnectionClosed, HandshakeError
from ..http.write import write_refusal, write_response
from ..runtime.timers import timers_of

__all__ = ["Denial", "strings"]


def strings(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """ASGI header fields as text."""
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]


class _Stage(Enum):
    STATUS = "nothing has been written"
    BODY = "the head has been written, and perhaps part of the body"
    COMPLETE = "everything has been written, or the client has disconnected"


class Denial:
    """The HTTP response to a request that is not accepted.

    Args:
        transport: the client's.
        loop: the transport's event loop.
        default_headers: header fields that uvicorn adds to every response.
        timeout: seconds for the client to read the response.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        default_headers: list[tuple[bytes, bytes]],
        timeout: float,
    ) -> None:
        self._stage = _Stage.STATUS
        self._transport = transport
        self._loop = loop
        self._default_headers = default_headers
        self._timeout = timeout
        self._abort_at: float | None = None
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._drained: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether everything has been written, or the client has disconnected."""
        return self._stage is _Stage.COMPLETE

    def start(self, message: MutableMapping[str, Any]) -> int:
        """Handle ``websocket.http.response.start``, and return its status; nothing is written before the body.

        Raises:
            RuntimeError: the status is invalid.
            ValueError: a header field is invalid.
        """
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status < 600:
            raise RuntimeError(f"expected an HTTP status from 200 to 599, got {status!r}")
        headers = strings(message.get("headers") or ())
        check_outgoing(headers)
        self._status, self._headers = status, headers
        return status

    async def body(self, kind: str, message: MutableMapping[str, Any]) -> None:
        """Handle ``websocket.http.response.body``, and wait while the client does not read.

        Raises:
            RuntimeError: the message is of another type.
            ConnectionClosed: the client has disconnected.
        """
        if kind != "websocket.http.response.body":
            raise RuntimeError(f"expected ASGI message 'websocket.http.response.body', got {kind!r}")
        if self.complete or self._transport.is_closing():
            raise ConnectionClosed(1006, "the client disconnected before the end of the response")
        body, more = bytes(message.get("body") or b""), message.get("more_body", False)
        bodiless = self._status in (204, 304)
        if self._stage is _Stage.STATUS:
            self._stage = _Stage.BODY
            if more and not bodiless:
                # Its length is unknown: the end of the stream ends the body (RFC 9112 section 6.3).
                headers = [*strings(self._default_headers), *self._headers]
                fields = [pair for pair in headers if pair[0].lower() not in ("connection", "transfer-encoding")]
                self._transport.write(write_response(self._status, [*fields, ("connection", "close")]) + body)
            else:
                self._write_whole(body)
        elif not bodiless:
            self._transport.write(body)
        if not more:
            self.close()
        elif self._drained is not None:
            await asyncio.shield(self._drained)

    def refuse(self, error: HandshakeError, method: str = "GET") -> None:
        """Respond with the status, header fields and body of ``error`` to a request with this method."""
        if not self._transport.is_closing():
            self._transport.write(write_refusal(error, method))
        self.close()

    def abandon(self, error: HandshakeError | None) -> None:
        """Finish a response that the application has left incomplete.

        If nothing has been written, the client gets the announced status without a body, or ``error``.
        """
        if self._stage is not _Stage.STATUS:
            self.close()
        elif error is not None:
            self.refuse(error)
        else:
            self._write_whole(b"")
            self.close()

    def _write_whole(self, body: bytes) -> None:
        if not self._transport.is_closing():
            headers = [*strings(self._default_headers), *self._headers]
            self._transport.write(write_response(self._status, headers, body))

    def close(self) -> None:
        """Close once the client has read everything, or its time is up."""
        self._stage = _Stage.COMPLETE
        self._transport.close()
        if self._abort_at is None:
            due = time.monotonic() + self._timeout
            self._abort_at = timers_of(self._loop).set(due, _abort, self._transport)

    def stop_waiting(self) -> None:
        """Finish now, as uvicorn is stopping: a client that does not read its response must not delay that."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        elif not self.complete:
            self.abandon(HandshakeError("the server is shutting down: try again", status=503))

    # --- called for the transport ------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client reads more slowly than the application writes."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up or disconnected."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def connection_lost(self) -> None:
        """The transport is gone."""
        self._stage = _Stage.COMPLETE
        if self._abort_at is not None:
            timers_of(self._loop).cancel(self._abort_at, self._transport)
        self.resume_writing()


def _abort(transport: asyncio.Transport) -> None:
    transport.abort()
