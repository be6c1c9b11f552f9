"""A large payload on its way from the socket to where it stays.

An event loop makes an object of every chunk that it has read, which then is copied to where the message is put
together. While much of a message is to come, its own memory is what the loop reads into.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Filling", "Target"]


class Target(Protocol):
    """What is filled, and hears of everything else."""

    def space(self) -> memoryview:
        """Memory for the next bytes."""

    def filled(self, size: int) -> None:
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


class Filling(asyncio.BufferedProtocol):
    """Stands in for its target at the transport."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.data_received = target.data_received

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes are to go."""
        return self._target.space()

    def buffer_updated(self, nbytes: int) -> None:
        """They have come."""
        self._target.filled(nbytes)

    def eof_received(self) -> bool:
        """The peer has ended its direction of the stream."""
        return self._target.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._target.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._target.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._target.resume_writing()
