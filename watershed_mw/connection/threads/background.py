"""Connections of threads that would rather do something else, handed to the process's event loop.

A :class:`~watershed_mw.ThreadConnection` that runs in the background has given its socket to an
:class:`~watershed_mw.AsyncConnection` on that loop. Either its handlers are called on a bounded pool of
threads, in order and one at a time per connection; or a coroutine function gets that connection itself.
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
from ...sockets.tls_views import break_stream, close_socket
from ..aio.api import AsyncHandler
from ..aio.connection import AsyncioConnection
from ..awaitables import Pending
from ..base import (
    MESSAGES,
    ConnectionInfo,
    WatershedConnection,
    emit_end,
    handlers_of,
    live_connections,
    log_handler_failure,
    logger,
    note_end,
    stand_in,
    trace_with,
)

__all__ = ["Background", "BackgroundEvents", "BackgroundHandler", "attach_socket"]


class Background:
    """Where a connection is that a thread has handed over: on the loop, which can be asked from any thread.

    Args:
        info, core, queue: the inner parts of the threads flavour, as they are.
    """

    __slots__ = ("_core", "_info", "_inner", "_loop", "_queue", "_starting", "_workers")

    def __init__(self, info: ConnectionInfo, core: Protocol, queue: ReceiveQueue) -> None:
        self._loop, self._workers = background_loop()
        self._info = info
        self._core = core
        self._queue = queue
        self._starting: asyncio.Task[None] | None = None
        self._inner: AsyncioConnection | None = None

    def start(self, connection: WatershedConnection, sock: socket.socket, head: bytes) -> None:
        """Give the loop the connection's socket, and bytes that were read and not yet given to the core."""

        context = copy_context()
        _handed_over[self] = connection, sock

        def begin() -> None:
            self._starting = self._loop.create_task(self._start(connection, sock, head, context))
            self._starting.add_done_callback(started)

        def started(task: asyncio.Task[None]) -> None:
            self._starting = None  # those who wait for it have it
            _handed_over.pop(self, None)
            if task.cancelled() and self._inner is None:  # the loop has failed, perhaps before the task's first step
                self._give_up(connection, sock, None)

        # The transport remembers the context that it was made in, and a web framework's has a request in it.
        try:
            self._loop.call_soon_threadsafe(begin, context=Context())
        except RuntimeError:  # the loop has failed since it was asked for
            self._give_up(connection, sock, None)

    async def _start(self, connection: WatershedConnection, sock: socket.socket, head: bytes, context: Context) -> None:
        transport: asyncio.Transport | None = None
        try:
            transport, early = await attach_socket(sock)
            # To the application there is one connection, whose start has been traced already.
            self._inner = self._take_on(connection, transport)
            # First the function, then the bytes: what it registers before it waits must see what has come early. uvloop
            # looks for more of them before it takes up a new task, unless it is told not to.
            transport.pause_reading()
            self._begin(self._inner, context)
            self._inner.attach(head + early)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this connection alone
            if transport is None and isinstance(error, OSError):
                pass  # the peer was gone before the loop could have it, as the end itself tells
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
            self._workers.run(partial(emit_end, connection))

    def loop_failed(self, connection: WatershedConnection) -> None:
        """The loop has failed: the peer has to see the end, and the application is told of it."""
        if self._inner is None:
            return  # its socket may be in use: see _on_loop_failure() for what comes of it
        self._core.receive_eof()
        self._inner.break_stream()
        with contextlib.suppress(RuntimeError):  # the interpreter is on its way out, and takes no more work
            self._workers.run(partial(emit_end, connection))

    def _take_on(self, connection: WatershedConnection, transport: asyncio.Transport) -> AsyncioConnection:
        raise NotImplementedError

    def _begin(self, inner: AsyncioConnection, context: Context) -> None:
        """It is there; ``context`` is that of the thread which had it."""

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
            raise self._info.closed(1006, "") from None

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
            raise self._info.closed(1006, "")
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


# Those that the loop has yet to take over. Nobody else need hold on to them, and a loop that is closed lets go of them.
_handed_over: dict[Background, tuple[WatershedConnection, socket.socket]] = {}

at_failure(_on_loop_failure)


class BackgroundEvents(Background):
    """A connection in the background whose handlers of events are called, in threads."""

    __slots__ = ()

    def _take_on(self, connection: WatershedConnection, transport: asyncio.Transport) -> AsyncioConnection:
        info = replace(self._info, trace=None, ended=None)
        inner = _EventsOnThreads(info, self._core, transport, queue=self._queue)
        stand_in(inner, connection, alone=False)
        inner.dispatch_to(connection, self._workers)
        if (trace := self._info.trace) is not None:
            trace_with(inner, lambda probe, _, data: trace(probe, connection, data))
        return inner


class _EventsOnThreads(AsyncioConnection):
    """The loop's side of a connection whose handlers are called by threads: on the pool, in order."""

    __slots__ = ("_outer", "_workers")

    def dispatch_to(self, connection: WatershedConnection, workers: Workers) -> None:
        """Call the handlers of this one, those that are registered later as well."""
        self._outer = connection
        self._workers = workers
        self._push = True

    def _has_handler(self, event: str) -> bool:
        return self._outer._has_handler(event)

    def _emit(self, event: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if event == "end":
            note_end(self._outer)
        if not self._has_handler(event):
            return ()
        # No coroutine, which would warn where the loop fails before anybody awaits it.
        return (Pending(partial(_in_turn, self._workers, partial(self._outer._emit, event, args))),)


class BackgroundHandler(Background):
    """A connection in the background that a coroutine function has got, and nobody else need hold on to.

    Args:
        info, core, queue: as for any.
        handler: the coroutine function.
    """

    __slots__ = ("_handler",)

    def __init__(self, info: ConnectionInfo, core: Protocol, queue: ReceiveQueue, handler: AsyncHandler) -> None:
        super().__init__(info, core, queue)
        self._handler = handler

    def _take_on(self, connection: WatershedConnection, transport: asyncio.Transport) -> AsyncioConnection:
        info = self._info if self._info.trace is None else replace(self._info, trace=None)
        inner = HandledConnection(info, self._core, transport, queue=self._queue)
        trace_with(inner, self._info.trace)
        stand_in(inner, connection, alone=True)
        for event, handler in handlers_of(connection):
            if event not in MESSAGES:
                inner.on(event, partial(_call_in_turn, self._workers, handler))
        return inner

    def _begin(self, inner: AsyncioConnection, context: Context) -> None:
        assert isinstance(inner, HandledConnection)
        inner.handle(self._handler, context)


class HandledConnection(AsyncioConnection):
    """The connection that a coroutine function has got."""

    __slots__ = ("_task",)

    def handle(self, handler: AsyncHandler, context: Context) -> None:
        """Run the function, to whose task nothing else need hold on."""
        try:
            work = cast(Coroutine[Any, Any, object], handler(self))
        except BaseException as error:  # noqa: BLE001  # it takes other arguments, say
            self._fail(error)
            return
        self._task = self._loop.create_task(work, context=context)
        # No coroutine around the function's: each idle connection would keep it.
        self._task.add_done_callback(self._handled)

    def loop_failed(self) -> None:
        """The loop has failed, and the function with it: the peer has to see the end."""
        self._core.receive_eof()
        break_stream(self._transport)
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
            # A ConnectionClosed of an open one tells of another connection, such as one to a database.
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        log_handler_failure(self, error)
        self.end(code=1011)


async def _in_turn(workers: Workers, call: Callable[[], Any]) -> None:
    """Run it where it may block; whoever awaits this has the next one wait."""
    try:
        called = workers.run(call)
    except RuntimeError:
        return  # The interpreter is on its way out, and no pool takes any more work.
    await called


async def _call_in_turn(workers: Workers, handler: Callable[..., Any], *args: Any) -> None:
    await _in_turn(workers, partial(handler, *args))


# A loop holds on to its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def _keep_running(task: asyncio.Task[None]) -> None:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


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
