# C types of steps.py; the logic stands there and nowhere else.
cimport cython

from ...sockets.blocking cimport BlockingSocket
from ..base cimport WatershedConnection
from ...core.protocol cimport Protocol
from ...core.receive_queue cimport ReceiveQueue

cdef object _OPEN
cdef object _CLOSED


cdef class ThreadsSteps(WatershedConnection):
    cdef public BlockingSocket _socket
    cdef public object _state
    cdef public long long _reading
    cdef public long long _writing
    cdef public list _gates
    cdef public double _looked
    cdef public double _watched
    cdef public long long _loaded
    cdef public long long _written
    cdef public tuple _heard
    cdef public bint _closing

    @cython.locals(core=Protocol)
    cpdef _reading_begins(self)
    @cython.locals(core=Protocol, sock=BlockingSocket, now=double, events=list, due=list)
    cdef _take_bytes(self)
    cpdef _take_received(self)
    @cython.locals(at_once=tuple)
    cdef _queue_events(self, list events)
    @cython.locals(core=Protocol, sock=BlockingSocket, writing=bint, position="long long")
    cpdef long long _send_at_once(self, object data) except -1
    @cython.locals(core=Protocol, before="long long")
    cdef _queue_whole_message(self, object data)
    @cython.locals(core=Protocol, sock=BlockingSocket)
    cdef _load(self)
    cpdef _load_socket(self)


@cython.locals(queue=ReceiveQueue)
cpdef object take_event(ThreadsSteps connection)
@cython.locals(core=Protocol, sock=BlockingSocket, queue=ReceiveQueue, reading=bint)
cpdef object receive_alone(ThreadsSteps connection)
