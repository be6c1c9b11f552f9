# C types of pace.py; the logic stands there and nowhere else.
cimport cython


cdef double _ALLOWANCE
cdef double _SLOWEST
cdef double _HUGE


cdef class InflateRate:
    cdef double _at
    cdef double _bucket
    cdef double _burst
    cdef double _paid
    cdef double _rate
    cdef double _ratio

    cpdef begin(self)
    cpdef Py_ssize_t allow(self, Py_ssize_t size, double now) except -1
    cpdef spend(self, Py_ssize_t size)


cdef class Arrival:
    cdef double _timeout
    cdef long long _position
    cdef public long long number
    cdef public double since

    cpdef watch(self, long long number, long long header, long long position, double now)
    cpdef double due(self, long long position) except? -1
