# C types of messages.py; the logic stands there and nowhere else.
cimport cython

from ..connection.aio.connection cimport AsyncioConnection


cdef class ASGIMessages:
    cdef object _after_disconnect
    cdef AsyncioConnection _connection
    cdef object _loop
    cdef unsigned long _thread
    cdef object _unopened

    cdef _end(self)
    cpdef open(self, AsyncioConnection connection)
    @cython.locals(connection=AsyncioConnection, known=dict)
    cpdef object send(self, message)
