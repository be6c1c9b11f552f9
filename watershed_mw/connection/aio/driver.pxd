# C types of driver.py; the logic stands there and nowhere else.
cimport cython

from .dispatch cimport OrderedHandlers
from ...core.protocol cimport Protocol
from ..._native.system_calls cimport call_send

cdef Py_ssize_t _WRITE_NOW
cdef Py_ssize_t _WORTH_A_PIECE
cdef bint _NEVER_PAUSES
cdef long _SENDS_PER_WRITE
cdef Py_ssize_t _LITTLE
cdef Py_ssize_t _MUCH
cdef int _BUFFERED_READS
cdef Py_ssize_t _WORTH_ITS_OWN_READ
cdef long long _WORK_PER_TURN
cdef double _SECONDS_PER_TURN
cdef object _OPEN
cdef object _CLOSED


cdef class AsyncioDriver(OrderedHandlers):
    cdef public object _armed_state
    cdef public bint _behind
    cdef public dict _closers
    cdef public object _closing
    cdef public dict _drainers
    cdef public bint _eof_waits
    cdef public int _fd
    cdef public bint _buffered
    cdef public bint _flush_set
    cdef public bint _half_closed
    cdef public bint _held_back
    cdef public bint _in_place
    cdef public object _keep
    cdef public bint _let_go_of
    cdef public int _buffered_reads
    cdef public object _previous
    cdef public bint _reading
    cdef public double _timer_due
    cdef public object _scratch
    cdef public long _sends
    cdef public unsigned long _thread
    cdef public object _transport
    cdef public double _turn_began
    cdef public long long _turn_ends
    cdef public bint _yielding

    @cython.locals(core=Protocol)
    cpdef data_received(self, bytes data)
    @cython.locals(core=Protocol)
    cpdef object next_buffer(self, object _sizehint)
    @cython.locals(core=Protocol)
    cpdef buffer_filled(self, Py_ssize_t nbytes)
    @cython.locals(core=Protocol)
    cpdef _receive_events(self, list events)
    @cython.locals(core=Protocol)
    cdef bint _may_go_on(self) except -1
    cdef _yield_turn(self)
    @cython.locals(core=Protocol)
    cpdef _begin_turn(self)
    @cython.locals(core=Protocol)
    cpdef _apply_state(self)
    @cython.locals(deadline=object)
    cpdef _arm(self)
    cpdef _cancel_timer(self)
    cpdef on_deadline(self)
    @cython.locals(large=bint)
    cpdef _wrote(self)
    cpdef _end_turn(self)
    cdef _flush_and_report(self)
    @cython.locals(core=Protocol, pieces=list, size=Py_ssize_t)
    cpdef _flush(self)
    @cython.locals(sent=Py_ssize_t)
    cpdef _write(self, bytes data)
    @cython.locals(core=Protocol, unsent=Py_ssize_t, held=Py_ssize_t)
    cpdef _update_memory(self)
    @cython.locals(core=Protocol)
    cpdef _update_reading(self)
    @cython.locals(core=Protocol, pause=bint, blocked=bint)
    cdef _pause_or_resume(self)
    @cython.locals(core=Protocol, buffered=bint)
    cpdef _update_buffering(self)
