"""The asyncio flavour over ASGI messages, for servers that do not expose frames; on asyncio and on trio.

Three tasks run beside the application for the lifetime of its connection. One receives from the server, so that a
disconnect is noticed immediately; one sends, in order; one calls handlers. They share one event; the protocol state is
in :mod:`watershed_mw.core.message_protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..connection.aio.api import AsyncConnection
from ..connection.awaitables import Pending
from ..connection.base import ConnectionInfo, Handler, log_handler_failure
from ..core.codes import CloseCode, encode_close
from ..core.memory_budget import MAX_PAUSE
from ..core.message_protocol import MessageProtocol
from ..core.payloads import Sendable, as_message
from ..errors import ConnectionClosed, LocalProtocolError
from .channels import Message, Receive, Send
from .pumps import Reader, Writer, await_results
from .servers import ASGIServer
from .tasks import Changes, LoopThread, WaitQueue

__all__ = ["PortableConnection"]

# Above this many unsent bytes, "drain" handlers are called once the server has taken all of them; asyncio's own mark.
_HIGH_WATER = 64 * 2**10


class PortableConnection(AsyncConnection):
    """An :class:`~watershed_mw.AsyncConnection` over ASGI messages.

    Args:
        info: the connection's description.
        core: the protocol state.
        server: the server, for errors about its limitations.
    """

    __slots__ = (
        "_behind",
        "_changes",
        "_drained",
        "_end_reported",
        "_held_back",
        "_loop_thread",
        "_receivers",
        "_running",
        "_server",
        "_writing",
    )

    _core: MessageProtocol

    def __init__(
        self,
        info: ConnectionInfo,
        core: MessageProtocol,
        server: ASGIServer,
    ) -> None:
        self._server = server
        self._loop_thread = LoopThread()
        self._changes = changes = Changes()
        self._writing = True
        self._end_reported = False
        self._receivers = WaitQueue(changes)
        self._running = False
        self._behind = False
        self._drained = False
        self._held_back = False
        super().__init__(info, core)

    def start(self, tasks: TaskGroup, receive: Receive, send: Send) -> None:
        """Start the tasks that receive, send and call handlers.

        Args:
            tasks: the task group to start them in.
            receive, send: the application's ASGI channels.
        """
        core, changes, timeout = self._core, self._changes, self._limits.close_timeout
        reader = Reader(receive, core, changes, self._wait_for_capacity, self._received, self._failed)
        writer = Writer(
            *(send, core, changes, self._server, reader, timeout),
            *(self._taken_by_server, self._failed, self._writer_stopped),
        )
        for work in (reader.run, writer.run, self._dispatch):
            tasks.start_soon(work)

    async def finish(self, code: int) -> None:
        """The application has returned or raised: end the connection within ``close_timeout``."""
        if code == 1000:
            self.warn_if_never_run()
        if self._server.sends(code):
            self._queue_close(code, "")
        else:
            # The exception behind a 1011 propagates to the server, which then sends 1011 itself.
            self._core.receive_disconnect(code, "")
        self._changes.notify()
        with anyio.move_on_after(self._limits.close_timeout):
            # A connection that fails locally has ended before its Close is sent.
            while self._writing or not self._finished():
                await self._changes.wait()
        self._note_end()

    # --- what applications call --------------------------------------------------------------------------

    def on(self, event: str, handler: Handler | None = None) -> Any:
        """As the base class says.

        Raises:
            UnsupportedServerError: ``ping`` and ``pong``, which the server handles itself.
        """
        if event in ("ping", "pong"):
            raise self._server.unsupported(f"to report {event.upper()} frames")
        return super().on(event, handler)

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """As the base class says."""
        if not self._is_on_loop_thread():
            message: str | bytes = await self._await_on_loop(lambda: self.receive(timeout))
            return message
        self._check_pull()
        if self._receivers.is_waiting or not self._queue:
            with anyio.fail_after(timeout):
                await self._receivers.wait(lambda: bool(self._queue), lambda: self._core.ended and not self._queue)
        if not self._queue:
            await self._pause()
            raise self._closed_error()
        message = self._message_after(self._queue.take())
        self._update_memory()
        self._changes.notify()
        return message

    async def _pause(self) -> None:
        await anyio.lowlevel.checkpoint()

    def send(self, data: Sendable) -> Awaitable[None]:
        """As the base class says; the awaitable completes when the server has taken the message."""
        if not self._is_on_loop_thread():
            return self._send_from_thread(data)
        message = as_message(data)
        if not message and not self._server.empty_messages:
            raise self._server.unsupported("to send an empty message")
        piled_up = self._core.unsent_size
        try:
            self._queue_message(message)
        except ConnectionClosed as error:
            return self._refuse(error)
        if piled_up > self._limits.max_unsent_bytes:
            self._error = LocalProtocolError(
                f"expected the peer to read, or the application to wait for send(); got {piled_up} bytes unsent, "
                f"more than max_unsent_bytes"
            )
            self._core.abort()
        self._update_memory()
        self._behind = self._behind or self._core.unsent_size > _HIGH_WATER
        self._changes.notify()
        number = self._core.items_queued
        return Pending(lambda: self._taken(number))

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """As the base class says. Raises :class:`UnsupportedServerError`."""
        raise self._server.unsupported("to send a PING")

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """As the base class says. Raises :class:`UnsupportedServerError` where the server does not send this code."""
        encode_close(code, reason)  # raises here: on the other thread it could only be logged
        if code != CloseCode.NO_STATUS and not self._server.sends(code):
            raise self._server.unsupported(f"to close with {code}")
        if not self._is_on_loop_thread():
            return self._end_from_thread(reason, code)
        self._queue_close(code, reason)
        self._changes.notify()
        return Pending(self.wait_closed)

    def destroy(self) -> None:
        """As the base class says. Raises :class:`UnsupportedServerError`."""
        raise self._server.unsupported("to drop the stream without a Close")

    async def run(self) -> tuple[int, str]:
        """As the base class says."""
        self._push = self._running = self._ran = True
        self._changes.notify()
        try:
            if self._finished():
                await self._pause()
            while not self._finished():
                await self._changes.wait()
        finally:
            self._running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """Wait until the server has taken our Close or reported the disconnect."""
        if not self._is_on_loop_thread():
            await self._await_on_loop(self.wait_closed)
            return
        self._ran = True
        if self._core.ended:
            await self._pause()
        with anyio.move_on_after(self._limits.close_timeout if not self._core.sending else None):
            while not self._core.ended:
                await self._changes.wait()

    # --- called by the base class ----------------------------------------------------------------------------

    async def _await_on_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return await self._loop_thread.run(call)

    def _is_on_loop_thread(self) -> bool:
        return self._loop_thread.is_current

    def _call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self._loop_thread.call_soon(call)

    def _finished(self) -> bool:
        return self._end_reported

    def _handlers_changed(self) -> None:
        self._changes.notify()

    async def _taken(self, number: int) -> None:
        while self._core.items_taken < number and not self._core.ended:
            await self._changes.wait()

    # --- memory ---------------------------------------------------------------------------------------------

    def _update_memory(self) -> None:
        """Report the bytes buffered here, if due; the server does not reveal those that it buffers."""
        unsent = self._core.unsent_size
        held = self._queue.size + unsent
        if self._is_report_due(held):
            self._report_memory(unsent)

    def _memory_changed(self) -> None:
        """As the base class says."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._call_soon_threadsafe(self._apply_memory)

    def _apply_memory(self) -> None:
        account = self._account
        if account is not None and account.ending and not account.recovered():
            self._queue.clear()
            self._handlers.sort(self, self._core.fail(account.error(), time.monotonic()))
            self._update_memory()
        self._held_back = account is not None and account.paused
        self._changes.notify()

    async def _wait_for_capacity(self) -> None:
        while (self._queue.full or self._held_back) and self._core.sending:
            await self._wait_for_memory()

    async def _wait_for_memory(self) -> None:
        account = self._account
        timeout = None
        if self._held_back and account is not None:
            timeout = account.paused_at + MAX_PAUSE - time.monotonic()
        with anyio.move_on_after(None if timeout is None else max(0.0, timeout)) as waiting:
            await self._changes.wait()
        if waiting.cancelled_caught and account is not None:
            account.overdue()
            self._held_back = account.paused

    # --- the three tasks ------------------------------------------------------------------------------------

    def _received(self, message: Message) -> None:
        if message["type"] == "websocket.receive":
            data = message.get("text")
            if data is None:
                data = bytes(message.get("bytes") or b"")
            self._handlers.sort(self, self._core.receive_message(data, time.monotonic()))
            self._update_memory()
        elif message["type"] == "websocket.disconnect":
            # Servers omit the code, or pass None, if the peer sent none (ASGI's default).
            self._core.receive_disconnect(message.get("code") or CloseCode.NO_STATUS.value, message.get("reason") or "")

    def _writer_stopped(self) -> None:
        self._writing = False
        self._changes.notify()

    def _taken_by_server(self) -> None:
        self._update_memory()
        if self._behind and not self._core.unsent_size:
            self._behind, self._drained = False, True
        self._changes.notify()

    async def _dispatch(self) -> None:
        while True:
            if self._drained:
                self._drained = False
                await await_results(self._handlers.emit(self, "drain", ()), self._handler_failed)
            elif self._push and self._queue:
                event = self._queue.take()
                self._update_memory()
                self._changes.notify()
                await await_results(self._handlers.emit_event(self, event), self._handler_failed)
            elif self._core.ended:
                await await_results(self._emit_end(), self._handler_failed)
                self._end_reported = True
                self._changes.notify()
                return
            else:
                await self._changes.wait()

    def _failed(self, error: Exception) -> None:
        """End the connection after one of the server's channels raised ``error``."""
        if not self._core.ended:
            if not isinstance(error, OSError):
                self._error = error  # ASGI servers raise OSError after a disconnect
            self._core.receive_disconnect(CloseCode.ABNORMAL.value, "")
        self._changes.notify()

    def _handler_failed(self, error: BaseException) -> None:
        super()._handler_failed(error)
        self._changes.notify()
        if not self._running or isinstance(error, asyncio.CancelledError):
            # run() will not raise it, and a CancelledError ends a task silently: log it.
            log_handler_failure(self, error)
