"""The background: connections whose socket a thread has handed over to the process's event loop.

A :class:`~watershed_mw.ThreadConnection` that runs in the background passes its calls on to the loop. With handlers of
events it stays the connection: a carrier on the loop moves its bytes, and its handlers are called on a bounded pool of
threads, in order and one at a time per connection. With a coroutine function an
:class:`~watershed_mw.AsyncConnection` takes its place, and that function gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Any, cast
from typing import Protocol as Interface

from ...core.protocol import Protocol
from ...core.receive_queue import ReceiveQueue
from ...errors import ConnectionClosed
from ...runtime.loop_thread import (
    LoopFailedError,
    Serving,
    Workers,
    at_failure,
    background_loop,
    on_background_loop,
    result_of,
    submit,
)
from ...sockets.tls_transport import TLSSocketTransport
from ...sockets.tls_views import close_socket
from ..aio.api import AsyncHandler
from ..aio.connection import AsyncioConnection
from ..awaitables import Pending
from ..base import (
    ConnectionInfo,
    WatershedConnection,
    live_connections,
    log_handler_failure,
    logger,
)
from ..handlers import MESSAGES, Handlers

__all__ = ["Background", "BackgroundEvents", "BackgroundHandler", "attach_socket"]


class Handed(Interface):
    """What a connection that was handed over still does itself."""

    _handlers: Handlers

    def _emit_end(self) -> tuple[Any, ...]:
        """Call the handlers of the end."""

    def _note_end(self) -> None:
        """Note when it has ended."""


class Background:
    """The loop's side of a connection that a thread has handed over; its methods may be called from any thread.

    Args:
        core, queue: the connection's protocol and receive queue.
        closed: what its methods raise when it has ended.
    """

    __slots__ = ("_closed", "_core", "_inner", "_loop", "_queue", "_starting", "_workers")

    def __init__(self, core: Protocol, queue: ReceiveQueue, closed: type[ConnectionClosed]) -> None:
        self._loop, self._workers = background_loop()
        self._core = core
        self._queue = queue
        self._closed = closed
        self._starting: asyncio.Task[None] | None = None
        self._inner: AsyncioConnection | None = None

    def start(self, connection: WatershedConnection, info: ConnectionInfo, sock: socket.socket, head: bytes) -> None:
        """Give the loop the connection's socket, and bytes that were read and not yet given to the core.

        Args:
            connection: the connection, which is not kept: it keeps this object.
            info: what its continuation is made with.
        """
        context = copy_context()
        _handed_over[self] = connection, sock

        def begin() -> None:
            self._starting = self._loop.create_task(self._start(connection, info, sock, head, context))
            self._starting.add_done_callback(started)

        def started(task: asyncio.Task[None]) -> None:
            self._starting = None  # the tasks that wait for it refer to it
            _handed_over.pop(self, None)
            if task.cancelled() and self._inner is None:  # the loop has failed, perhaps before the task's first step
                self._give_up(connection, sock, None)

        # The transport remembers the context that it was made in, and a web framework's has a request in it.
        try:
            self._loop.call_soon_threadsafe(begin, context=Context())
        except RuntimeError:  # the loop has failed since it was asked for
            self._give_up(connection, sock, None)

    async def _start(
        self, connection: WatershedConnection, info: ConnectionInfo, sock: socket.socket, head: bytes, context: Context
    ) -> None:
        transport: asyncio.Transport | None = None
        try:
            transport, early = await attach_socket(sock)
            self._inner = self._take_on(connection, info, transport)
            # First the function, then the bytes: handlers that it registers before it waits must see what came early.
            # uvloop would read more before it starts a new task.
            transport.pause_reading()
            self._begin(self._inner, context)
            self._inner.attach(head + early)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this connection alone
            if transport is None and isinstance(error, OSError):
                pass  # the peer was gone before the loop could take over, as the end event reports
            else:
                logger.error("%r cannot run in the background", connection, exc_info=error)
            self._give_up(connection, sock, transport)

    def _give_up(
        self, connection: WatershedConnection, sock: socket.socket, transport: asyncio.Transport | None
    ) -> None:
        _handed_over.pop(self, None)
        self._core.receive_eof()
        if transport is None:
            close_socket(sock)
        else:
            transport.abort()
        with contextlib.suppress(RuntimeError):  # the interpreter is on its way out, and takes no more work
            self._workers.run(cast(Handed, connection)._emit_end)

    def loop_failed(self, connection: WatershedConnection) -> None:
        """The loop has failed: break the stream, and call the handlers of the end."""
        if self._inner is None:
            return  # its socket may still be in use: _on_loop_failure() deals with it later
        self._core.receive_eof()
        self._inner.break_stream()
        with contextlib.suppress(RuntimeError):  # the interpreter is on its way out, and takes no more work
            self._workers.run(cast(Handed, connection)._emit_end)

    def _take_on(
        self, connection: WatershedConnection, info: ConnectionInfo, transport: asyncio.Transport
    ) -> AsyncioConnection:
        """Make what continues the connection on the loop."""
        raise NotImplementedError

    def _begin(self, inner: AsyncioConnection, context: Context) -> None:
        """Start what the application runs on the loop; ``context`` is that of the thread that handed over."""

    # --- what the threads flavour passes on ----------------------------------------------------------------

    def send(self, data: str | bytes) -> None:
        """Send one message and wait until the peer keeps up; raises as ``ThreadConnection.send``."""
        if on_background_loop():
            self._call_here("send", data)
        else:
            self._wait_for(self._send(data))

    async def _send(self, data: str | bytes) -> None:
        await (await self._started()).send(data)

    def call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait until it has begun; raises what it raises."""
        if on_background_loop():
            self._call_here(method, *args, **options)
        else:
            self._wait_for(self._call(method, args, options))

    def call_soon(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the connection on its loop, and wait for nothing."""
        with contextlib.suppress(LoopFailedError):  # and every connection with it
            submit(self._call(method, args, options), self._loop)

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            result_of(submit(work, self._loop))
        except LoopFailedError:
            raise self._closed(1006, "") from None

    async def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        getattr(await self._started(), method)(*args, **options)

    def _call_here(self, method: str, *args: Any, **options: Any) -> None:
        # The loop's own thread must not wait for the loop.
        if self._inner is None:
            _keep_running(self._loop.create_task(self._call(method, args, options)))
        else:
            getattr(self._inner, method)(*args, **options)

    async def _started(self) -> AsyncioConnection:
        if self._inner is None and self._starting is not None:
            await asyncio.wait([self._starting])
        if self._inner is None:
            raise self._closed(1006, "")
        return self._inner


def _on_loop_failure(serving: Serving) -> None:
    for connection in live_connections():
        background = getattr(connection, "_background", None)
        if isinstance(background, Background) and background._loop is serving.loop:
            background.loop_failed(connection)
        elif isinstance(connection, HandledConnection) and connection._loop is serving.loop:
            connection.loop_failed()
    if serving.loop.is_closed():
        for background, (connection, sock) in _handed_over.copy().items():
            if background._loop is serving.loop:
                background._give_up(connection, sock, None)


# Connections that the loop has yet to take over. They may have no other reference, and a closed loop drops its own.
_handed_over: dict[Background, tuple[WatershedConnection, socket.socket]] = {}

at_failure(_on_loop_failure)


class BackgroundEvents(Background):
    """A connection in the background whose handlers of events are called, in threads."""

    __slots__ = ()

    def _take_on(
        self, connection: WatershedConnection, info: ConnectionInfo, transport: asyncio.Transport
    ) -> AsyncioConnection:
        if (trace := info.trace) is not None:
            info = replace(info, trace=lambda probe, _, data: trace(probe, connection, data))
        carrier = _Carrier(info, self._core, transport, queue=self._queue)
        carrier.dispatch_to(connection, self._workers)
        return carrier


class _Carrier(AsyncioConnection):
    """Moves the bytes of a connection whose handlers are called by threads, in order; applications never see it."""

    __slots__ = ()

    def dispatch_to(self, connection: WatershedConnection, workers: Workers) -> None:
        """Call the handlers of ``connection``, including those that are registered later."""
        self._handlers = _PooledHandlers(connection, workers)
        self._push = True


class _PooledHandlers(Handlers):
    """The handlers of another connection, called on a pool of threads."""

    __slots__ = ("_outer", "_workers")

    def __init__(self, connection: WatershedConnection, workers: Workers) -> None:
        super().__init__()
        self._outer = cast(Handed, connection)
        self._workers = workers

    def has(self, event: str) -> bool:
        """Whether there is a handler of ``event``."""
        return self._outer._handlers.has(event)

    def emit(self, connection: Any, event: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Have the handlers of ``event`` called; what is returned is done when they have returned."""
        if event == "end":
            self._outer._note_end()
        if not self.has(event):
            return ()
        call = partial(self._outer._handlers.emit, self._outer, event, args)
        # Not a coroutine, which would warn where the loop fails before it is awaited.
        return (Pending(partial(_in_turn, self._workers, call)),)


class BackgroundHandler(Background):
    """A connection in the background that a coroutine function gets; nothing else needs to refer to it.

    Args:
        core, queue, closed: as of :class:`Background`.
        handler: the coroutine function.
    """

    __slots__ = ("_handler",)

    def __init__(
        self, core: Protocol, queue: ReceiveQueue, closed: type[ConnectionClosed], handler: AsyncHandler
    ) -> None:
        super().__init__(core, queue, closed)
        self._handler = handler

    def _take_on(
        self, connection: WatershedConnection, info: ConnectionInfo, transport: asyncio.Transport
    ) -> AsyncioConnection:
        inner = HandledConnection(info, self._core, transport, queue=self._queue)
        for event, handler in connection._handlers:
            if event not in MESSAGES:
                inner.on(event, partial(_call_in_turn, self._workers, handler))
        return inner

    def _begin(self, inner: AsyncioConnection, context: Context) -> None:
        assert isinstance(inner, HandledConnection)
        inner.handle(self._handler, context)


class HandledConnection(AsyncioConnection):
    """The connection that a coroutine function gets, in place of the one that was handed over."""

    __slots__ = ("_task",)

    def handle(self, handler: AsyncHandler, context: Context) -> None:
        """Run the function; the connection keeps its task."""
        try:
            work = cast(Coroutine[Any, Any, object], handler(self))
        except BaseException as error:  # noqa: BLE001  # it takes other arguments, say
            self._fail(error)
            return
        self._task = self._loop.create_task(work, context=context)
        # Not another coroutine around the function's: each idle connection would keep it.
        self._task.add_done_callback(self._handled)

    def loop_failed(self) -> None:
        """The loop has failed, and the function with it: break the stream."""
        self._core.receive_eof()
        self.break_stream()
        self._note_end()

    def _handled(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            if task.cancelling():
                self.end(code=1001)
            else:  # what it awaited has been cancelled, not the task itself
                self._fail(asyncio.CancelledError())
        elif (error := task.exception()) is None:
            self.warn_if_never_run()
            self.end()
        elif not isinstance(error, ConnectionClosed) or self.sending:
            # A ConnectionClosed while this one is open is of another connection, such as one to an upstream.
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        log_handler_failure(self, error)
        self.end(code=1011)


async def _in_turn(workers: Workers, call: Callable[[], Any]) -> None:
    """Run it where it may block; awaited, so that the next one waits for it."""
    try:
        called = workers.run(call)
    except RuntimeError:
        return  # The interpreter is on its way out, and no pool takes any more work.
    await called


async def _call_in_turn(workers: Workers, handler: Callable[..., Any], *args: Any) -> None:
    await _in_turn(workers, partial(handler, *args))


# The event loop itself refers to its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def _keep_running(task: asyncio.Task[None]) -> None:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


class _Waiting(asyncio.Protocol):
    """The protocol of a new transport until its connection takes over; keeps what comes in the meantime."""

    early = b""

    def data_received(self, data: bytes) -> None:
        self.early += data  # of one iteration at most: uvloop reads at once, whatever connection_made says


async def attach_socket(sock: socket.socket) -> tuple[asyncio.Transport, bytes]:
    """A transport of the running loop around a connected plain or TLS socket, and bytes that it has read."""
    if isinstance(sock, ssl.SSLSocket):
        return TLSSocketTransport(asyncio.get_running_loop(), sock), b""
    sock.setblocking(False)
    transport, waiting = await asyncio.get_running_loop().create_connection(_Waiting, sock=sock)
    return transport, waiting.early
