"""core/frames/payload_buffer.py: a message never changes, although transports write into its memory."""

from __future__ import annotations

import ctypes
import gc
import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.builds import START, Build
from tests.support.deliveries import peer_key
from tests.support.memory import measured
from tests.support.wire import BINARY, frame
from watershed_mw.core.limits import Limits
from watershed_mw.core.states import Role

SIZE = 2**20
SERVER_KEY = peer_key(Role.SERVER)


def fill(subject: Any, data: bytes, keep: Callable[[memoryview], object]) -> list[Any]:
    """Let ``subject`` receive all of ``data`` in place, as from a transport; ``keep`` gets each piece of memory."""
    events: list[Any] = []
    while data:
        memory = subject.receiver.get_buffer()
        size = min(len(memory), len(data), 300_000)
        memory[:size] = data[:size]
        keep(memory)
        del memory
        events += subject.receive_in_place(size, START)
        data = data[size:]
    return events


def begun(build: Build, payload: bytes) -> tuple[Any, bytes]:
    """A protocol that has the beginning of a message, and the bytes still to come."""
    subject = build.make(limits=Limits(ping_interval=None, max_message_size=None))
    source = frame(BINARY, payload, key=SERVER_KEY)
    assert subject.receive_data(source[:100_000], START) == []
    return subject, source[100_000:]


def as_another_memoryview(memory: memoryview) -> memoryview:
    return memoryview(memory)


def as_a_slice(memory: memoryview) -> memoryview:
    return memory[10:]


def by_c(memory: memoryview) -> Any:
    return (ctypes.c_char * len(memory)).from_buffer(memory)


def by_its_owner(memory: memoryview) -> memoryview:
    return memoryview(memory.obj)


def by_the_garbage_collector(memory: memoryview) -> list[memoryview]:
    found: list[memoryview] = []
    for each in gc.get_objects():
        if isinstance(each, memoryview):
            with suppress(ValueError):  # it has been released
                if not each.readonly and each.obj is memory.obj:
                    found.append(each)
    return found


KEEPING: list[Callable[[memoryview], Any]] = [
    lambda memory: memory,
    as_another_memoryview,
    as_a_slice,
    by_c,
    by_its_owner,
    by_the_garbage_collector,
]


def overwrite(kept: Any) -> None:
    for each in kept if isinstance(kept, list) else [kept]:
        if isinstance(each, memoryview):
            with suppress(ValueError):  # it has been released: nothing can be written through it
                each[:] = b"!" * len(each)
        else:
            ctypes.memset(ctypes.addressof(each), 33, len(each))


@pytest.mark.parametrize("keep", KEEPING, ids=lambda keep: keep.__name__.strip("<>"))
def test_a_kept_view_cannot_change_the_message(build: Build, keep: Callable[[memoryview], Any]) -> None:
    payload = random.Random(1).randbytes(SIZE)
    subject, rest = begun(build, payload)
    kept: list[Any] = []
    (message,) = fill(subject, rest, lambda memory: kept.append(keep(memory)))
    assert message == payload
    for each in kept:
        overwrite(each)
    assert message == payload


def reachable(*roots: object) -> Iterator[object]:
    """Everything reachable from these for the garbage collector, except modules and types."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) not in seen and not isinstance(each, (type, type(gc))):
            seen.add(id(each))
            yield each
            waiting += gc.get_referents(each)


def test_the_message_cannot_be_reached_before_it_is_complete(build: Build) -> None:
    subject, rest = begun(build, bytes(SIZE))
    memory = subject.receiver.get_buffer()
    assert not isinstance(memory.obj, bytes)
    found = [each for each in reachable(subject, memory, memory.obj) if isinstance(each, bytes) and len(each) > 1000]
    assert found == []
    with pytest.raises((ValueError, TypeError)):
        hash(memory)  # a hash that is kept would be the one of other bytes
    with pytest.raises((ValueError, TypeError)):
        hash(memory.obj) if isinstance(memory.obj, bytearray) else hash(memoryview(memory.obj))
    del memory
    (message,) = fill(subject, rest, lambda memory: None)
    assert hash(message) == hash(bytes(SIZE))


def test_the_memory_cannot_be_taken_or_resized_from_outside(build: Build) -> None:
    payload = random.Random(2).randbytes(SIZE)
    subject, rest = begun(build, payload)
    owner: Any = subject.receiver.get_buffer().obj
    if build.name == "compiled":
        with pytest.raises(BufferError):
            owner.take_bytes()
    assert fill(subject, rest, lambda memory: None) == [payload]


def test_the_message_is_not_copied_if_no_view_remains(build: Build) -> None:
    payload = bytes(SIZE)
    subject, rest = begun(build, payload)
    with measured() as memory:
        events = fill(subject, rest, lambda memory: None)
    assert events == [payload]
    # The bytes that are still to come, cut three times, count as well.
    copies = memory.peak / SIZE - 1.5
    assert copies < {"compiled": 1.0, "interpreted": 3.0}[build.name]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_short_payloads_are_not_written_into_shared_objects(build: Build, size: int) -> None:
    """CPython shares one object for each single byte, and one empty one: nothing is ever written to them."""
    for first in range(256):
        payload = bytes([first]) * size
        source = frame(BINARY, payload, key=SERVER_KEY)
        subject = build.make()
        assert subject.receive_data(source[:6], START) == []
        assert subject.receiver.payload_to_come() == size
        assert fill(subject, source[6:], lambda memory: None) == [payload]
        assert build.mask(payload, 0, size, b"abcd", 0) != payload
        assert build.encode_frame(BINARY, b"", None) == b"\x82\x00"
    assert [bytes([number])[0] for number in range(256)] == list(range(256))
    assert [len(empty) for empty in (b"", bytes(0), bytes(bytearray()))] == [0, 0, 0]


class Memory(bytearray):
    """Stands in for a ``bytearray`` of CPython 3.15; as there, exported memory keeps its size."""

    taken: list[str]

    def take_bytes(self) -> bytes:
        data = bytes(self)
        try:
            self.clear()
        except BufferError:
            self.taken.append("a view is left")
            raise
        self.taken.append("taken")
        return data


@pytest.mark.parametrize(
    "keep", [lambda memory: None, as_another_memoryview], ids=["nothing is kept", "a view is kept"]
)
def test_take_bytes_is_used_if_available(
    build: Build, keep: Callable[[memoryview], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module(build.PayloadBuffer.__module__), "_Memory", Memory)
    monkeypatch.setattr(Memory, "taken", [], raising=False)
    payload = random.Random(3).randbytes(SIZE)
    subject, rest = begun(build, payload)
    kept: list[Any] = []
    (message,) = fill(subject, rest, lambda memory: kept.append(keep(memory)))
    # The interpreted build lends memory that never becomes the message.
    copied = build.name == "compiled" and any(kept)
    assert Memory.taken == ["a view is left" if copied else "taken"]
    for each in filter(None, kept):
        overwrite(each)
    assert (type(message), message) == (bytes, payload)
