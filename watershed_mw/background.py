"""Connections of threads that would rather do something else, handed to the process's event loop.

A :class:`~watershed_mw.ThreadConnection` that runs in the background has given its socket to an
:class:`~watershed_mw.AsyncConnection` on that loop. Either its handlers are called on a bounded pool of
threads, in order and one at a time per connection; or a coroutine function gets that connection itself.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from ._implementation import Protocol
from .aio import AsyncConnection
from .aio_connection import AsyncioConnection
from .connection import EVENTS, Details, WatershedConnection, logger, unlist
from .core.flow import ReceiveQueue
from .errors import ConnectionClosed
from .loop_thread import background_loop, on_background_loop
from .sockets import close_socket
from .tls import TLSSocketTransport

__all__ = ["AsyncHandler", "Background", "attach_socket"]

AsyncHandler: TypeAlias = Callable[[AsyncConnection], Awaitable[object]]
"""A coroutine function that is given a connection; what it leaves open is ended when it returns."""


class Background:
    """The loop's side of a connection that a thread has handed over.

    Args:
        connection: the threads flavour, whose handlers are called.
        details, core, queue: its inner parts, as they are.
        handler: gets the connection on the loop, instead of the handlers of events.
    """

    def __init__(
        self,
        connection: WatershedConnection,
        details: Details,
        core: Protocol,
        queue: ReceiveQueue,
        handler: AsyncHandler | None = None,
    ) -> None:
        self._loop, self._workers = background_loop()
        self._connection = connection
        self._details = details
        self._core = core
        self._queue = queue
        self._handler = handler
        self._inner: Future[AsyncioConnection] = Future()
        self._task: asyncio.Task[None] | None = None

    def start(self, sock: socket.socket, head: bytes) -> None:
        """Give the loop the socket, and bytes that were read and not yet given to the core."""
        self._soon(self._start(sock, head))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        def begin() -> None:
            self._task = self._loop.create_task(work)

        self._loop.call_soon_threadsafe(begin)

    async def _start(self, sock: socket.socket, head: bytes) -> None:
        try:
            transport, early = await attach_socket(sock)
        except OSError:
            # The peer was gone before the loop could have it: all that is left is to say so.
            await self._tell_of_the_end(sock)
            return
        inner = AsyncioConnection(replace(self._details, trace=None), self._core, transport, queue=self._queue)
        # To the application there is one connection, whose start has been traced already.
        inner.id = self._connection.id
        inner.request = self._connection.request
        unlist(inner)
        if self._details.trace is not None:
            trace = self._details.trace
            inner._trace = lambda probe, _, data: trace(probe, self._connection, data)
        events = EVENTS if self._handler is None else ("end",)
        for event in events:
            inner.on(event, partial(self._call_handlers, event))
        self._inner.set_result(inner)
        inner.attach(head + early)
        if self._handler is not None:
            await self._run(self._handler, inner)

    async def _run(self, handler: AsyncHandler, inner: AsyncioConnection) -> None:
        try:
            await handler(inner)
        except ConnectionClosed as error:
            if inner.sending:
                # It tells of another connection, such as one to a database.
                logger.error("the handler of %r raised", inner, exc_info=error)
                inner.end(code=1011)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this connection alone
            logger.error("the handler of %r raised", inner, exc_info=error)
            inner.end(code=1011)
        except BaseException:
            inner.end(code=1001)
            raise
        else:
            inner.end()

    async def _tell_of_the_end(self, sock: socket.socket) -> None:
        close_socket(sock)
        self._core.receive_eof()
        self._inner.set_exception(self._connection._closed_error())
        await self._workers.run(self._connection._emit_end)

    async def _call_handlers(self, event: str, *args: Any) -> None:
        if event == "end":
            self._connection._note_end()
            if not self._connection._handlers.get("end"):
                return
        try:
            called = self._workers.run(partial(self._connection._emit, event, *args))
        except RuntimeError:
            return  # The interpreter is on its way out, and no pool takes any more work.
        await called

    def send(self, data: str | bytes) -> None:
        """Send one message and wait until the peer keeps up; raises as ``ThreadConnection.send``."""
        if on_background_loop():
            self._inner.result().send(data)  # the loop's own thread must not wait for the loop
            return
        asyncio.run_coroutine_threadsafe(self._send(data), self._loop).result()

    async def _send(self, data: str | bytes) -> None:
        inner = await asyncio.wrap_future(self._inner)
        await inner.send(data)

    def call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait until it has begun; raises what it raises."""
        if on_background_loop():
            getattr(self._inner.result(), method)(*args, **options)
            return
        asyncio.run_coroutine_threadsafe(self._call(method, args, options), self._loop).result()

    def call_soon(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait for nothing."""
        asyncio.run_coroutine_threadsafe(self._call(method, args, options), self._loop)

    async def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        inner = await asyncio.wrap_future(self._inner)
        getattr(inner, method)(*args, **options)


class _Waiting(asyncio.Protocol):
    """Has a new transport until its connection takes over, and keeps what comes meanwhile."""

    early = b""

    def data_received(self, data: bytes) -> None:
        self.early += data  # one turn of the loop's worth: uvloop reads at once, whatever connection_made says


async def attach_socket(sock: socket.socket) -> tuple[asyncio.Transport, bytes]:
    """A transport of the running loop around a connected plain or TLS socket, and bytes that it has read."""
    if isinstance(sock, ssl.SSLSocket):
        return TLSSocketTransport(asyncio.get_running_loop(), sock), b""
    sock.setblocking(False)
    transport, waiting = await asyncio.get_running_loop().create_connection(_Waiting, sock=sock)
    return transport, waiting.early
