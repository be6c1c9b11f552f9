# C types of outgoing.py; the logic stands there and nowhere else.
cimport cython

from .base cimport BaseProtocol
from .frames.codec cimport encode_frame, encode_header

cdef int _FIN
cdef int _CLOSE
cdef int _PONG
cdef Py_ssize_t _LARGE
cdef object _OPEN
cdef object _ENDING
cdef object _CLOSED


cdef class Outgoing(BaseProtocol):
    cdef bint _client
    cdef bytes _lone
    cdef list _outgoing
    cdef list _keys
    cdef bytes _pending_pong

    cdef _answer_ping(self, bytes payload)
    cdef _echo_close(self)
    cdef _send_failure(self)
    cdef _send_close(self, bytes payload, object code, object reason)

    cpdef bytes data_to_send(self)
    @cython.locals(pieces=list)
    cpdef list pieces_to_send(self)
    @cython.locals(outgoing=list)
    cpdef object put_back(self, bytes rest)
    cdef _drop_unsent(self)
    cdef _write(self, int opcode, object payload, int first_bits=*)
    cdef _queue(self, bytes piece)
    cdef bytes _next_key(self)
