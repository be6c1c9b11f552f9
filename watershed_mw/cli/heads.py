"""Limits on request heads, as uvicorn's parsers limit neither their duration nor their number of fields.

These servers answer only with a 101 or a 426. So the limits are small, and apply to all requests of a connection
together.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

__all__ = ["bounded"]

# Bytes of request heads, as http.parse.MAX_HEAD.
_MAX_BYTES: Final = 64 * 2**10
# Lines per request head. Apache accepts 100 fields, Jetty 200.
_MAX_LINES: Final = 200
# Seconds from the connection to the end of the request head; most clients send it in one packet.
_SECONDS: Final = 10.0

_END: Final = b"\r\n\r\n"


def bounded(http_class: type[Any]) -> type[Any]:
    """Add these limits to an HTTP protocol class of uvicorn, for either parser.

    Args:
        http_class: ``HttpToolsProtocol``, ``H11Protocol``, or a subclass.
    """

    class Bounded(http_class):  # type: ignore[misc]  # uvicorn chooses which of the two
        """A connection before the upgrade."""

        _count = 0
        _lines = 0
        _tail = b""
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._on_timeout)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            # The end of a request head may be split between two reads.
            seen = self._tail + data
            end = seen.find(_END)
            head = len(data) if end < 0 else end + len(_END) - len(self._tail)
            self._count += head
            self._lines += data.count(b"\n", 0, head)
            if self._count > _MAX_BYTES or self._lines > _MAX_LINES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return
            if end >= 0:
                self._lines = 0
            self._tail = b"" if end >= 0 else seen[-len(_END) + 1 :]
            super().data_received(data)
            if self.transport.get_protocol() is not self:
                self._cancel_timer()  # upgraded

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_timer()
            super().connection_lost(exc)

        def _on_timeout(self) -> None:
            self._timer = None
            if self._count:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT)
            else:
                self.transport.abort()  # no request has begun

        def _refuse(self, status: HTTPStatus) -> None:
            self._cancel_timer()
            if self.transport.is_closing():
                return
            head = f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()

        def _cancel_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
