# C types of broadcast.py; the logic stands there and nowhere else.
cimport cython

from .base cimport WatershedConnection
from ..core.prepared cimport SharedMessage


@cython.locals(shared=SharedMessage, connection=WatershedConnection)
cpdef broadcast(object connections, object message)
