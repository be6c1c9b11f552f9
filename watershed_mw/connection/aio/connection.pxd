# C types of connection.py; the logic stands there and nowhere else.
cimport cython

from .driver cimport AsyncioDriver
from ...core.protocol cimport Protocol
from ...core.prepared cimport PreparedMessage
from ..awaitables cimport Wakeup


cdef object _OPEN
cdef long _MOST_SENDS

cdef extern from "Python.h":
    int delete_attribute "PyObject_GenericSetAttr"(object target, object name, void *nothing) except -1


cdef class AsyncioConnection(AsyncioDriver):
    cdef dict _own

    cpdef object send(self, object data)
    cpdef object _send_too_late(self, object data)
    cdef object _sent(self)
    @cython.locals(core=Protocol, frame=bytes)
    cpdef _send_prepared(self, PreparedMessage shared)
    cpdef bint _is_over(self) except -1
    cpdef Wakeup _expect_wakeup(self)
    cpdef object _next_message(self)
