"""Decisions from bytes: targets draw their values from here.

Every value is taken from the front of the input, and an exhausted input gives the smallest possible value. So an input
means the same to every driver and on every build, with or without libFuzzer, and a shorter input is a simpler one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Source", "mutated"]

T = TypeVar("T")

_DECODERS = (
    ("ascii", "ignore"),
    ("utf-8", "replace"),
    ("latin-1", "strict"),
    ("utf-16-le", "surrogatepass"),  # lone surrogates, which no encoder takes
)


class Source:
    """One input of a fuzzer, consumed value by value."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining(self) -> int:
        """The bytes that have not been consumed."""
        return len(self._data) - self._position

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, inclusive."""
        span = high - low
        size = (span.bit_length() + 7) // 8
        return low + int.from_bytes(self._take(size), "big") % (span + 1)

    def boolean(self) -> bool:
        """True or False."""
        return self.integer(0, 1) == 1

    def rarely(self) -> bool:
        """True for one byte in sixteen."""
        return self.integer(0, 15) == 15

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices; the first if the input is exhausted."""
        return choices[self.integer(0, len(choices) - 1)]

    def data(self, most: int) -> bytes:
        """At most this many bytes."""
        return self._take(self.integer(0, most))

    def text(self, most: int) -> str:
        """At most this many characters of any kind, including lone surrogates."""
        encoding, errors = self.pick(_DECODERS)
        width = 2 if encoding.startswith("utf-16") else 1
        data = self.data(most * width)
        return data[: len(data) - len(data) % width].decode(encoding, errors)

    def rest(self) -> bytes:
        """The rest of the input."""
        return self._take(self.remaining)

    def _take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        self._position += len(taken)
        return taken


def mutated(source: Source, base: bytes, most: int = 4) -> bytes:
    """``base`` with a few parts replaced."""
    changed = bytearray(base)
    for _ in range(source.integer(0, most)):
        start = source.integer(0, len(changed))
        stop = start + source.integer(0, 6)
        changed[start:stop] = source.data(12)
    return bytes(changed)
