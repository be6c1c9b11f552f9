# C types of blocking.py; the logic stands there and nowhere else.
cimport cython


cdef class BlockingSocket:
    cdef object _socket
    cdef object _tls
    cdef bint _waits
    cdef double _receive_timeout
    cdef bint _exact
    cdef Py_ssize_t _size
    cdef object _at_once
    cdef bint _ending
    cdef object _guard
    cdef public object data
    cdef public object write_buffer
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
    cdef _adapt_size(self, Py_ssize_t came)
    cdef _make_reads(self)
    cdef _receive_when_ready(self, object deadline)
    cdef _receive_at_once(self)
    @cython.locals(part=double)
    cdef _set_receive_timeout(self, double timeout)
    cpdef send(self)
    cdef _drop_sent(self)
    cdef _send_tls(self)
    cdef _check_torn(self, object error)
    cdef tuple _wait(self, object deadline, bint read, bint write)
