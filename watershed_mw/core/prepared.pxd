# C types of prepared.py; the logic stands there and nowhere else.
cimport cython

from .deflate cimport Deflate, compress_with, new_deflater
from .frames.codec cimport encode_frame

cdef int _TEXT
cdef int _BINARY
cdef int _FIN
cdef int _FIN_RSV1


cdef class PreparedMessage:
    cdef public object message
    cdef public int opcode
    cdef public bytes payload
    cdef bytes _plain
    cdef dict _compressed

    cpdef bytes plain(self)
    @cython.locals(frame=bytes, payload=bytes)
    cpdef bytes compressed(self, Deflate deflate)
