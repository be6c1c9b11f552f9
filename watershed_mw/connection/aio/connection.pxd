# C types of connection.py; the logic stands there and nowhere else.
cimport cython

from .driver cimport AsyncioDriver
from .writer cimport Writer
from ...core.protocol cimport Protocol
from ...core.prepared cimport PreparedMessage
from ..awaitables cimport Wakeup


cdef object _OPEN
cdef long _MOST_SENDS


cdef class AsyncioConnection(AsyncioDriver):
    cdef public unsigned long _thread

    cpdef object send(self, object data)
    cpdef object _send_too_late(self, object data)
    @cython.locals(writer=Writer)
    cdef object _sent(self)
    @cython.locals(core=Protocol, writer=Writer, frame=bytes)
    cpdef _send_prepared(self, PreparedMessage shared)
    cpdef bint _is_over(self) except -1
    cpdef Wakeup _expect_wakeup(self)
    cpdef object _next_message(self)
