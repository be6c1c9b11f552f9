"""Everything that an application may send as one message, and what the peer must receive, for all integrations."""

from __future__ import annotations

import array
import ctypes
import enum
import mmap
from typing import Any, Final

import numpy as np
from django.utils.safestring import SafeString, mark_safe
from markupsafe import Markup


class Colour(enum.StrEnum):
    """A string with a different `str()`."""

    RED = "red"


class Named(str, enum.Enum):  # noqa: UP042  # it shows itself as Named.RED, and is "red" all the same
    """A string enumeration."""

    RED = "red"


class Shouting(str):
    """Text whose methods return something other than its characters."""

    __slots__ = ()

    def __str__(self) -> str:
        return "SHOUTED"

    def __len__(self) -> int:
        return 99

    def encode(self, *_: Any) -> bytes:
        return b"SHOUTED"

    def isascii(self) -> bool:
        return True


class Blob(bytes):
    """Bytes whose methods return something other than their contents."""

    def __bytes__(self) -> bytes:
        return b"something else"

    def __len__(self) -> int:
        return 99


class Buffer(bytearray):
    """A buffer type defined by an application."""

    def __bytes__(self) -> bytes:
        return b"something else"


def _mapped() -> mmap.mmap:
    mapped = mmap.mmap(-1, mmap.PAGESIZE)
    mapped.write(b"mapped")
    return mapped


_GRID: Final = np.arange(12, dtype="<i4").reshape(3, 4)
_PAIRS: Final = np.array([(1, 2)], dtype=[("Offset", "<i2"), ("O", "<i2")])

SENDABLE: Final[dict[str, tuple[Any, str | bytes]]] = {
    "str": ("text é", "text é"),
    "empty str": ("", ""),
    "Markup": (Markup("<b>é</b>"), "<b>é</b>"),
    "SafeString": (mark_safe("<i>x</i>"), "<i>x</i>"),
    "StrEnum": (Colour.RED, "red"),
    "str and Enum": (Named.RED, "red"),
    "str with methods": (Shouting("näive"), "näive"),
    "numpy.str_": (np.str_("scalar"), "scalar"),
    "large Markup": (Markup("é" * 40_000), "é" * 40_000),
    "bytes": (b"bytes", b"bytes"),
    "empty bytes": (b"", b""),
    "bytes with methods": (Blob(b"blob"), b"blob"),
    "numpy.bytes_": (np.bytes_(b"scalar"), b"scalar"),
    "bytearray": (bytearray(b"array"), b"array"),
    "bytearray's subclass": (Buffer(b"buffer"), b"buffer"),
    "memoryview": (memoryview(b"view"), b"view"),
    "memoryview with steps": (memoryview(b"abcdef")[::2], b"ace"),
    "memoryview backwards": (memoryview(b"abc")[::-1], b"cba"),
    "memoryview of ints": (memoryview(array.array("i", [1, -1])), array.array("i", [1, -1]).tobytes()),
    "memoryview in two dimensions": (memoryview(bytes(range(6))).cast("B", (2, 3)), bytes(range(6))),
    "memoryview without dimensions": (memoryview(b"z").cast("B", ()), b"z"),
    "array": (array.array("d", [1.5]), array.array("d", [1.5]).tobytes()),
    "mmap": (_mapped(), b"mapped" + bytes(mmap.PAGESIZE - 6)),
    "ctypes": ((ctypes.c_uint8 * 3)(1, 2, 3), b"\1\2\3"),
    "numpy": (_GRID, _GRID.tobytes()),
    "numpy transposed": (_GRID.T, _GRID.T.tobytes()),
    "numpy with steps": (_GRID[:, ::3], _GRID[:, ::3].tobytes()),
    "numpy of structures": (_PAIRS, _PAIRS.tobytes()),
    "large bytearray": (bytearray(b"x" * 100_000), b"x" * 100_000),
}
"""By name: what is sent, and the TEXT (str) or BINARY (bytes) message that it is."""

REFUSED: Final[dict[str, Any]] = {
    "None": None,
    "int": 5,
    "bool": True,
    "float": 1.5,
    "list": ["x"],
    "dict": {"x": 1},
    "tuple of ints": (1, 2),
    "iterator of str": iter(["x"]),
    "object": object(),
    "numpy of objects": np.array([object()]),
}
"""By name: what is no message, for which there is a TypeError."""

assert isinstance(SENDABLE["SafeString"][0], SafeString)
