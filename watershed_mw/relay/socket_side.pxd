# C types of socket_side.py; the logic stands there and nowhere else.
cimport cython

from .._native.system_calls cimport call_recv, call_send
from .side cimport Side

cdef Py_ssize_t _CHUNK
cdef int _NOTHING_NOW
cdef int _BROKEN


cdef class SocketSide(Side):
    cdef public bint _broken
    cdef public int _fd
    cdef public bytes _head
    cdef public bint _polling
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
