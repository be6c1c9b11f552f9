# C types of protocol.py; the logic stands there and nowhere else.
cimport cython

from .deflate cimport Contexts, Deflate
from .frames.codec cimport FrameReader
from .outgoing cimport Outgoing
from .pace cimport Arrival, InflateRate
from .frames.utf8 cimport TextCheck, not_utf8
from .prepared cimport PreparedMessage

cdef Py_ssize_t _CONTEXT
cdef Py_ssize_t _FRAMES_PER_STEP
cdef Py_ssize_t _BYTES_PER_STEP
cdef int _UNIT_SHIFT
cdef int _FIN_RSV1
cdef int _CONTINUATION
cdef int _TEXT
cdef int _BINARY
cdef int _CLOSE
cdef int _PING
cdef int _PONG
cdef double inf
cdef object _OPEN
cdef object _ANSWERING
cdef object _FAILING
cdef object _CLOSING
cdef object _CLOSED


cdef class Protocol(Outgoing):
    cdef FrameReader _reader
    cdef Deflate _deflate
    cdef Py_ssize_t _max_size
    cdef Py_ssize_t _max_fragments
    cdef Py_ssize_t _frames_per_step
    cdef Py_ssize_t _bytes_per_step
    cdef public bint backlog
    cdef public long long work
    cdef long long _step_ends
    cdef object _rate
    cdef double _message_timeout
    cdef public Arrival arrival
    cdef long long _unwatched
    cdef double _paused_at
    cdef object _limits
    cdef InflateRate _inflate_rate
    cdef double _ping_interval
    cdef double _ping_timeout
    cdef double _close_timeout
    cdef double _reply_timeout
    cdef public bint in_message
    cdef bint _alone
    cdef bint _text
    cdef bint _compressed
    cdef Py_ssize_t _fragments
    cdef long long _wire_size
    cdef bytearray _message
    cdef TextCheck _utf8
    cdef bytes _control
    cdef public bint read_paused
    cdef double _deadline
    cdef double _last_received
    cdef double _next_ping
    cdef double _ping_sent
    cdef long long _taken
    cdef long long _ping_position
    cdef object _pings
    cdef long long _keepalives

    cpdef list receive_data(self, bytes data, double now)
    @cython.locals(events=list, reader=FrameReader)
    cpdef list receive_step(self, object data, Py_ssize_t size, double now)
    @cython.locals(events=list)
    cpdef list receive_more(self, double now)
    @cython.locals(reader=FrameReader, frames="long long", _=Py_ssize_t)
    cdef _take_step(self, list events, double now)
    cdef _lose_position(self)
    cdef _drop_backlog(self)

    @cython.locals(reader=FrameReader, piece=bytes, last=bint, start=Py_ssize_t)
    cdef _receive_payload(self, list events)
    cdef _take_inflated(self, bytes piece, list events)
    @cython.locals(message=bytes)
    cdef _add_piece(self, bytes piece, bint last, list events)

    @cython.locals(reader=FrameReader, message=bytes)
    cdef _take_gathered(self, list events, Py_ssize_t start)
    cpdef long long payload_to_come(self) except -1
    cpdef Py_ssize_t capacity(self) except -1
    cpdef object get_buffer(self)
    @cython.locals(reader=FrameReader, events=list, start=Py_ssize_t)
    cpdef list receive_in_place(self, Py_ssize_t size, double now)
    @cython.locals(number="long long")
    cdef _watch_arrival(self, Py_ssize_t size, double now)
    @cython.locals(events=list)
    cpdef list fail(self, object error, double now)
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t incoming_size(self) except -1
    cdef _fail(self, object error, double now, list events)

    @cython.locals(reader=FrameReader, remaining="long long", got=object)
    cdef _begin_frame(self)

    cdef _begin_inflating(self)
    @cython.locals(rate=InflateRate, left=Py_ssize_t, allowed=Py_ssize_t, limited=bint, inflated=bytes)
    cdef bytes _inflate(self, bytes piece, bint last)
    cdef _check_utf8(self, bytes data, Py_ssize_t start, Py_ssize_t stop, bint last)
    cdef _forget_message(self)

    @cython.locals(reader=FrameReader, payload=bytes)
    cdef bint _receive_control(self, list events, double now) except -1

    cdef _take_pong(self, bytes payload, double now)
    cdef _violated(self, object error, double now)
    cdef _await_replies(self, double now)
    cdef _send(self, int opcode, object payload)
    cpdef messages_handed_over(self, double now)
    cpdef send_text(self, str message)
    cpdef send_binary(self, bytes message)
    @cython.locals(frame=bytes)
    cpdef bytes send_prepared(self, PreparedMessage shared)
    cpdef ping(self, bytes payload, double now)
    cpdef close(self, object code, object reason, double now)
    cpdef abort(self)
    cpdef tuple _outcome(self)
    cpdef _move(self, object trigger)
    cpdef object next_deadline(self)
    @cython.locals(due=double)
    cdef double _due(self) except? -1
    cpdef double arrival_due(self) except? -1
    cdef double _keepalive_due(self) except? -1
    cpdef reading_paused(self, double now)
    cpdef reading_resumed(self, double now)
    cpdef was_not_read(self, double since, double now)
    cpdef list handle_timeout(self, double now, Py_ssize_t unsent)
    cdef list _keep_alive(self, double now, Py_ssize_t unsent)
    cpdef share_contexts(self, Contexts contexts)
    cpdef release_idle(self, double now)
    cdef long long _taken_by_kernel(self, Py_ssize_t unsent) except? -1
