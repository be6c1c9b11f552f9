# C types of aio.py; the logic stands there and nowhere else.
from .connection cimport WatershedConnection


cdef class AsyncConnection(WatershedConnection):
    cdef public long _refused
