# C types of dispatch.py; the logic stands there and nowhere else.
cimport cython

from ...core.protocol cimport Protocol
from ...core.receive_queue cimport ReceiveQueue
from ..awaitables cimport Wakeup
from ..base cimport WatershedConnection
from .writer cimport Writer


cdef object _OPEN


cdef class Dispatcher:
    cdef bint _abandoned
    cdef bint _advancing
    cdef HandlerTask _handler
    cdef public bint running
    cdef public Wakeup wakeup

    @cython.locals(core=Protocol, queue=ReceiveQueue)
    cpdef advance(self, WatershedConnection connection, Writer writer)
    cpdef bint _is_behind(self, WatershedConnection connection) except -1
    cpdef bint has_finished(self, WatershedConnection connection) except -1
    cpdef emit_events(self, WatershedConnection connection, tuple events)
    @cython.locals(waiting=list)
    cpdef await_results(self, WatershedConnection connection, tuple results)


cdef class HandlerTask:
    cdef WatershedConnection _connection
    cdef Dispatcher _dispatcher
    cdef object _task
    cdef object _waiting

    cpdef extend(self, list waiting)
