# C types of reader.py; the logic stands there and nowhere else.
cimport cython

from ...core.protocol cimport Protocol as CoreProtocol
from ...core.receive_queue cimport ReceiveQueue

cdef Py_ssize_t _LARGE_READ
cdef Py_ssize_t _SMALL_READ
cdef int _SMALL_READS
cdef Py_ssize_t _WORTH_ITS_OWN_READ
cdef long long _WORK_PER_TURN
cdef double _SECONDS_PER_TURN
cdef object _OPEN


cdef class BufferedReader:
    cdef CoreProtocol _core
    cdef object _events_received
    cdef bint _in_place
    cdef object _scratch
    cdef int _small_reads


cdef class ReadFlow:
    cdef public BufferedReader reader
    cdef bint _unlinks
    cdef public bint held_back
    cdef public bint large_read
    cdef public bint yielding
    cdef public double turn_began
    cdef public long long turn_ends

    cpdef begin_turn(self, CoreProtocol core, double now)
    cpdef bint may_go_on(self, CoreProtocol core, ReceiveQueue queue) except -1
    cpdef bint is_blocked(self, CoreProtocol core, ReceiveQueue queue) except -1
    cpdef bint is_over_bound(self, ReceiveQueue queue, object limits) except -1
    @cython.locals(pause=bint)
    cpdef pause_or_resume(self, CoreProtocol core, ReceiveQueue queue, object transport)
    @cython.locals(buffered=bint, wanted=bint)
    cpdef update_buffering(self, object target, CoreProtocol core, object transport, object loop)
