# C types of messages.py; the logic stands there and nowhere else.
cimport cython

from ..connection.aio.connection cimport AsyncioConnection


cdef class ASGIMessages:
    cdef bint _disconnected
    cdef object _door
    cdef object _loop
    cdef object _never
    cdef unsigned long _thread
    cdef public AsyncioConnection connection

    @cython.locals(connection=AsyncioConnection, known=dict)
    cpdef object send(self, message)
