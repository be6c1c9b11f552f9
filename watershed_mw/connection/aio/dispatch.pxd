# C types of dispatch.py; the logic stands there and nowhere else.
cimport cython

from .api cimport AsyncConnection
from ...core.protocol cimport Protocol
from ..awaitables cimport Wakeup


cdef object _OPEN


cdef class OrderedHandlers(AsyncConnection):
    cdef public bint _abandoned
    cdef public bint _advancing
    cdef public object _busy
    cdef public object _loop
    cdef public bint _lost
    cdef public Wakeup _wakeup
    cdef public bint _running
    cdef public object _waiting
    cdef public bint _writing_paused

    cpdef _apply_state(self)
    @cython.locals(core=Protocol)
    cpdef _advance(self)
    cpdef _advance_to_end(self)
    cpdef _emit_events(self, tuple events)
    @cython.locals(waiting=list)
    cpdef _await_results(self, tuple results)
    cpdef _advance_and_apply_state(self)
