# C types of deflate.py; the logic stands there and nowhere else.
cimport cython


cdef class Deflate:
    cdef public Py_ssize_t threshold
    cdef int _level
    cdef int _memory_level
    cdef int _local_bits
    cdef int _remote_bits
    cdef bint _local_takeover
    cdef bint _remote_takeover
    cdef object _deflater
    cdef object _inflater
    cdef int _streams
    cdef public bytes salvaged

    cpdef bytes compress(self, bytes payload)
    cpdef bytes inflate(self, bytes piece, Py_ssize_t room, bint last)

    @cython.locals(inflated=bytes)
    cdef bytes _inflate(self, bytes piece, Py_ssize_t room)

    cdef object _fault(self, bytes inflated, str message, int close_code)
