# C types of awaitables.py; the logic stands there and nowhere else.


cdef class Ready:
    pass


cdef class Pending:
    cdef object _coroutine
    cdef object _wait


cdef class NextTurn(Pending):
    pass
