"""``receive`` and ``send`` for an ASGI application under this package's uvicorn class: a connection as messages.

The handshake answers for what comes before the accept, and after a refusal. Each message of an application passes
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

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from .. import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.pythread import PyThread_get_thread_ident as get_ident
else:
    from threading import get_ident

__all__ = ["ASGIMessages", "Host", "Unopened"]

App: TypeAlias = Callable[..., Awaitable[object]]


class Unopened(Protocol):
    """What answers while there is no connection."""

    async def receive(self) -> dict[str, Any] | None:
        """The next message to the application, which may be the disconnect; None once there is a connection."""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take the application's answer, or a part of it."""


class Host(Protocol):
    """What runs the application."""

    def application_ended(self, result: object, error: BaseException | None) -> bool:
        """Take what it returned or raised, and return whether to raise that."""


class ASGIMessages:
    """One application's channels to its client.

    Either :meth:`open` has been called, and the connection answers, or ``unopened`` does.

    Args:
        unopened: what answers before.
    """

    __slots__ = ("_after_disconnect", "_connection", "_loop", "_thread", "_unopened")

    def __init__(self, unopened: Unopened) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._unopened: Unopened | None = unopened
        self._connection: AsyncioConnection | None = None
        # What receive waits for once the application has received the disconnect: it never happens. One for all calls,
        # held here: a future that only its task refers to is garbage together with that task.
        self._after_disconnect: asyncio.Event | None = None

    def open(self, connection: AsyncioConnection) -> None:
        """Have this connection answer from now on."""
        self._connection = connection
        self._unopened = None

    async def run(self, app: App, scope: dict[str, Any], host: Host) -> None:
        """Run the application, in the task that is made of this.

        Args:
            app: the application.
            scope: its scope.
            host: hears how it ended.
        """
        try:
            result = await app(scope, self.receive, self.send)
        except BaseException as error:
            if host.application_ended(None, error):
                raise
        else:
            host.application_ended(result, None)

    async def receive(self) -> dict[str, Any]:
        """The next message to the application.

        Any number of tasks may receive: each gets one message, in the order in which they asked, and at the end each of
        them gets the disconnect. Later calls wait until their task is cancelled, as under uvicorn's own classes.
        """
        if get_ident() != self._thread:
            received: dict[str, Any] = await on_loop(self._loop, self.receive)
            return received
        if self._after_disconnect is not None:
            await self._after_disconnect.wait()
        if self._unopened is not None:
            message = await self._unopened.receive()
            if message is not None:
                if message["type"] == "websocket.disconnect":
                    self._end()
                return message
        connection = self._connection
        assert connection is not None
        if connection._push:
            connection._check_pull()
        if connection._dispatcher.wakeup.state:
            await connection._take_turn()
        while connection._queue.count == 0:
            if connection._is_over():
                self._end()
                code, reason = connection.close_code or 1006, connection.close_reason or ""
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            await connection._expect_wakeup()
        data = connection._next_message()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data}
        return {"type": "websocket.receive", "bytes": data}

    def _end(self) -> None:
        """The application receives the disconnect, or one of its tasks does."""
        if self._after_disconnect is None:
            self._after_disconnect = asyncio.Event()

    async def _send_on_loop(self, message: MutableMapping[str, Any]) -> None:
        if get_ident() != self._thread:
            await on_loop(self._loop, lambda: self._send_on_loop(message))
        else:
            await self.send(message)

    def send(self, message: MutableMapping[str, Any]) -> Awaitable[None]:
        """Take a message from the application; done once the client keeps up.

        On the event loop's thread it is taken at once. Elsewhere a coroutine takes it when that is awaited, on whatever
        event loop: asgiref's ``async_to_sync`` calls this in a worker's thread, and has the outcome awaited.
        """
        if get_ident() != self._thread:
            return self._send_on_loop(message)
        connection = self._connection
        if connection is None:
            return self._unopened.send(message)  # type: ignore[union-attr]  # there is one of the two
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
