# C types of base.py; the logic stands there and nowhere else.

cdef object _OPEN
cdef object _ANSWERING
cdef object _FAILING
cdef object _ENDING
cdef object _CLOSED


cdef class BaseProtocol:
    cdef public object state
    cdef public bint sending
    cdef public object latency
    cdef public bint write_paused
    cdef public Py_ssize_t unsent_size
    cdef public tuple _close_received
    cdef public tuple _close_sent
    cdef public object _failure
    cdef public long long frames_received
    cdef public long long frames_sent
    cdef public long long messages_received
    cdef public long long messages_sent
    cdef public long long bytes_received
    cdef public long long bytes_sent

    cpdef send_text(self, str message)
    cpdef send_binary(self, bytes message)
    cpdef ping(self, bytes payload, double now)
    cpdef close(self, object code, object reason, double now)
    cpdef abort(self)
    cpdef list fail(self, object error, double now)
    cpdef Py_ssize_t incoming_size(self) except -1
    cpdef _check_sending(self)
    cpdef tuple _outcome(self)
    cpdef _move(self, object trigger)
