# C types of base.py, which holds all of the logic.

cdef object _OPEN
cdef object _ANSWERING
cdef object _FAILING
cdef object _ENDING
cdef object _CLOSED


cdef class BaseProtocol:
    cdef public object state
    cdef public bint sending
    cdef public bint write_paused
    cdef public tuple _close_received
    cdef public tuple _close_sent
    cdef public object _failure
    cdef public long long messages_sent

    cpdef send_text(self, str message)
    cpdef send_binary(self, bytes message)
    cpdef ping(self, bytes payload, double now)
    cpdef close(self, object code, object reason, double now)
    cpdef abort(self)
    cpdef list fail(self, object error, double now)
    cpdef object counts(self)
    cpdef Py_ssize_t incoming_size(self) except -1
    cpdef _check_sending(self)
    cpdef tuple _outcome(self)
    cpdef _move(self, object trigger)
