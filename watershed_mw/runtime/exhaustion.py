"""When the process has run out of descriptors, threads or memory: connections are refused, and what is open stays."""

from __future__ import annotations

import errno

from ..errors import HandshakeError

__all__ = ["is_exhausted", "unavailable"]

_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC})
# What CPython says where the system gives the process no more threads.
NO_THREAD = "can't start new thread"


def is_exhausted(error: BaseException) -> bool:
    """Whether ``error`` says that the process, or its system, has no more of something."""
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error) == NO_THREAD)


def unavailable(error: BaseException) -> HandshakeError:
    """The refusal, 503, of a request for which ``error`` leaves nothing; it says what is missing."""
    cause = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    refusal = HandshakeError(
        f"expected descriptors, threads and memory for one more connection, got none ({cause}): try again later",
        status=503,
        headers=[("Retry-After", "1")],
    )
    refusal.__cause__ = error
    return refusal
