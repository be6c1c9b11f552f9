# C types of protocol.py, which holds all of the logic.
cimport cython

from .base cimport BaseProtocol
from .deflate cimport Contexts, Deflate
from .frames.codec cimport FrameReader, FrameWriter
from .incoming cimport IncomingMessage
from .liveness cimport Liveness
from .pace cimport Arrival, InflateRate
from .prepared cimport PreparedMessage

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
cdef object _ENDING
cdef object _CLOSED


@cython.final
cdef class Receiver:
    cdef FrameReader _reader
    cdef object _limits
    cdef Deflate _deflate
    cdef Liveness _liveness
    cdef Py_ssize_t _max_size
    cdef Py_ssize_t _frames_per_step
    cdef Py_ssize_t _bytes_per_step
    cdef object _rate
    cdef InflateRate _inflate_rate
    cdef long long _step_ends
    cdef long long _unwatched
    cdef bytes _control
    cdef readonly bint backlog
    cdef readonly long long work
    cdef readonly IncomingMessage incoming
    cdef readonly bint stopped
    cdef readonly bint only_messages
    cdef readonly long long frames_received
    cdef readonly long long messages_received
    cdef readonly long long bytes_received

    cpdef stop(self)
    @cython.locals(events=list, reader=FrameReader)
    cpdef list step(self, object data, Py_ssize_t size, double now)
    @cython.locals(events=list)
    cpdef list next_step(self, double now)
    cdef void _note_bytes(self, Py_ssize_t size, double now) noexcept
    @cython.locals(reader=FrameReader, frames="long long", _=Py_ssize_t)
    cdef _take_step(self, list events, double now)
    cdef _fail(self, object error, list events)
    @cython.locals(whole_message=bint, number="long long", header="long long")
    cdef _watch_arrival(self, Py_ssize_t size, double now)
    @cython.locals(reader=FrameReader)
    cdef _receive_payload(self, list events, double now)
    @cython.locals(reader=FrameReader, deflate=Deflate, rate=InflateRate)
    cdef _begin_message(self, double now)
    @cython.locals(incoming=IncomingMessage)
    cdef _take_message(self, object message, list events)
    @cython.locals(reader=FrameReader)
    cdef bint _receive_control(self, list events, double now) except -1
    cpdef long long payload_to_come(self) noexcept
    cpdef Py_ssize_t capacity(self) except -1
    cpdef object get_buffer(self)
    @cython.locals(events=list)
    cpdef list step_in_place(self, Py_ssize_t size, double now)


cdef object failed(object error)


cdef class Protocol(BaseProtocol):
    cdef readonly FrameWriter outgoing
    cdef readonly Receiver receiver
    cdef readonly Liveness liveness
    cdef Deflate _deflate
    cdef object _limits
    cdef bint _client
    cdef public bint read_paused
    cdef double _deadline

    @cython.locals(events=list)
    cpdef list receive_data(self, bytes data, double now)
    @cython.locals(events=list)
    cpdef list receive_step(self, object data, Py_ssize_t size, double now)
    @cython.locals(events=list)
    cpdef list receive_more(self, double now)
    @cython.locals(events=list)
    cpdef list receive_in_place(self, Py_ssize_t size, double now)
    cpdef receive_eof(self)
    cdef _lose_position(self)
    cdef list _follow(self, list events, double now)
    cpdef list fail(self, object error, double now)
    cpdef object counts(self)
    cpdef Py_ssize_t incoming_size(self) except -1
    cdef _violated(self, object error, double now)
    cdef _await_replies(self, double now)
    cpdef writing_resumed(self)
    cdef _send_failure(self)
    @cython.locals(payload=bytes)
    cdef _send_close(self, object code, object reason)
    cdef _send(self, int opcode, object payload)
    cpdef messages_handed_over(self, double now)
    cpdef send_text(self, str message)
    cpdef send_binary(self, bytes message)
    @cython.locals(frame=bytes)
    cpdef bytes send_prepared(self, PreparedMessage shared)
    cpdef ping(self, bytes payload, double now)
    cpdef close(self, object code, object reason, double now)
    cpdef abort(self)
    cpdef bytes data_to_send(self)
    cpdef tuple _outcome(self)
    cpdef _move(self, object trigger)
    cpdef object next_deadline(self)
    @cython.locals(due=double)
    cdef double _due(self) except? -1
    @cython.locals(arrival=Arrival)
    cpdef double arrival_due(self) except? -1
    cpdef reading_paused(self, double now)
    cpdef reading_resumed(self, double now)
    @cython.locals(arrival=Arrival)
    cpdef list handle_timeout(self, double now, Py_ssize_t unsent)
    @cython.locals(liveness=Liveness, outgoing=FrameWriter, unread=bint, taken="long long")
    cdef list _keep_alive(self, double now, Py_ssize_t unsent)
    cpdef share_contexts(self, Contexts contexts)
    cpdef release_idle(self, double now)
