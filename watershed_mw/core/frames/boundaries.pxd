# C types of boundaries.py; the logic stands there and nowhere else.
cimport cython

cdef unsigned long long _ENDLESS
cdef int _CLOSE
cdef int _MASK_BIT
cdef int _MASKING_KEY


cdef class Boundaries:
    cdef unsigned long long _payload
    cdef bint _header
    cdef int _missing
    cdef unsigned long long _length
    cdef bint _close
    cdef public bint close_passed

    cpdef feed(self, object data, Py_ssize_t start, Py_ssize_t stop)
    cpdef Py_ssize_t feed_to_boundary(self, object data, Py_ssize_t start, Py_ssize_t stop) except -2
    @cython.locals(
        source="const unsigned char *", position=Py_ssize_t, step="unsigned long long", second="unsigned char",
    )
    cdef Py_ssize_t _scan(self, object data, Py_ssize_t start, Py_ssize_t stop, bint once) except -2
