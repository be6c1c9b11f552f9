# C types of deflate.py; the logic stands there and nowhere else.
cimport cython


cdef int _NEWCOMERS
cdef int _REGULARS
cdef Py_ssize_t _WORTH_PACKING
cdef int _PACK_BITS
cdef Py_ssize_t _INFLATER
cdef Py_ssize_t _MOST_AT_ONCE
cdef double _REST_AFTER


cdef class Contexts:
    cdef Py_ssize_t _most_newcomers
    cdef Py_ssize_t _most_regulars
    cdef object _newcomers
    cdef object _regulars

    @cython.locals(oldest=Deflate)
    cpdef add(self, Deflate deflate)
    @cython.locals(oldest=Deflate)
    cdef _add_regular(self, Deflate deflate)
    cpdef discard(self, Deflate deflate)


cdef class Deflate:
    cdef double _idle_since
    cdef public Py_ssize_t threshold
    cdef public int level
    cdef public int memory_level
    cdef public int local_bits
    cdef int _remote_bits
    cdef bint _local_takeover
    cdef bint _remote_takeover
    cdef object _deflater
    cdef object _inflater
    cdef bytes _history
    cdef bint _packed
    cdef list _recent
    cdef Py_ssize_t _recent_size
    cdef public bint within_message
    cdef bytes _rest
    cdef bint _last
    cdef public bint pending
    cdef int _streams
    cdef public bytes salvaged
    cdef public bint active
    cdef public Contexts contexts
    cdef bint _listed
    cdef public bint used
    cdef public bint returned

    cpdef bytes compress(self, bytes payload)
    cpdef reset_context(self)
    cpdef bytes inflate(self, bytes piece, Py_ssize_t remaining, bint last)

    @cython.locals(inflated=bytes)
    cpdef bytes inflate_more(self, Py_ssize_t remaining)

    @cython.locals(
        inflated=bytes, piece=bytes, part=bytes, most=Py_ssize_t, limit=Py_ssize_t, more=bint,
    )
    cdef bytes _inflate(self, Py_ssize_t remaining)

    @cython.locals(history=bytes)
    cdef object _new_inflater(self)
    @cython.locals(recent=list, size=Py_ssize_t, window=Py_ssize_t)
    cdef _record(self, bytes part)
    @cython.locals(history=bytes, window=Py_ssize_t)
    cdef bytes _joined(self)
    cdef _forget_inflater(self)
    cdef object _fault(self, bytes inflated, str message, int close_code)
    cpdef Py_ssize_t unfinished(self) except -1
    cpdef share(self, Contexts contexts)
    cpdef object release_due(self)
    cpdef release_if_idle(self, double now)
    cpdef release(self)
    cpdef close(self)
    @cython.locals(history=bytes, packed=bytes)
    cpdef give_back(self, bint pack)
    cdef _register(self)


cpdef object new_deflater(int level, int window_bits, int memory_level)
cpdef bytes compress_with(object deflater, bytes payload)
cdef bint _between_blocks(object inflater) except -1
