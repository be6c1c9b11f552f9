"""The limit: the cost of asyncio without any WebSocket, when bytes are only counted.

Only the first frame of a connection is parsed. From then on each chunk is answered with one prepared echo for every
frame that it completes: nothing is parsed, unmasked or encoded.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from functools import cache
from typing import cast

from .serving import BACKLOG, Place, serve

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# More than any event loop reads at once.
CHUNK = 2**19


def answer(head: bytes) -> bytes:
    """The 101 for a request."""
    fields = [line.partition(b":") for line in head.split(b"\r\n")]
    key = next(value.strip() for name, _, value in fields if name.lower() == b"sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def frame_size(data: bytes) -> int:
    """The length of a client's frame, header included, from its first bytes; 0 if they are too few."""
    if len(data) < 10:
        return 0
    length = data[1] & 0x7F
    extra = {126: 2, 127: 8}.get(length, 0)
    return 2 + extra + 4 + (int.from_bytes(data[2 : 2 + extra]) if extra else length)


@cache
def echoes(frame: bytes) -> memoryview:
    """The echo of a client's frame, repeated as often as one chunk can require; connections share it."""
    extra = {126: 2, 127: 8}.get(frame[1] & 0x7F, 0)
    head, mask, payload = frame[: 2 + extra], frame[2 + extra : 6 + extra], frame[6 + extra :]
    echo = bytes([head[0], head[1] & 0x7F]) + head[2:]
    echo += bytes(a ^ b for a, b in zip(payload, itertools.cycle(mask), strict=False))
    return memoryview(echo * (CHUNK // len(echo) + 2))


class Raw(asyncio.Protocol):
    """Answers the upgrade, then counts."""

    def __init__(self) -> None:
        self._head = b""
        self._upgraded = False
        self._have = 0
        self._frame = 0
        self._echo = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._frame:
            data = self._first(data)
            if not self._frame:
                return
        count, self._have = divmod(self._have + len(data), self._frame)
        if count:
            self._transport.write(self._echoes[: count * self._echo])

    def _first(self, data: bytes) -> bytes:
        """Collect the request and the first frame; return the data from that frame on, once it is complete."""
        self._head += data
        if not self._upgraded:
            request, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return b""
            self._transport.write(answer(request))
            self._upgraded, self._head = True, rest
        size = frame_size(self._head)
        if not 0 < size <= len(self._head):
            return b""
        data, self._head = self._head, b""
        self._frame, self._echo = size, size - 4
        self._echoes = echoes(data[:size])
        return data


async def server(place: Place) -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Raw, "127.0.0.1", place.port, ssl=place.tls, backlog=BACKLOG)
    await listening.serve_forever()


if __name__ == "__main__":
    serve(server)
