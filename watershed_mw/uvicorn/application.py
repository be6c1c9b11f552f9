"""The close code that follows from the way an ASGI application ended."""

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
    """The close code for a connection that an application leaves open; logs the application's mistakes.

    Args:
        result: the application's return value.
        error: its exception, or None.
        task: its task.
        stage: the stage of the handshake.
        connection: the accepted connection, or None.

    Returns:
        1000 if the application returned, 1012 if its task was cancelled, 1011 if it failed.
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
        return CloseCode.NORMAL  # the client has disconnected; from another connection it would be a failure
    # Whatever its class: a sys.exit() in one application's task must not end the server.
    logger.error("Exception in ASGI application\n", exc_info=error)
    return CloseCode.INTERNAL_ERROR
