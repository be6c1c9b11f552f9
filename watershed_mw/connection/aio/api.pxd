# C types of api.py; the logic stands there and nowhere else.
from ..base cimport WatershedConnection


cdef class AsyncConnection(WatershedConnection):
    cdef public long _refused
