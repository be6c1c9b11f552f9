# C types of handlers.py; the logic stands there and nowhere else.
cimport cython

from ..core.receive_queue cimport ReceiveQueue


cdef class Handlers:
    cdef tuple _pairs

    cpdef bint has(self, str event) except -1
    @cython.locals(results=tuple, pairs=tuple, index=Py_ssize_t)
    cpdef tuple emit(self, object connection, str event, tuple args)
    cpdef tuple emit_event(self, object connection, object event)
    @cython.locals(queue=ReceiveQueue, at_once=list)
    cpdef tuple sort(self, object connection, list events)
