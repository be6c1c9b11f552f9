"""Memory for the payload of a large frame, in which the bytes stay until the application has them.

This file is compiled as well as interpreted; the C types are in ``payload_buffer.pxd``. The hazard: a transport writes
into the memory that :meth:`PayloadBuffer.get_buffer` lends, and the application must never see its message change. So
the bytes become a ``bytes`` object without a copy only where no view of them is left, and nothing in Python can reach
that object before: ``bytearray.take_bytes`` works like this (CPython 3.15), and elsewhere ``WritableBytes`` does, for
the compiled form. The interpreted form copies.
"""

from __future__ import annotations

from typing import Any

from .utf8 import TextCheck

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.buffer import PyBuffer_FillInfo
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
    from cython.cimports.cpython.memoryview import PyMemoryView_GET_BUFFER
    from cython.cimports.libc.string import memcpy

__all__ = ["PayloadBuffer"]

_Memory: Any = bytearray
# Memory is allocated for so many bytes at first, and then for so many times what has come: a peer that only declares a
# length must not cost memory.
_FIRST_CAPACITY = 4096
_GROWTH = 16
_MOST_SCRATCH = 256 * 2**10


if cython.compiled:

    class WritableBytes:
        """A ``bytes`` object that is written to before anybody has it; otherwise as ``bytearray`` of CPython 3.15."""

        def __init__(self, size: int) -> None:
            self._data = PyBytes_FromStringAndSize(cython.NULL, size)
            self._exports = 0

        @cython.locals(buffer="Py_buffer *")  # type: ignore[untyped-decorator]
        def __getbuffer__(self, buffer: Any, flags: int) -> None:
            PyBuffer_FillInfo(buffer, self, PyBytes_AS_STRING(self._data), len(self._data), 0, flags)
            self._exports += 1

        @cython.locals(buffer="Py_buffer *")  # type: ignore[untyped-decorator]
        def __releasebuffer__(self, buffer: Any) -> None:
            self._exports -= 1

        def take_bytes(self) -> bytes:
            """The bytes, without a copy; there are none here afterwards.

            Raises:
                BufferError: a view of them is still there.
            """
            if self._exports:
                raise BufferError("expected no view of the memory, got one that has not been released")
            data: bytes = self._data
            self._data = b""
            return data

    if not hasattr(bytearray, "take_bytes"):
        _Memory = WritableBytes


class PayloadBuffer:
    """The payload of one frame, gathered piece by piece.

    Args:
        length: bytes that the frame declares.

    Attributes:
        length: as given.
        size: bytes that have come.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.size = 0
        self._memory: Any = None if cython.compiled else _Memory()
        self._view: Any = None  # keeps the memory from being resized, or taken, by anybody else
        self._start: Any = cython.NULL if cython.compiled else None  # a pointer to the memory
        self._allocated = 0
        self._scratch: bytes | bytearray = b""  # where the interpreted form has bytes put

    def capacity(self) -> int:
        """Bytes that :meth:`get_buffer` has without allocating more."""
        if cython.compiled:
            return self._allocated - self.size
        return min(self.length - self.size, _MOST_SCRATCH)

    def get_buffer(self) -> memoryview:
        """Memory for the next bytes, at least one; the writer calls :meth:`FrameReader.buffer_updated` at once."""
        if cython.compiled:
            self.reserve(1)
            return self._view[self.size :]  # type: ignore[no-any-return]
        if not self._scratch:
            self._scratch = bytearray(min(self.length, _MOST_SCRATCH))
        return memoryview(self._scratch)[: self.length - self.size]

    def check(self, text: TextCheck, start: int, last: bool) -> None:
        """Check the bytes from ``start`` on; the rest as for ``TextCheck.check``."""
        if cython.compiled:
            text.check_memory(self._start, start, self.size, last)
        else:
            text.check(self._memory, start, self.size, last)

    def take(self) -> bytes:
        """The whole payload; once."""
        memory = self._memory
        self._memory = None
        if cython.compiled:
            self._view.release()
        try:
            return memory.take_bytes()  # type: ignore[no-any-return]
        except (AttributeError, BufferError):
            return bytes(memory)  # A view is left, whose writes must not show. Or this is an older bytearray.

    if cython.compiled:

        def reserve(self, size: int) -> Any:
            """Where the next ``size`` bytes go."""
            whole = self.size + size
            if whole > self._allocated:
                capacity = min(self.length, max(_GROWTH * whole, _FIRST_CAPACITY))
                memory = _Memory(capacity)
                view = memoryview(memory)
                start = cython.cast("unsigned char *", PyMemoryView_GET_BUFFER(view).buf)
                if self.size:
                    memcpy(start, self._start, self.size)
                self._memory = memory
                self._view = view
                self._start = start
                self._allocated = capacity
            return self._start + self.size
    else:

        def add(self, piece: bytes | memoryview) -> None:
            """Add the next bytes."""
            self._memory += piece
            self.size += len(piece)

        @property
        def scratch(self) -> bytes | bytearray:
            """The memory that was lent."""
            return self._scratch
