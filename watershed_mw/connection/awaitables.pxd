# C types of awaitables.py; the logic stands there and nowhere else.


cdef class Ready:
    pass


cdef class Pending:
    cdef object _coroutine
    cdef object _wait


cdef class NextTurn(Pending):
    pass


cdef Py_ssize_t _MIN_SWEEP


cdef class Waiters:
    cdef list _futures
    cdef object _loop
    cdef Py_ssize_t _sweep_at

    cpdef wake(self)


cdef int _IDLE
cdef int _AWAITED
cdef int _TOLD
cdef int _CANCELLED
cdef int _RESERVED
cdef object _DONE


cdef class Wakeup:
    cdef object _context
    cdef object line
    cdef object _loop
    cdef object _message
    cdef object _callback
    cdef public bint _asyncio_future_blocking
    cdef readonly int state

    cpdef bint has_waiter(self)
    cpdef bint waiter_was_cancelled(self)
    cdef _leave(self, turn, bint unused)
    cpdef pass_on(self)
    cpdef notify(self)
    cpdef notify_soon(self)
    cdef _wake_soon(self)
    cdef _forget(self)
