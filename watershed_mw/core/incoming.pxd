# C types of incoming.py, which holds all of the logic.
cimport cython

from .deflate cimport Deflate
from .frames.codec cimport FrameReader
from .frames.payload_buffer cimport PayloadBuffer
from .frames.utf8 cimport TextCheck, not_utf8
from .pace cimport InflateRate

cdef int _TEXT
cdef Py_ssize_t _CONTEXT


@cython.final
cdef class IncomingMessage:
    cdef FrameReader _reader
    cdef Deflate _deflate
    cdef InflateRate _rate
    cdef long long _max_size
    cdef Py_ssize_t _max_fragments
    cdef Py_ssize_t _fragments
    cdef long long _wire_size
    cdef bint _text
    cdef TextCheck _utf8
    cdef bytearray _pieces
    cdef PayloadBuffer _buffer
    cdef readonly Py_ssize_t taken
    cdef readonly Py_ssize_t inflated

    @cython.locals(remaining="long long", got=object)
    cpdef begin_frame(self)
    @cython.locals(reader=FrameReader, start=Py_ssize_t, piece=bytes, last=bint)
    cpdef object receive(self, double now)
    cpdef object inflate_more(self, double now)
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t size(self) except -1
    cpdef long long payload_to_come(self) noexcept
    cpdef Py_ssize_t capacity(self) except -1
    cpdef object get_buffer(self)
    @cython.locals(start=Py_ssize_t)
    cpdef object buffer_updated(self, Py_ssize_t size)
    @cython.locals(last=bint)
    cdef object _gathered(self, Py_ssize_t start)
    cdef object _add(self, bytes piece, bint last)
    cdef object _add_inflated(self, bytes piece)
    @cython.locals(rate=InflateRate, left=Py_ssize_t, allowed=Py_ssize_t, limited=bint, inflated=bytes, salvaged=bytes)
    cdef bytes _inflate(self, bytes piece, bint last, double now)
    cdef TextCheck _utf8_check(self)
    cdef object _finished(self, bytes message)
