# C types of sides.py; the logic stands there and nowhere else.
cimport cython

from ..core.frames.boundaries cimport Boundaries
from .._native.system_calls cimport call_recv, call_send

cdef Py_ssize_t _CHUNK
cdef Py_ssize_t _HIGH_WATER
cdef Py_ssize_t _LOW_WATER
cdef int _NOTHING_NOW
cdef int _BROKEN
cdef object _PASSING
cdef object _CUTTING
cdef object _SHUT


cdef class Side:
    cdef public object _loop
    cdef public bint _paused
    cdef public double active
    cdef public bint at_end
    cdef public Boundaries boundaries
    cdef public bytes close_frame
    cdef public bint closed
    cdef public bint finished
    cdef public bint finishing
    cdef public bint full
    cdef public bint limited
    cdef public Side other
    cdef public unsigned long long passed
    cdef public object phase
    cdef public object relay

    cpdef write(self, object data, Py_ssize_t size)
    cpdef pause(self)
    cpdef resume(self)
    cpdef came(self, object data, Py_ssize_t size)
    cpdef _pass_on(self, object data, Py_ssize_t size)
    @cython.locals(passed=Py_ssize_t)
    cpdef _came_late(self, object data, Py_ssize_t size)


cdef class SocketSide(Side):
    cdef public bint _broken
    cdef public int _fd
    cdef public bytes _head
    cdef public bint _looking
    cdef public bytearray _memory
    cdef public bytearray _queue
    cdef public object _socket

    @cython.locals(size=Py_ssize_t)
    cpdef _readable(self)
    @cython.locals(size=Py_ssize_t, target="unsigned char *")
    cdef Py_ssize_t _receive(self) except -3
    cpdef pause(self)
    cpdef resume(self)
    @cython.locals(sent=Py_ssize_t)
    cpdef write(self, object data, Py_ssize_t size)
    @cython.locals(sent=Py_ssize_t, source="const unsigned char *")
    cdef Py_ssize_t _send(self, object data, Py_ssize_t size) except -3
    @cython.locals(sent=Py_ssize_t, queue=bytearray)
    cpdef _writable(self)


cdef class TransportSide(Side):
    cdef public bint _eof
    cdef public bytes _head
    cdef public object _keep
    cdef public double _patience
    cdef public object _previous
    cdef public object _transport

    cpdef pause(self)
    cpdef resume(self)
    cpdef write(self, object data, Py_ssize_t size)
