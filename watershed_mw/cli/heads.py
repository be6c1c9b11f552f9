"""Bounds on what a client may send before it has a WebSocket: uvicorn's parsers have none for time and fields.

These servers have nothing to say but the 101 and a 426, so that the bounds are those of one connection's requests
together, and small.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

__all__ = ["bounded"]

# What every door takes for one head (requests.MAX_HEAD).
_MAX_BYTES: Final = 64 * 2**10
# Lines of one head. Apache takes 100 fields, Jetty 200.
_MAX_LINES: Final = 200
# Seconds from the connection to the end of its head, which uvicorn does not bound; most clients need one packet.
_SECONDS: Final = 10.0

_END: Final = b"\r\n\r\n"


def bounded(http_class: type[Any]) -> type[Any]:
    """An HTTP protocol of uvicorn's, of whichever parser, with these bounds.

    Args:
        http_class: ``HttpToolsProtocol``, ``H11Protocol``, or one of their kind.
    """

    class Bounded(http_class):  # type: ignore[misc]  # which of the two is uvicorn's choice
        """A connection until it is a WebSocket."""

        _count = 0
        _lines = 0
        _tail = b""
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._too_late)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            # An end of a head may come in two pieces.
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
                self._forget()  # a WebSocket from now on

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _too_late(self) -> None:
            self._timer = None
            if self._count:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT)
            else:
                self.transport.abort()  # nobody has asked for anything

        def _refuse(self, status: HTTPStatus) -> None:
            self._forget()
            if self.transport.is_closing():
                return
            head = f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
