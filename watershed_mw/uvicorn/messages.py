"""``receive`` and ``send`` as an ASGI application under our uvicorn class has them: messages in place of a connection.

What comes before the accept, and after a refusal, is asked of the door. Each message of an application comes
through here twice, so this file is compiled as well as interpreted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from ..connection.aio.connection import AsyncioConnection
from ..connection.awaitables import NextTurn, mark_coroutine_function, on_loop
from ..connection.base import logger
from ..core.codes import MAX_CLOSE_REASON
from ..core.handshake.headers import shown
from ..core.states import State

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.pythread import PyThread_get_thread_ident as get_ident
else:
    from threading import get_ident

__all__ = ["ASGIMessages", "Door"]

# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN


App: TypeAlias = Callable[..., Awaitable[object]]


class Door(Protocol):
    """What answers while there is no connection."""

    async def receive_unopened(self) -> dict[str, Any] | None:
        """The next message to the application, which may be the disconnect; None once it has accepted."""

    async def send_unopened(self, message: MutableMapping[str, Any]) -> None:
        """Take the application's answer, or a part of it."""


class ASGIMessages:
    """One application's way to its client.

    Attributes:
        connection: what has been accepted, None before.
    """

    __slots__ = ("_disconnected", "_door", "_loop", "_never", "_thread", "connection")

    def __init__(self, door: Door) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._door = door
        self._disconnected = False
        self._never: asyncio.Event | None = None
        self.connection: AsyncioConnection | None = None

    async def run(self, app: App, scope: dict[str, Any], ended: Callable[[object, BaseException | None], bool]) -> None:
        """Run the application, in the task that is made of this.

        Args:
            app: the application.
            scope: its scope.
            ended: given what it returned, or raised; whether that is to be raised on.
        """
        try:
            result = await app(scope, self.receive, self.send)
        except BaseException as error:
            if ended(None, error):
                raise
        else:
            ended(result, None)

    async def receive(self) -> dict[str, Any]:
        """The next message to the application.

        Any number of tasks may receive: each gets one message, in the order in which they asked, and at the end each of
        them gets the disconnect. Whoever asks after it waits until the task is cancelled, as under uvicorn's classes.
        """
        if get_ident() != self._thread:
            message: dict[str, Any] = await on_loop(self._loop, self.receive)
            return message
        if self._disconnected:
            await self._wait_for_ever()
        if self.connection is None:
            unopened = await self._door.receive_unopened()
            if unopened is not None:
                self._disconnected = unopened["type"] == "websocket.disconnect"
                return unopened
        connection = self.connection
        assert connection is not None
        if connection._push:
            connection._check_pull()
        if connection._wakeup.state:
            await connection._take_turn()
        while connection._queue.count == 0:
            if connection._core.state is not _OPEN and connection._is_over():
                self._disconnected = True
                code, reason = connection.close_code or 1006, connection.close_reason or ""
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            if connection._flush_set:
                connection._flush_and_report()  # it has said what it had to say
            await connection._wakeup
        data = connection._next_message()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data}
        return {"type": "websocket.receive", "bytes": data}

    async def _send_on_own_loop(self, message: MutableMapping[str, Any]) -> None:
        if get_ident() != self._thread:
            await on_loop(self._loop, lambda: self._send_on_own_loop(message))
        else:
            await self.send(message)

    async def _wait_for_ever(self) -> None:
        # Not for a future of its own: what nobody but its task holds is collected together with that.
        if self._never is None:
            self._never = asyncio.Event()
        await self._never.wait()

    def send(self, message: MutableMapping[str, Any]) -> Awaitable[None]:
        """Take a message from the application; done once the client keeps up.

        On the event loop's thread it is taken at once. Elsewhere a coroutine takes it when that is awaited, on whatever
        event loop: asgiref's ``async_to_sync`` calls this in a worker's thread, and has the outcome awaited.
        """
        if get_ident() != self._thread:
            return self._send_on_own_loop(message)
        connection = self.connection
        if connection is None:
            return self._door.send_unopened(message)
        known = message if type(message) is dict else dict(message)
        kind = known["type"]
        if kind == "websocket.send":
            data = known.get("bytes")
            if data is None:
                data = known.get("text")
            if data is None:
                raise RuntimeError("expected 'bytes' or 'text' in websocket.send, got neither")
            return connection.send(data)
        if kind == "websocket.close":
            code = known.get("code")
            connection.end(_fit_reason(known.get("reason") or ""), code=1000 if code is None else code)
            return NextTurn()
        raise RuntimeError(f"expected ASGI message 'websocket.send' or 'websocket.close', got {kind!r}")


# By its name: where this is compiled, the class's own attribute is another object.
mark_coroutine_function(getattr(ASGIMessages, "send"))  # noqa: B009


def _fit_reason(reason: Any) -> Any:
    """A close reason of any length as a Close frame can hold it, as applications do not count its bytes."""
    if not isinstance(reason, str) or len(reason) * 4 <= MAX_CLOSE_REASON:
        return reason
    data = reason.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_CLOSE_REASON:
        return reason
    logger.warning(
        "a close reason of %d bytes was cut to the %d that a Close frame can hold: %s",
        len(data),
        MAX_CLOSE_REASON,
        shown(reason),
    )
    return data[:MAX_CLOSE_REASON].decode("utf-8", "ignore")
