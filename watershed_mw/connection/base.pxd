# C types of base.py; the logic stands there and nowhere else.
cimport cython

from ..core.base cimport BaseProtocol
from ..core.memory_budget cimport Account, Meter
from ..core.receive_queue cimport ReceiveQueue
from ..core.prepared cimport PreparedMessage
from .handlers cimport Handlers


cdef class WatershedConnection:
    cdef object __weakref__
    cdef public Account _account
    cdef public object _closed_as
    cdef public BaseProtocol _core
    cdef public bint _destroyed
    cdef public bint _end_emitted
    cdef public bint _push
    cdef public bint _ran
    cdef public object _ended_at
    cdef public object _error
    cdef public object _handler_error
    cdef public Handlers _handlers
    cdef public object _limits
    cdef public Meter _meter
    cdef public double _opened
    cdef public ReceiveQueue _queue
    cdef public object _shutdown_code
    cdef public object _state
    cdef public object _on_ended
    cdef public object _trace
    cdef public object id
    cdef public object local
    cdef public object protocol
    cdef public object remote
    cdef public object request

    cpdef bint _is_report_due(self, Py_ssize_t held) except -1
    @cython.locals(account=Account, incoming=Py_ssize_t, queued=Py_ssize_t)
    cpdef _report_memory(self, Py_ssize_t unsent, Py_ssize_t taking=*)
    cpdef tuple _emit_end(self)
    cpdef _note_end(self)
    cpdef _queue_message(self, object data)
    cpdef _send_prepared(self, PreparedMessage shared)
