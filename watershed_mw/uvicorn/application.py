"""How an ASGI application ended, and what that means for its connection."""

from __future__ import annotations

import asyncio

from ..connection.aio.connection import AsyncioConnection
from ..core.codes import CloseCode
from ..errors import ConnectionClosed
from ..runtime.interrupts import is_cancellation
from .handshake import Stage
from .log import logger

__all__ = ["code_after"]


def code_after(
    result: object,
    error: BaseException | None,
    task: asyncio.Task[None] | None,
    stage: Stage,
    connection: AsyncioConnection | None,
) -> CloseCode:
    """The close code for what an application leaves open; mistakes are logged.

    Args:
        result: what it returned.
        error: what it raised.
        task: its task.
        stage: how far the handshake is.
        connection: what has been accepted.

    Returns:
        1000 where it is done, 1012 where its task was cancelled, 1011 where it failed.
    """
    if error is None:
        if stage is Stage.DECIDING:
            logger.error("ASGI callable returned without completing handshake.")
        elif result is not None:
            logger.error("ASGI callable should return None, but returned %r.", result)
        return CloseCode.NORMAL
    if is_cancellation(error, task):
        return CloseCode.SERVICE_RESTART
    if isinstance(error, ConnectionClosed) and (connection is None or not connection.sending):
        return CloseCode.NORMAL  # The client has left; from another connection it would be a failure.
    # Any class: a sys.exit() in one application's task must not end the server.
    logger.error("Exception in ASGI application\n", exc_info=error)
    return CloseCode.INTERNAL_ERROR
