# C types of receive_queue.py; the logic stands there and nowhere else.
cimport cython

cdef Py_ssize_t _LARGE


cdef class ReceiveQueue:
    cdef object _first
    cdef list _come
    cdef list _next
    cdef Py_ssize_t count
    cdef Py_ssize_t _max_events
    cdef Py_ssize_t _max_bytes
    cdef public bint full
    cdef public Py_ssize_t size

    @cython.locals(size=Py_ssize_t)
    cpdef put(self, event)
    @cython.locals(size=Py_ssize_t)
    cpdef object take(self)
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t first_size(self) except -1
    cdef object _following(self)
    cpdef stay_full(self)
    cpdef clear(self)


cdef Py_ssize_t _memory_of(object message) except -1
