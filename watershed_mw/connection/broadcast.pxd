# C types of broadcast.py; the logic stands there and nowhere else.
cimport cython

from .base cimport WatershedConnection
from ..core.prepared cimport PreparedMessage


@cython.locals(shared=PreparedMessage, connection=WatershedConnection)
cpdef broadcast(object connections, object message)
