# C types of driver.py; the logic stands there and nowhere else.
cimport cython

from .api cimport AsyncConnection
from .dispatch cimport Dispatcher
from .reader cimport ReadFlow
from .writer cimport Writer
from ...core.protocol cimport Protocol

cdef Py_ssize_t _LARGE_READ
cdef object _OPEN
cdef object _CLOSED


cdef class AsyncioDriver(AsyncConnection):
    cdef public object _armed_state
    cdef public Dispatcher _dispatcher
    cdef public bint _eof_waits
    cdef public ReadFlow _flow
    cdef public object _keep
    cdef public object _loop
    cdef public object _previous
    cdef public double _timer_due
    cdef public object _transport
    cdef public object _waiters
    cdef public Writer _writer

    @cython.locals(core=Protocol, now=double)
    cpdef data_received(self, bytes data)
    @cython.locals(core=Protocol)
    cpdef events_received(self, list events, double now)
    cdef _yield_turn(self)
    @cython.locals(core=Protocol, flow=ReadFlow, now=double, lost=bint)
    cpdef _begin_turn(self)
    cpdef _advance_and_apply_state(self)
    @cython.locals(core=Protocol)
    cpdef _apply_state(self)
    @cython.locals(deadline=object)
    cpdef _arm(self)
    cpdef _cancel_timer(self)
    cpdef on_deadline(self)
    @cython.locals(writer=Writer)
    cpdef _flush(self)
    cpdef _flush_and_report(self)
    @cython.locals(unsent=Py_ssize_t)
    cpdef _check_unsent(self)
    @cython.locals(core=Protocol, flow=ReadFlow)
    cpdef _update_reading(self)
    @cython.locals(core=Protocol, unsent=Py_ssize_t)
    cpdef _update_memory(self)
