# C types of payload_buffer.py, which holds all of the logic.
cimport cython
from .utf8 cimport TextCheck

cdef Py_ssize_t _FIRST_CAPACITY
cdef Py_ssize_t _GROWTH


cdef class WritableBytes:
    cdef bytes _data
    cdef Py_ssize_t _exports


@cython.final
cdef class PayloadBuffer:
    cdef readonly long long length
    cdef public Py_ssize_t size
    cdef object _memory
    cdef object _view
    cdef unsigned char *_start
    cdef Py_ssize_t _allocated
    cdef object _scratch

    cpdef Py_ssize_t capacity(self)
    cpdef object get_buffer(self)
    cpdef check(self, TextCheck text, Py_ssize_t start, bint last)
    cpdef bytes take(self)
    @cython.locals(whole=Py_ssize_t, capacity=Py_ssize_t, start="unsigned char *", view=object)
    cdef unsigned char *reserve(self, Py_ssize_t size) except? NULL
