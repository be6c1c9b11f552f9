# C types of utf8.py, which holds all of the logic.
cimport cython

cdef unsigned long long _HIGH_BITS


@cython.locals(
    word0="unsigned long long", word1="unsigned long long", word2="unsigned long long", word3="unsigned long long",
)
cdef Py_ssize_t _past_ascii(const unsigned char *source, Py_ssize_t index, Py_ssize_t stop) noexcept


cpdef long utf8_state(bytes data, Py_ssize_t start, Py_ssize_t stop, long state)


@cython.locals(index=Py_ssize_t, byte="unsigned char", low="unsigned char", high="unsigned char", need=long)
cdef long _state_after(const unsigned char *source, Py_ssize_t start, Py_ssize_t stop, long state) noexcept


cdef class TextCheck:
    cdef object _decoder
    cdef long _state

    @cython.locals(valid=bint)
    cpdef check(self, bytes data, Py_ssize_t start, Py_ssize_t stop, bint last)
    cdef check_memory(self, const unsigned char *source, Py_ssize_t start, Py_ssize_t stop, bint last)


cpdef object not_utf8()
