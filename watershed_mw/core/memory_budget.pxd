# C types of memory_budget.py; the logic stands there and nowhere else.
cimport cython


cdef Py_ssize_t _STEP
cdef Py_ssize_t _LARGEST_STEP


cdef class Account:
    cdef MemoryBudget _budget
    cdef object _notify
    cdef Py_ssize_t _making
    cdef Py_ssize_t _queued
    cdef Py_ssize_t _unsent
    cdef public bint ending
    cdef public long long held
    cdef public long long limit
    cdef public bint paused
    cdef public double paused_at
    cdef public long long ending_size

    @cython.locals(held="long long")
    cpdef report(self, Py_ssize_t making, Py_ssize_t queued, Py_ssize_t unsent, double now)


cdef class Meter:
    cdef public Account account
    cdef Py_ssize_t _above
    cdef Py_ssize_t _below

    cpdef bint is_due(self, Py_ssize_t held) except -1
    @cython.locals(step=Py_ssize_t)
    cpdef bint set_marks(self, Py_ssize_t held) except -1


cdef class MemoryBudget:
    cdef object _lock
    cdef object _warn
    cdef set _accounts
    cdef set _paused
    cdef Py_ssize_t _lowest
    cdef dict _higher
    cdef long long _limit
    cdef long long _mark
    cdef object _gone
    cdef long long _ending
    cdef public long long total

    cpdef report(self, Account account, long long held, double now)
    cdef _count(self, Account account, long long held)
    @cython.locals(limit="long long")
    cdef _join(self, Account account)
    @cython.locals(limit="long long")
    cdef _leave(self, Account account)
    cdef _set_limit(self, long long limit)
    @cython.locals(share="long long")
    cdef tuple _decide(self, Account account, double now)
    cdef list _resumed(self, long long most)
    cdef _release(self, Account account)
