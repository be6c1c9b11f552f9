"""The asyncio flavour as applications hold it: waiting is awaited, whatever carries the bytes.

:class:`AsyncConnection` is the API alone. Two implementations stand behind it: ``connection.py`` on a
transport of an event loop, and ``asgi/portable.py`` over the messages of any ASGI server.
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

# Of so many sends that are refused in a row, the last one fails when it is awaited.
_REFUSALS = 256


class AsyncConnection(WatershedConnection):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting is awaited.

    Every method may be called from the event loop's thread; ``send``, ``ping``, ``end`` and ``destroy`` from any other
    as well, where they act soon, in the order of the calls. What they return need not be awaited. A thread that wants
    backpressure, or to hear of an error, has it awaited:
    ``asyncio.run_coroutine_threadsafe(conn.send(data), loop).result()``, or asgiref's ``async_to_sync`` of a coroutine
    function that awaits it. On asyncio that may be any event loop, and ``receive``, iteration and ``wait_closed`` may
    be awaited on any; a ``receive`` that another loop cancels may lose the message that has just come for it.
    """

    __slots__ = ("_refused",)

    def __init__(self, info: ConnectionInfo, protocol: BaseProtocol, queue: ReceiveQueue | None = None) -> None:
        super().__init__(info, protocol, queue)
        self._refused = 0

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message came in time; none is lost.
            LocalProtocolError: handlers for messages are registered.

        Any number of tasks may receive: each gets one message, in the order in which they asked. One that is
        cancelled, or out of time, takes none.
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
            an awaitable that is done once the peer keeps up; awaiting it is optional, but a peer that
            does not read is given up when ``max_unsent_bytes`` have piled up.

        Raises:
            ConnectionClosed: the connection is ending or has ended.
            LocalProtocolError: the text cannot be encoded.
            TypeError: neither text nor bytes.
        """
        raise NotImplementedError

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """Send a PING with up to 125 bytes; :attr:`latency` is updated by its PONG.

        Raises:
            as :meth:`send`, and
            UnsupportedServerError: the server in front keeps PINGs to itself; see docs/servers.md.
        """
        raise NotImplementedError

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """Begin the closing handshake (RFC 6455 section 7.1.2); everything sent before arrives first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Returns:
            an awaitable that is done when the TCP stream is closed, after at most ``close_timeout``; over
            ASGI messages when the server has taken the Close, as the rest is its own business.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        raise NotImplementedError

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already.

        Raises:
            UnsupportedServerError: the server in front does not let its stream go; see docs/servers.md.
        """
        raise NotImplementedError

    def start_close(self, reason: str = "", *, code: int = 1000) -> None:
        """As :meth:`end`, without an awaitable."""
        self.end(reason, code=code)

    def abort(self) -> None:
        """As :meth:`destroy`."""
        self.destroy()

    async def run(self) -> tuple[int, str]:
        """Push messages to the handlers until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: whatever a handler raised; the connection has then been closed with 1011.
        """
        raise NotImplementedError

    async def wait_closed(self) -> None:
        """Wait until the TCP stream is closed, which ``close_timeout`` bounds once the end has begun."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection: with 1000, or with 1011 when an exception passes by."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        if error is None:
            self.warn_if_never_run()
        await self.end(code=1011 if failed else 1000)

    # --- after the end -----------------------------------------------------------------------------------

    async def _pause(self) -> None:
        """Let other tasks run: what is done already may be awaited in a loop."""
        await asyncio.sleep(0)

    def _refuse(self, error: ConnectionClosed) -> Awaitable[None]:
        """Raise ``error``, which says why nothing is sent any more.

        One in so many times it is raised when the send is awaited, after a pause: an application that catches the
        error and sends again must not keep the event loop for itself.
        """
        self._refused += 1
        if self._refused % _REFUSALS:
            raise error

        async def refuse() -> None:
            await self._pause()
            raise error

        return Pending(refuse)

    # --- calls from other threads ------------------------------------------------------------------------

    def _soon(self, call: Callable[[], None]) -> None:
        """Call it on the event loop's thread; RuntimeError when that loop is closed."""
        raise NotImplementedError

    async def _on_own_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await ``call()`` on the connection's own event loop, from a task of another thread's."""
        raise NotImplementedError

    def _on_own_thread(self) -> bool:
        raise NotImplementedError

    def _send_from_thread(self, data: Sendable) -> Awaitable[None]:
        copy = checked_message(data)
        return self._from_thread(lambda: self.send(copy), sending=True)

    def _ping_from_thread(self, data: Sendable) -> Awaitable[None]:
        payload = checked_ping(data)
        return self._from_thread(lambda: self.ping(payload), sending=True)

    def _end_from_thread(self, reason: str, code: int) -> Awaitable[None]:
        encode_close(code, reason)  # raises here: on the other thread it could only be logged
        return self._from_thread(lambda: self.end(reason, code=code))

    def _from_thread(self, call: Callable[[], Any], *, sending: bool = False) -> Awaitable[None]:
        """Call it on the event loop's thread, soon and in order; awaiting the outcome is optional.

        Returns:
            what may be awaited on any event loop: it is done when what ``call()`` returned is, and raises what that
            raised.
        """
        if sending and not self._core.sending:
            raise self._closed_error()
        outcome: list[Any] = []

        def guarded() -> None:
            try:
                outcome.append(call())
            except ConnectionClosed as error:
                outcome.append(error)  # It ended between the two threads; its handlers know.
            except BaseException as error:
                outcome.append(error)
                raise

        try:
            self._soon(guarded)
        except RuntimeError:
            raise self._closed_error() from None  # The loop is closed, and every connection with it.
        return Pending(lambda: self._outcome(outcome))

    async def _outcome(self, outcome: list[Any]) -> None:
        if not self._on_own_thread():
            await self._on_own_loop(lambda: self._outcome(outcome))
            return
        while not outcome:
            await self._pause()  # the loop is about to make the call
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        if outcome[0] is not None:
            await outcome[0]


AsyncHandler: TypeAlias = Callable[[AsyncConnection], Awaitable[object]]
"""A coroutine function that is given a connection; what it leaves open is ended when it returns."""


def is_coroutine_function(handler: Any) -> bool:
    """Whether a handler is, or decorates, a coroutine function, or an object whose call is one."""
    function = inspect.unwrap(handler.func if isinstance(handler, functools.partial) else handler)
    if inspect.iscoroutinefunction(function) or hasattr(function, "_is_coroutine"):  # so Cython marks its own
        return True
    # A function's own __call__ is never one.
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
