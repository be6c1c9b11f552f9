# C types of writer.py; the logic stands there and nowhere else.
cimport cython

from ...core.protocol cimport Protocol
from ..._native.system_calls cimport call_send

cdef Py_ssize_t _WRITE_NOW
cdef Py_ssize_t _WORTH_A_PIECE
cdef bint _NEVER_PAUSES
cdef long _SENDS_PER_WRITE


cdef class Writer:
    cdef object _closing
    cdef Protocol _core
    cdef object _loop
    cdef object _transport
    cdef int _fd
    cdef public bint corked
    cdef public bint half_closed
    cdef public bint lost
    cdef public bint over_mark
    cdef public bint paused
    cdef public bint scheduled
    cdef public int sends

    @cython.locals(large=bint)
    cpdef bint message_queued(self, bint alone) except -1
    @cython.locals(core=Protocol, pieces=list, size=Py_ssize_t)
    cpdef flush(self)
    @cython.locals(sent=Py_ssize_t)
    cpdef write(self, bytes data)
    cpdef bint is_stalled(self) except -1
    cpdef Py_ssize_t buffered(self) except -1
