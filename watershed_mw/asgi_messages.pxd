# C types of asgi_messages.py; the logic stands there and nowhere else.
from .aio_connection cimport AsyncioConnection


cdef class ASGIMessages:
    cdef object _door
    cdef public AsyncioConnection connection
