"""A process out of descriptors, threads or memory refuses new connections and keeps the open ones."""

from __future__ import annotations

import errno

from ..errors import HandshakeError

__all__ = ["is_exhausted", "unavailable"]

_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC})
# CPython's error text when the system refuses another thread.
NO_THREAD = "can't start new thread"


def is_exhausted(error: BaseException) -> bool:
    """Whether ``error`` means that the process or the system is out of a resource."""
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error) == NO_THREAD)


def unavailable(error: BaseException) -> HandshakeError:
    """The refusal (503) of a request for which ``error`` left no resources; it names the missing one."""
    cause = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    refusal = HandshakeError(
        f"expected descriptors, threads and memory for one more connection, got none ({cause}): try again later",
        status=503,
        headers=[("Retry-After", "1")],
    )
    refusal.__cause__ = error
    return refusal
