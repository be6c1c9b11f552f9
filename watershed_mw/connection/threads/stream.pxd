# C types of stream.py; the logic stands there and nowhere else.
cimport cython

from ...core.protocol cimport Protocol
from ...core.receive_queue cimport ReceiveQueue
from ...sockets.blocking cimport BlockingSocket
from ..base cimport WatershedConnection
from .turns cimport Turns

cdef object _OPEN
cdef object _CLOSED


cdef class SharedStream:
    cdef public Protocol core
    cdef public ReceiveQueue queue
    cdef public BlockingSocket socket
    cdef public Turns turns
    cdef public object tracer
    cdef public double looked
    cdef public double watched
    cdef public long long loaded
    cdef public long long written
    cdef public tuple heard

    @cython.locals(core=Protocol)
    cpdef start_reading(self)
    @cython.locals(core=Protocol, sock=BlockingSocket, now=double, events=list, due=list)
    cpdef take_received(self, WatershedConnection connection)
    cpdef run_timeouts(self, WatershedConnection connection, double now)
    @cython.locals(at_once=tuple)
    cdef _queue_events(self, WatershedConnection connection, list events)
    @cython.locals(core=Protocol, sock=BlockingSocket, turns=Turns, writing=bint, position="long long")
    cpdef long long send_at_once(self, WatershedConnection connection, object data) except -1
    @cython.locals(core=Protocol, before="long long")
    cdef _queue_whole_message(self, WatershedConnection connection, object data)
    @cython.locals(core=Protocol, sock=BlockingSocket)
    cpdef load(self)


@cython.locals(queue=ReceiveQueue)
cpdef object take_event(SharedStream stream)
@cython.locals(core=Protocol, sock=BlockingSocket, queue=ReceiveQueue, turns=Turns, reading=bint)
cpdef object receive_alone(SharedStream stream, WatershedConnection connection)
