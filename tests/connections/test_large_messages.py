"""Large messages on real streams: no transport keeps the memory of a complete one."""

from __future__ import annotations

import importlib
import random

import pytest

from tests.support.ways import Link
from tests.support.wire_peer import BINARY

MIB = 2**20


class Memory(bytearray):
    """The memory that messages are read into, like a ``bytearray`` of CPython 3.15; records whether a view is left."""

    views_left: list[bool]

    def take_bytes(self) -> bytes:
        data = bytes(self)
        try:
            self.clear()
        except BufferError:
            self.views_left.append(True)
            raise
        self.views_left.append(False)
        return data


def test_no_transport_keeps_the_memory_of_a_complete_message(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("watershed_mw.core.frames.payload_buffer"), "_Memory", Memory)
    monkeypatch.setattr(Memory, "views_left", [], raising=False)
    live, peer = link(setup=lambda conn: conn.on("binary", conn.send))
    live.run()
    for number in range(3):
        payload = random.Random(number).randbytes(3 * MIB)
        peer.send(BINARY, payload)
        peer.expect(BINARY, payload)
    assert Memory.views_left == [False] * 3
