# C types of connection.py; the logic stands there and nowhere else.
cimport cython

from .core.conversation cimport Conversation
from .core.queue cimport ReceiveQueue
from .core.shared cimport SharedMessage


cdef class WatershedConnection:
    cdef dict __dict__
    cdef object __weakref__
    cdef public bint _close_traced
    cdef public Conversation _core
    cdef public bint _destroyed
    cdef public object _details
    cdef public bint _end_emitted
    cdef public object _ended_at
    cdef public object _error
    cdef public object _handler_error
    cdef public dict _handlers
    cdef public double _opened
    cdef public bint _push
    cdef public ReceiveQueue _queue
    cdef public object _trace
    cdef public object id
    cdef public object local
    cdef public object protocol
    cdef public object remote
    cdef public object request

    @cython.locals(at_once=list)
    cpdef list _take(self, list events)
    cpdef list _emit_event(self, object event)
    @cython.locals(results=list)
    cpdef list _emit(self, str event, tuple args)
    cpdef object _take_message(self)
    cpdef list _emit_end(self)
    cpdef _note_end(self)
    cpdef _queue_message(self, object data)
    cpdef _send_shared(self, SharedMessage shared)
