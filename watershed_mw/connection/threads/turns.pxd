# C types of turns.py; the logic stands there and nowhere else.


cdef class Turns:
    cdef public object lock
    cdef public long long reader
    cdef public long long writer
    cdef public list gates
