# C types of side.py; the logic stands there and nowhere else.
cimport cython

from ..core.frames.boundaries cimport Boundaries

cdef object _PASSING
cdef object _CUTTING
cdef object _SHUT


cdef class Side:
    cdef public object _loop
    cdef public bint _paused
    cdef public double active
    cdef public bint at_end
    cdef public Boundaries boundaries
    cdef public bytes close_frame
    cdef public bint closed
    cdef public object engine
    cdef public bint finished
    cdef public bint finishing
    cdef public bint full
    cdef public bint limited
    cdef public Side other
    cdef public unsigned long long passed
    cdef public object phase

    cpdef write(self, object data, Py_ssize_t size)
    cpdef pause(self)
    cpdef resume(self)
    cpdef forward(self, object data, Py_ssize_t size)
    cpdef _forward_now(self, object data, Py_ssize_t size)
    @cython.locals(passed=Py_ssize_t)
    cpdef _forward_limited(self, object data, Py_ssize_t size)
