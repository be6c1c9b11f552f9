"""The asyncio flavour where frames are out of reach: over the ASGI messages of any server, on asyncio and on trio.

Three tasks live beside the application for as long as its connection does: one reads what the server
has, so that an end is noticed at once; one gives the server what is to be sent, in order; one calls
handlers. They share one event, and what they decide is asked of :mod:`watershed_mw.core.message_protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..connection.aio.api import AsyncConnection
from ..connection.awaitables import Pending, on_loop
from ..connection.base import ConnectionInfo, Handler, log_handler_failure
from ..core.codes import CloseCode, encode_close
from ..core.memory_budget import MAX_PAUSE
from ..core.message_protocol import MessageProtocol, Outgoing
from ..core.payloads import Sendable, as_message
from ..errors import ConnectionClosed, LocalProtocolError, UnsupportedServerError
from ..runtime.interrupts import is_cancellation, is_interrupt
from .servers import ASGIServer

__all__ = ["PortableConnection", "ends_task", "running_task"]

Message = MutableMapping[str, Any]

# Past this many bytes that the server has not taken, the application is told when it has: asyncio's own mark.
_HIGH_WATER = 64 * 2**10


class PortableConnection(AsyncConnection):
    """An :class:`~watershed_mw.AsyncConnection` over ASGI messages.

    Args:
        info: what it is made with.
        core: its state.
        receive, send: the ASGI channels that the application was given.
        server: what is known of the server, for errors about what it cannot do.
    """

    __slots__ = (
        "__dict__",
        "_asgi_receive",
        "_asgi_send",
        "_behind",
        "_call_soon",
        "_change",
        "_drained",
        "_held_back",
        "_loop",
        "_read_on",
        "_reading",
        "_receivers",
        "_running",
        "_server",
        "_thread",
        "_told",
        "_write_on",
    )

    _core: MessageProtocol

    def __init__(
        self,
        info: ConnectionInfo,
        core: MessageProtocol,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        server: ASGIServer,
    ) -> None:
        self._asgi_receive = receive
        self._asgi_send = send
        self._server = server
        self._thread = threading.get_ident()
        self._loop, self._call_soon = _loop_and_call_soon()
        self._change = anyio.Event()
        self._reading = anyio.CancelScope()
        self._read_on = True
        self._write_on = True
        self._told = False
        self._receivers: list[object] = []
        self._running = False
        self._behind = False
        self._drained = False
        self._held_back = False
        super().__init__(info, core)

    def start(self, tasks: TaskGroup) -> None:
        """Begin to read, write and tell, in tasks of this group."""
        for work in (self._read, self._write, self._dispatch):
            tasks.start_soon(work)

    async def finish(self, code: int) -> None:
        """The application has returned or raised: end the connection, within ``close_timeout``, and tell of it."""
        if code == 1000:
            self.warn_if_never_run()
        if self._server.sends(code):
            self._queue_close(code, "")
        else:
            # The exception that made it 1011 goes on to the server, which sends that for itself.
            self._core.receive_disconnect(code, "")
        self._notify_all()
        with anyio.move_on_after(self._limits.close_timeout):
            # A connection that we fail has ended before its Close has gone out.
            while self._write_on or not self._finished():
                await self._wait_for_change()
        self._note_end()

    # --- what applications call --------------------------------------------------------------------------

    def on(self, event: str, handler: Handler | None = None) -> Any:
        """As the base class says.

        Raises:
            UnsupportedServerError: ``ping`` and ``pong``, which the server keeps to itself.
        """
        if event in ("ping", "pong"):
            self._unsupported(f"to tell of {event.upper()} frames")
        return super().on(event, handler)

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """As the base class says."""
        if not self._on_own_thread():
            message: str | bytes = await self._on_own_loop(lambda: self.receive(timeout))
            return message
        self._check_pull()
        if self._receivers or not self._queue:
            await self._expect_message(timeout)
        if not self._queue:
            await self._pause()
            raise self._closed_error()
        message = self._take_message()
        self._update_memory()
        self._notify_all()
        return message

    async def _expect_message(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait until every task that came before has got a message, and there is another one, or the end."""
        turn = object()
        self._receivers.append(turn)
        try:
            with anyio.fail_after(timeout):
                while not self._core.ended or self._queue:
                    if self._queue and self._receivers[0] is turn:
                        break
                    await self._wait_for_change()
        finally:
            self._receivers.remove(turn)
            self._notify_all()

    async def _pause(self) -> None:
        await anyio.lowlevel.checkpoint()

    def send(self, data: Sendable) -> Awaitable[None]:
        """As the base class says; the awaitable is done when the server has taken the message."""
        if threading.get_ident() != self._thread:
            return self._send_from_thread(data)
        message = as_message(data)
        if not message and not self._server.empty_messages:
            self._unsupported("to send an empty message")
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
        self._notify_all()
        number = self._core.items_queued
        return Pending(lambda: self._taken(number))

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """As the base class says. Raises :class:`UnsupportedServerError`."""
        self._unsupported("to send a PING")

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """As the base class says. Raises :class:`UnsupportedServerError` where the server does not send this code."""
        encode_close(code, reason)  # raises here what nobody would see on the other thread
        if code != CloseCode.NO_STATUS and not self._server.sends(code):
            self._unsupported(f"to close with {code}")
        if threading.get_ident() != self._thread:
            return self._end_from_thread(reason, code)
        self._queue_close(code, reason)
        self._notify_all()
        return Pending(self.wait_closed)

    def destroy(self) -> None:
        """As the base class says. Raises :class:`UnsupportedServerError`."""
        self._unsupported("to drop the stream without a Close")

    async def run(self) -> tuple[int, str]:
        """As the base class says."""
        self._push = self._running = self._ran = True
        self._notify_all()
        try:
            if self._finished():
                await self._pause()
            while not self._finished():
                await self._wait_for_change()
        finally:
            self._running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """Wait until the server has taken our Close, or has told of the end."""
        if not self._on_own_thread():
            await self._on_own_loop(self.wait_closed)
            return
        self._ran = True
        if self._core.ended:
            await self._pause()
        with anyio.move_on_after(self._limits.close_timeout if not self._core.sending else None):
            while not self._core.ended:
                await self._wait_for_change()

    def _unsupported(self, what: str) -> NoReturn:
        raise UnsupportedServerError(
            f"expected a server that gives its frames away {what}, got {self._server.name}, which has only ASGI "
            "messages: run uvicorn with --ws watershed_mw.uvicorn:WatershedProtocol, or do without (docs/servers.md)"
        )

    # --- one event for all that waits ----------------------------------------------------------------------

    def _notify_all(self) -> None:
        change, self._change = self._change, anyio.Event()
        change.set()

    async def _wait_for_change(self) -> None:
        await self._change.wait()

    async def _on_own_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if self._loop is None:
            raise LocalProtocolError(
                "expected a connection on trio to be awaited in trio's own thread, got another one: "
                "use trio.from_thread.run(conn.send, data)"
            )
        return await on_loop(self._loop, call)

    def _on_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def _soon(self, call: Callable[[], None]) -> None:
        self._call_soon(call)

    def _finished(self) -> bool:
        return self._told

    def _handlers_changed(self) -> None:
        self._notify_all()

    async def _taken(self, number: int) -> None:
        while self._core.items_taken < number and not self._core.ended:
            await self._wait_for_change()

    # --- memory ---------------------------------------------------------------------------------------------

    def _update_memory(self) -> None:
        """Report what is held here, where that has passed a mark; what the server holds it keeps to itself."""
        unsent = self._core.unsent_size
        held = self._queue.size + unsent
        if self._is_report_due(held):
            self._report_memory(unsent)

    def _memory_changed(self) -> None:
        """As the base class says."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._soon(self._apply_memory)

    def _apply_memory(self) -> None:
        account = self._account
        if account is not None and account.ending and not account.recovered():
            self._queue.clear()
            self._take(self._core.fail(account.error(), time.monotonic()))
            self._update_memory()
        self._held_back = account is not None and account.paused
        self._notify_all()

    async def _wait_for_room(self) -> None:
        account = self._account
        timeout = None
        if self._held_back and account is not None:
            timeout = account.paused_at + MAX_PAUSE - time.monotonic()
        with anyio.move_on_after(None if timeout is None else max(0.0, timeout)) as waiting:
            await self._wait_for_change()
        if waiting.cancelled_caught and account is not None:
            account.overdue()
            self._held_back = account.paused

    # --- the three tasks ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            with self._reading:
                while not self._core.ended:
                    while (self._queue.full or self._held_back) and self._core.sending:
                        await self._wait_for_room()
                    self._received(await self._asgi_receive())
                    self._notify_all()
        except Exception as error:  # noqa: BLE001  # whatever a server or a middleware raises, it ends this connection
            self._failed(error)
        finally:
            self._read_on = False
            self._notify_all()

    def _received(self, message: Message) -> None:
        if message["type"] == "websocket.receive":
            data = message.get("text")
            if data is None:
                data = bytes(message.get("bytes") or b"")
            self._take(self._core.receive_message(data, time.monotonic()))
            self._update_memory()
        elif message["type"] == "websocket.disconnect":
            # Servers leave the code out, or give None, where the peer gave none (ASGI's default).
            self._core.receive_disconnect(message.get("code") or CloseCode.NO_STATUS.value, message.get("reason") or "")

    async def _write(self) -> None:
        try:
            while True:
                while (item := self._core.next_to_send()) is None:
                    if self._core.ended:
                        return
                    await self._wait_for_change()
                if isinstance(item, tuple):
                    # Nothing more is expected, and granian holds a Close back while somebody is receiving.
                    self._reading.cancel()
                    while self._read_on:
                        await self._wait_for_change()
                try:
                    await self._asgi_send(_as_asgi(item, self._server))
                except OSError:
                    await self._await_disconnect()
                    raise
                self._core.taken()
                self._update_memory()
                if self._behind and not self._core.unsent_size:
                    self._behind, self._drained = False, True
                self._notify_all()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)
        finally:
            self._write_on = False
            self._notify_all()

    async def _await_disconnect(self) -> None:
        """Our Close came too late; what the peer's said, the server still has to tell."""
        if not self._read_on:
            with anyio.move_on_after(self._limits.close_timeout):
                while not self._core.ended:
                    self._received(await self._asgi_receive())

    async def _dispatch(self) -> None:
        while True:
            if self._drained:
                self._drained = False
                await self._await_results(self._emit("drain", ()))
            elif self._push and self._queue:
                event = self._queue.take()
                self._update_memory()
                self._notify_all()
                await self._await_results(self._emit_event(event))
            elif self._core.ended:
                await self._await_results(self._emit_end())
                self._told = True
                self._notify_all()
                return
            else:
                await self._wait_for_change()

    async def _await_results(self, results: tuple[Any, ...]) -> None:
        for result in results:
            if not inspect.isawaitable(result):
                continue
            task = running_task()
            try:
                await result
            except ConnectionClosed:
                pass  # A reply came too late, as the end itself tells.
            except BaseException as error:
                if ends_task(error, task):
                    raise
                self._handler_failed(error)  # whatever it is, it ends this connection alone

    def _failed(self, error: Exception) -> None:
        """The server takes and gives nothing any more."""
        if not self._core.ended:
            if not isinstance(error, OSError):
                self._error = error  # an OSError is how ASGI says that the client has gone
            self._core.receive_disconnect(CloseCode.ABNORMAL.value, "")
        self._notify_all()

    def _handler_failed(self, error: BaseException) -> None:
        super()._handler_failed(error)
        self._notify_all()
        if not self._running or isinstance(error, asyncio.CancelledError):
            # Nobody waits in run(): the exception must not vanish, as one that ends a task without a word would, too.
            log_handler_failure(self, error)


def _as_asgi(item: Outgoing, server: ASGIServer) -> Message:
    if isinstance(item, str):
        return {"type": "websocket.send", "text": item}
    if isinstance(item, bytes):
        return {"type": "websocket.send", "bytes": item}
    code, reason = item
    if code == CloseCode.NO_STATUS:
        code = CloseCode.NORMAL.value  # ASGI has no Close without a code
    elif not server.sends(code):
        code += 3000  # to fail a connection with 1009 is more than the server knows: 4009
    return {"type": "websocket.close", "code": code, "reason": reason}


def running_task() -> Any:
    """The task that runs this, of asyncio or of trio; None outside of any."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        pass
    trio: Any = sys.modules.get("trio")
    try:
        return None if trio is None else trio.lowlevel.current_task()
    except RuntimeError:
        return None


def ends_task(error: BaseException, task: Any) -> bool:
    """As :func:`.is_cancellation`, under trio as well, where nobody else raises Cancelled."""
    if task is None or isinstance(task, asyncio.Task):
        return is_cancellation(error, task)
    if isinstance(error, GeneratorExit):
        return running_task() is not task
    return isinstance(error, anyio.get_cancelled_exc_class()) or is_interrupt(error)


def _loop_and_call_soon() -> tuple[asyncio.AbstractEventLoop | None, Callable[[Callable[[], None]], object]]:
    """The running event loop, None on trio, and how another thread gets something called on it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return None, trio.lowlevel.current_trio_token().run_sync_soon
    return loop, loop.call_soon_threadsafe
