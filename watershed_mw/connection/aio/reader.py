"""Much on its way from the socket to where it stays.

An event loop makes an object of every chunk that it has read, of which the messages are copied once more. While much
comes, it reads into memory of ours instead: into a large message's own, and else into what all connections of a loop
share, from where each message is copied once.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ...runtime.loop_local import LoopLocal

__all__ = ["BufferedReader", "Target", "scratch_of"]

# As much as asyncio and uvloop read at a time; it stays in the processor's cache, and with its first bytes there a
# message of 1 MiB gets its memory in one piece.
_SCRATCH = 256 * 2**10

scratch_of = LoopLocal(lambda: memoryview(bytearray(_SCRATCH))).of
"""Memory that is the loop's own between ``get_buffer`` and ``buffer_updated``, which nothing comes between."""


class Target(Protocol):
    """What bytes are read into, and hears of everything else: an ``asyncio.Protocol`` that could be a buffered one."""

    def next_buffer(self, sizehint: int) -> memoryview:
        """Memory for the next bytes."""

    def buffer_filled(self, nbytes: int) -> None:
        """So many bytes have come."""

    def data_received(self, data: bytes) -> None:
        """Bytes have come in an object of their own, from a transport that does no other way."""

    def eof_received(self) -> bool:
        """As ``asyncio.Protocol``."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As ``asyncio.Protocol``."""

    def pause_writing(self) -> None:
        """As ``asyncio.Protocol``."""

    def resume_writing(self) -> None:
        """As ``asyncio.Protocol``."""


class BufferedReader(asyncio.BufferedProtocol):
    """Stands in for its target at the transport: its methods are the target's own, with no call in between."""

    __slots__ = (
        "buffer_updated",
        "connection_lost",
        "data_received",
        "eof_received",
        "get_buffer",
        "pause_writing",
        "resume_writing",
    )

    def __init__(self, target: Target) -> None:
        self.get_buffer = target.next_buffer  # type: ignore[method-assign]
        self.buffer_updated = target.buffer_filled  # type: ignore[method-assign]
        self.data_received = target.data_received
        self.eof_received = target.eof_received  # type: ignore[method-assign]
        self.connection_lost = target.connection_lost  # type: ignore[method-assign]
        self.pause_writing = target.pause_writing  # type: ignore[method-assign]
        self.resume_writing = target.resume_writing  # type: ignore[method-assign]
