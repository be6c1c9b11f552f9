# C types of codec.py, which holds all of the logic.
cimport cython

from .payload_buffer cimport PayloadBuffer


cdef int _FIN
cdef Py_ssize_t _LARGE_PAYLOAD


@cython.locals(size=Py_ssize_t, result=bytes, source="const unsigned char *")
cpdef bytes mask(bytes data, Py_ssize_t start, Py_ssize_t stop, bytes key, Py_ssize_t phase)


@cython.locals(keys="const unsigned char *", highest="unsigned int")
cdef unsigned int _number(bytes key)


@cython.locals(index=Py_ssize_t, keys="unsigned char *", word="unsigned long long", chunk="unsigned long long")
cdef void _mask_to(
    unsigned char *target, const unsigned char *source, Py_ssize_t size, unsigned int key, Py_ssize_t phase
) noexcept


cdef int _header_size(unsigned long long size) noexcept


@cython.locals(header_size=int, index=int)
cdef void _put_header(unsigned char *target, int first_byte, int mask_bit, unsigned long long size) noexcept


@cython.locals(
    size=Py_ssize_t, header_size=Py_ssize_t, head=Py_ssize_t, result=bytes,
    source="const unsigned char *", target="unsigned char *",
)
cpdef bytes encode_frame(int opcode, object payload, bytes key, int first_bits=*)


@cython.locals(mask_bit=int, header_size=int, header=bytes, target="unsigned char *")
cpdef bytes encode_header(int opcode, unsigned long long size, bytes key, int first_bits=*)


@cython.final
cdef class FrameReader:
    cdef bint _masked
    cdef bint _rsv1_allowed
    cdef unsigned int _key
    cdef public int opcode
    cdef public bint fin
    cdef public bint rsv1
    cdef public bint first
    cdef public bint last
    cdef object _owner
    cdef const unsigned char *_data
    cdef readonly Py_ssize_t end
    cdef readonly Py_ssize_t position
    cdef long long _remaining
    cdef Py_ssize_t _phase
    cdef Py_ssize_t _start
    cdef Py_ssize_t _size
    cdef public long long length

    cpdef feed(self, bytes data)
    cpdef borrow(self, object data, Py_ssize_t size)

    @cython.locals(available=Py_ssize_t, size="long long")
    cpdef bint read(self) except -1

    @cython.locals(
        start=Py_ssize_t, piece=bytes, target="unsigned char *", source="const unsigned char *",
    )
    cpdef bytes take(self)

    @cython.locals(size=Py_ssize_t, target="unsigned char *")
    cpdef gather(self, PayloadBuffer buffer)
    @cython.locals(target="unsigned char *")
    cpdef buffer_updated(self, PayloadBuffer buffer, Py_ssize_t size)

    cpdef object take_text(self)
    cpdef forget(self)
    @cython.locals(rest=bytes)
    @cython.locals(more=bint)
    cpdef bint suspend(self) except -1
    cpdef keep_rest(self)

    @cython.locals(
        data="const unsigned char *", position=Py_ssize_t, byte0="unsigned char", byte1="unsigned char",
        length="long long", size=Py_ssize_t, key=Py_ssize_t, highest="unsigned int",
    )
    cdef bint _read_header(self, Py_ssize_t available) except -1

    cdef _check_first_bytes(self, int byte0, int byte1)


@cython.final
cdef class FrameWriter:
    cdef readonly bint masked
    cdef readonly Py_ssize_t unsent_size
    cdef readonly long long frames_sent
    cdef readonly long long bytes_sent
    cdef bytes _piece
    cdef list _pieces
    cdef list _keys

    cpdef write(self, int opcode, object payload, int first_bits=*)
    cpdef bytes write_encoded(self, bytes frame)
    cpdef bytes data_to_send(self)
    @cython.locals(pieces=list)
    cpdef list pieces_to_send(self)
    cpdef put_back(self, bytes rest)
    cpdef drop_unsent(self)
    cdef _queue(self, bytes piece)
    cdef bytes _next_key(self)
