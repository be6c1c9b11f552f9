# C types of broadcast.py; the logic stands there and nowhere else.
cimport cython

from .connection cimport WatershedConnection
from .core.shared cimport SharedMessage


@cython.locals(shared=SharedMessage, connection=WatershedConnection)
cpdef broadcast(object connections, object message)
