# C types of blocking.py; the logic stands there and nowhere else.
cimport cython


cdef class BlockingSocket:
    cdef object _socket
    cdef object _tls
    cdef bint _waits
    cdef double _patience
    cdef bint _exact
    cdef Py_ssize_t _size
    cdef object _at_once
    cdef bint _ending
    cdef object _guard
    cdef public object data
    cdef public object rest
    cdef public Py_ssize_t sent
    cdef public bint torn
    cdef public bint broken
    cdef object _calls
    cdef object _write
    cdef tuple _flags
    cdef object _reads
    cdef object _reads_at_once

    @cython.locals(left=double, came=Py_ssize_t)
    cpdef receive(self, object deadline)
    @cython.locals(size=Py_ssize_t)
    cdef _fit(self, Py_ssize_t came)
    cdef _make_reads(self)
    cdef _receive_when_ready(self, object deadline)
    cdef _receive_at_once(self)
    @cython.locals(part=double)
    cdef _tell_kernel(self, double patience)
    cpdef send(self)
    cdef _cut(self)
    cdef _send_tls(self)
    cdef _check_torn(self, object error)
    cdef tuple _wait(self, object deadline, bint read, bint write)
