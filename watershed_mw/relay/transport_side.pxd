# C types of transport_side.py; the logic stands there and nowhere else.
cimport cython

from .side cimport Side


cdef class TransportSide(Side):
    cdef public bint _eof
    cdef public bytes _head
    cdef public object _keep
    cdef public double _close_timeout
    cdef public object _previous
    cdef public object _transport

    cpdef pause(self)
    cpdef resume(self)
    cpdef write(self, object data, Py_ssize_t size)
