"""Connections of threads that would rather do something else: one event-loop thread per process.

A :class:`~watershed_mw.ThreadConnection` that runs in the background has given its socket to an
:class:`~watershed_mw.AsyncConnection` on that loop; its handlers are called on a bounded pool of
threads, in order and one at a time per connection. Threads start at first use, once per process id.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ._implementation import Protocol
from .aio_connection import AsyncioConnection
from .connection import EVENTS, Details, WatershedConnection, unlist
from .core.flow import ReceiveQueue
from .sockets import close_socket
from .tls import TLSSocketTransport

__all__ = ["Background", "attach_socket", "background_loop"]

# Handlers that block hold one of these threads each; the others' messages wait in their bounded queues.
_POOL_SIZE = 32

_lock = threading.Lock()
_pid = 0
_loop: asyncio.AbstractEventLoop | None = None
_pool: ThreadPoolExecutor | None = None


def background_loop() -> tuple[asyncio.AbstractEventLoop, ThreadPoolExecutor]:
    """The process's event loop in its own daemon thread, and its pool for handlers."""
    global _pid, _loop, _pool
    with _lock:
        if _loop is None or _pool is None or _pid != os.getpid():
            # After a fork the parent's loop must not be touched: the two share one epoll set.
            _loop, _pool, _pid = _new_loop(), ThreadPoolExecutor(_POOL_SIZE, "watershed-pool"), os.getpid()
            threading.Thread(target=_loop.run_forever, name="watershed-loop", daemon=True).start()
        return _loop, _pool


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Background:
    """The loop's side of a connection that a thread has handed over.

    Args:
        connection: the threads flavour, whose handlers are called.
        details, core, queue: its inner parts, as they are.
    """

    def __init__(self, connection: WatershedConnection, details: Details, core: Protocol, queue: ReceiveQueue) -> None:
        self._loop, self._pool = background_loop()
        self._connection = connection
        self._details = details
        self._core = core
        self._queue = queue
        self._inner: Future[AsyncioConnection] = Future()

    def start(self, sock: socket.socket, head: bytes) -> None:
        """Give the loop the socket, and bytes that were read and not yet given to the core."""
        asyncio.run_coroutine_threadsafe(self._start(sock, head), self._loop)

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
        unlist(inner)
        if self._details.trace is not None:
            trace = self._details.trace
            inner._trace = lambda probe, _, data: trace(probe, self._connection, data)
        for event in EVENTS:
            inner.on(event, partial(self._call_handlers, event))
        self._inner.set_result(inner)
        inner.attach(head + early)

    async def _tell_of_the_end(self, sock: socket.socket) -> None:
        close_socket(sock)
        self._core.receive_eof()
        self._inner.set_exception(self._connection._closed_error())
        await self._loop.run_in_executor(self._pool, self._connection._emit_end)

    async def _call_handlers(self, event: str, *args: Any) -> None:
        if event == "end":
            self._connection._note_end()
        await self._loop.run_in_executor(self._pool, self._connection._emit, event, *args)

    def send(self, data: str | bytes) -> None:
        """Send one message and wait until the peer keeps up; raises as ``ThreadConnection.send``."""
        asyncio.run_coroutine_threadsafe(self._send(data), self._loop).result()

    async def _send(self, data: str | bytes) -> None:
        inner = await asyncio.wrap_future(self._inner)
        await inner.send(data)

    def call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait until it has begun; raises what it raises."""
        asyncio.run_coroutine_threadsafe(self._call(method, args, options), self._loop).result()

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
