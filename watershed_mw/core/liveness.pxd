# C types of liveness.py, which holds all of the logic.
cimport cython

from .frames.codec cimport FrameWriter
from .pace cimport Arrival

cdef double inf
cdef int _PING
cdef int _PONG


@cython.final
cdef class Liveness:
    cdef double _ping_interval
    cdef double _ping_timeout
    cdef double _message_timeout
    cdef public double last_received
    cdef readonly object latency
    cdef public Arrival arrival
    cdef double _paused_at
    cdef double _next_ping
    cdef double _ping_sent
    cdef long long _ping_position
    cdef long long _taken
    cdef long long _keepalives
    cdef object _pings
    cdef FrameWriter _outgoing
    cdef bytes _pending_pong

    cpdef ping(self, bytes payload, double now)
    cpdef answer(self, bytes payload, bint later)
    cpdef writing_resumed(self)
    cpdef forget_pong(self)
    cpdef pong_received(self, bytes payload, double now)
    cpdef double keepalive_due(self) except? -1
    cpdef bint unanswered(self) except -1
    cpdef ping_to_keep_alive(self, long long taken, double now)
    cpdef bint silence_proves_nothing(self, long long taken, bint unread, double now) except -1
    cpdef backlog_read(self, double now)
    cpdef watch_arrival(self, long long number, long long header, long long position, double now)
    cpdef reading_paused(self, double now)
    cpdef reading_resumed(self, double now)
    cpdef was_not_read(self, double since, double now)
