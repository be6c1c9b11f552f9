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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ._implementation import Protocol
from .aio import AsyncConnection
from .connection import EVENTS, Details, WatershedConnection
from .core.flow import ReceiveQueue
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
        sock: its socket.
        head: bytes that were read and not yet given to the core.
    """

    def __init__(
        self,
        connection: WatershedConnection,
        details: Details,
        core: Protocol,
        queue: ReceiveQueue,
        sock: socket.socket,
        head: bytes,
    ) -> None:
        self._loop, self._pool = background_loop()
        self._started: asyncio.Future[AsyncConnection] | Any
        self._started = asyncio.run_coroutine_threadsafe(
            self._start(connection, details, core, queue, sock, head), self._loop
        )

    async def _start(
        self,
        connection: WatershedConnection,
        details: Details,
        core: Protocol,
        queue: ReceiveQueue,
        sock: socket.socket,
        head: bytes,
    ) -> AsyncConnection:
        transport, early = await attach_socket(sock)
        inner = AsyncConnection(replace(details, trace=None), core, transport, queue=queue)
        # To the application there is one connection, whose start has been traced already.
        inner.id = connection.id
        if details.trace is not None:
            trace = details.trace
            inner._trace = lambda probe, _, data: trace(probe, connection, data)
        for event in EVENTS:
            inner.on(event, partial(self._call_handlers, connection, event))
        inner.attach(head + early)
        return inner

    async def _call_handlers(self, connection: WatershedConnection, event: str, *args: Any) -> None:
        await self._loop.run_in_executor(self._pool, connection._emit, event, *args)

    def send(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send one message and wait until the peer keeps up; raises as ``ThreadConnection.send``."""
        copy = data if isinstance(data, (str, bytes)) else bytes(data)
        asyncio.run_coroutine_threadsafe(self._send(copy), self._loop).result()

    async def _send(self, data: str | bytes) -> None:
        inner = await asyncio.wrap_future(self._started)
        await inner.send(data)

    def call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait for it to be begun; raises what it raises."""
        asyncio.run_coroutine_threadsafe(self._call(method, args, options), self._loop).result()

    async def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        inner = await asyncio.wrap_future(self._started)
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
