"""The API of the asyncio flavour, :class:`AsyncConnection`, for any transport.

It has two implementations: ``connection.py`` on an event loop's transport, and ``asgi/portable.py`` over the messages
of any ASGI server.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeAlias

from ...core.base import BaseProtocol
from ...core.codes import encode_close
from ...core.payloads import Sendable
from ...core.receive_queue import ReceiveQueue
from ...errors import ConnectionClosed
from ..awaitables import Pending
from ..base import ConnectionInfo, WatershedConnection, checked_message, checked_ping

__all__ = ["AsyncConnection", "AsyncHandler", "is_coroutine_function"]

# Every so many refused sends, one fails only when it is awaited.
_REFUSALS = 256


class AsyncConnection(WatershedConnection):
    """A :class:`~watershed_mw.WatershedConnection` whose blocking operations are awaited.

    Every method may be called from the event loop's thread. ``send``, ``ping``, ``end`` and ``destroy`` may also be
    called from other threads, and then take effect soon, in call order. Awaiting their result is optional. A thread
    that wants backpressure, or errors, has the result awaited:
    ``asyncio.run_coroutine_threadsafe(conn.send(data), loop).result()``, or asgiref's ``async_to_sync`` of a coroutine
    function that awaits it. On asyncio that may be any event loop. ``receive``, iteration and ``wait_closed`` may be
    awaited on any event loop as well; if another loop cancels a ``receive``, a message delivered to it may be lost.
    """

    __slots__ = ("_refused",)

    def __init__(self, info: ConnectionInfo, protocol: BaseProtocol, queue: ReceiveQueue | None = None) -> None:
        super().__init__(info, protocol, queue)
        self._refused = 0

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: maximum seconds to wait; None for no limit.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message arrived in time; none is lost.
            LocalProtocolError: handlers for messages are registered.

        Any number of tasks may receive: each gets one message, in FIFO order. A task that is cancelled or times out
        takes none.
        """
        raise NotImplementedError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    def send(self, data: Sendable) -> Awaitable[None]:
        """Send one message: ``str`` as TEXT, bytes-like as BINARY; from any thread, never blocking.

        Returns:
            an awaitable that completes when the write buffer has drained far enough. Awaiting it is optional, but
            without that, a peer that does not read is dropped above ``max_unsent_bytes`` unsent bytes.

        Raises:
            ConnectionClosed: the connection is ending or has ended.
            LocalProtocolError: the text cannot be encoded.
            TypeError: ``data`` is neither text nor bytes.
        """
        raise NotImplementedError

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """Send a PING with up to 125 bytes; its PONG updates :attr:`latency`.

        Raises:
            as :meth:`send`, and
            UnsupportedServerError: the server does not expose PINGs; see docs/servers.md.
        """
        raise NotImplementedError

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """Start the closing handshake (RFC 6455 section 7.1.2); pending messages are sent first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Returns:
            an awaitable that completes when the TCP stream is closed, after at most ``close_timeout``; over ASGI
            messages, when the server has taken the Close.

        Raises:
            LocalProtocolError: the code or the reason cannot be sent.
        """
        raise NotImplementedError

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it already was.

        Raises:
            UnsupportedServerError: the server does not expose its stream; see docs/servers.md.
        """
        raise NotImplementedError

    def start_close(self, reason: str = "", *, code: int = 1000) -> None:
        """As :meth:`end`, without an awaitable."""
        self.end(reason, code=code)

    def abort(self) -> None:
        """As :meth:`destroy`."""
        self.destroy()

    async def run(self) -> tuple[int, str]:
        """Call the handlers with each message until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: the exception of a handler; the connection has been closed with 1011.
        """
        raise NotImplementedError

    async def wait_closed(self) -> None:
        """Wait until the TCP stream is closed: at most ``close_timeout`` once the connection is closing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection: with 1000, or with 1011 after an exception."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        if error is None:
            self.warn_if_never_run()
        await self.end(code=1011 if failed else 1000)

    # --- after the end -----------------------------------------------------------------------------------

    async def _pause(self) -> None:
        """Let other tasks run, as a completed operation may be awaited in a loop."""
        await asyncio.sleep(0)

    def _refuse(self, error: ConnectionClosed) -> Awaitable[None]:
        """Raise ``error``, the reason why the connection no longer sends.

        Every ``_REFUSALS`` times it is raised only when the send is awaited, after a pause: an application that catches
        the error and sends again must not starve the event loop.
        """
        self._refused += 1
        if self._refused % _REFUSALS:
            raise error

        async def refuse() -> None:
            await self._pause()
            raise error

        return Pending(refuse)

    # --- calls from other threads ------------------------------------------------------------------------

    def _call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Schedule ``call`` on the event loop's thread. Raises RuntimeError if that loop is closed."""
        raise NotImplementedError

    async def _await_on_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await ``call()`` on the connection's event loop, from a task on another thread's loop."""
        raise NotImplementedError

    def _is_on_loop_thread(self) -> bool:
        raise NotImplementedError

    def _send_from_thread(self, data: Sendable) -> Awaitable[None]:
        copy = checked_message(data)
        return self._from_thread(lambda: self.send(copy), sending=True)

    def _ping_from_thread(self, data: Sendable) -> Awaitable[None]:
        payload = checked_ping(data)
        return self._from_thread(lambda: self.ping(payload), sending=True)

    def _end_from_thread(self, reason: str, code: int) -> Awaitable[None]:
        encode_close(code, reason)  # raises here, as on the other thread an error could only be logged
        return self._from_thread(lambda: self.end(reason, code=code))

    def _from_thread(self, call: Callable[[], Any], *, sending: bool = False) -> Awaitable[None]:
        """Schedule ``call`` on the event loop's thread, in call order; awaiting the outcome is optional.

        Returns:
            an awaitable for any event loop: it awaits the result of ``call()``, and raises its exception.
        """
        if sending and not self._core.sending:
            raise self._closed_error()
        outcome: list[Any] = []

        def guarded() -> None:
            try:
                outcome.append(call())
            except ConnectionClosed as error:
                outcome.append(error)  # the connection ended meanwhile, which its handlers report
            except BaseException as error:
                outcome.append(error)
                raise

        try:
            self._call_soon_threadsafe(guarded)
        except RuntimeError:
            raise self._closed_error() from None  # the loop is closed, and all of its connections with it
        return Pending(lambda: self._outcome(outcome))

    async def _outcome(self, outcome: list[Any]) -> None:
        if not self._is_on_loop_thread():
            await self._await_on_loop(lambda: self._outcome(outcome))
            return
        while not outcome:
            await self._pause()  # the loop is about to make the call
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        if outcome[0] is not None:
            await outcome[0]


AsyncHandler: TypeAlias = Callable[[AsyncConnection], Awaitable[object]]
"""A coroutine function that takes a connection, which is closed when the function returns."""


def is_coroutine_function(handler: Any) -> bool:
    """Whether a handler is, or decorates, a coroutine function or an object whose ``__call__`` is one."""
    function = inspect.unwrap(handler.func if isinstance(handler, functools.partial) else handler)
    if inspect.iscoroutinefunction(function) or hasattr(function, "_is_coroutine"):  # Cython's mark
        return True
    # A function's own __call__ is never one.
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
