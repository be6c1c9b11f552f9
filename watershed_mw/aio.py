"""The asyncio flavour as applications hold it: receive and send, waiting by ``await``.

What happens underneath is the shell's business (``aio_shell.py``). Calls from other threads are
checked there and then, and carried over to the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import Any, Self

from .aio_handlers import READY
from .aio_shell import AsyncioShell
from .connection import checked_message, checked_ping
from .core.codes import encode_close
from .errors import ConnectionClosed, LocalProtocolError

__all__ = ["AsyncConnection"]


class _Pending:
    """An awaitable that costs nothing, and warns of nothing, until somebody awaits it."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Any) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()  # type: ignore[no-any-return]


class AsyncConnection(AsyncioShell):
    """A :class:`~watershed_mw.WatershedConnection` whose waiting is awaited.

    Every method may be called from the loop's thread; ``send``, ``ping``, ``end`` and ``destroy``
    from any other as well.
    """

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """Wait for the next message: ``str`` for TEXT, ``bytes`` for BINARY.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            ConnectionClosed: the connection has ended, and every message has been received.
            TimeoutError: no message came in time; none is lost.
            LocalProtocolError: handlers for messages are registered, or another task is receiving.
        """
        self._check_pull()
        while not self._queue:
            # To ask for more is to have replied to what came before.
            self._hand_over()
            if self._core.ended:
                raise self._closed_error()
            if self._receiver is not None:
                raise LocalProtocolError("expected one task to receive at a time, got a second one")
            self._receiver = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._receiver
            finally:
                self._receiver = None
        message = self._take_message()
        self._update_reading()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    def send(self, data: str | bytes | bytearray | memoryview) -> Awaitable[None]:
        """Send one message: ``str`` as TEXT, bytes-like as BINARY; from any thread, never blocking.

        Returns:
            an awaitable that is done once the peer keeps up; awaiting it is optional, but a peer that
            does not read is given up when ``max_unsent_bytes`` have piled up.

        Raises:
            ConnectionClosed: the connection is ending or has ended.
            LocalProtocolError: the text cannot be encoded.
            TypeError: neither text nor bytes.
        """
        if threading.get_ident() != self._thread:
            copy = checked_message(data)
            self._from_thread(lambda: self.send(copy), sending=True)
            return READY
        self._queue_message(data)
        self._wrote()
        return _Pending(self._drained) if self._writing_paused else READY

    def ping(self, data: bytes | str = b"") -> Awaitable[None]:
        """Send a PING with up to 125 bytes; :attr:`latency` tells when its PONG has come. Raises as :meth:`send`."""
        if threading.get_ident() != self._thread:
            payload = checked_ping(data)
            self._from_thread(lambda: self.ping(payload), sending=True)
            return READY
        self._queue_ping(data)
        self._wrote()
        return READY

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """Begin the closing handshake (RFC 6455 section 7.1.2); everything sent before arrives first.

        Args:
            reason: at most 123 bytes in UTF-8.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; 1005 for a Close without a code.

        Returns:
            an awaitable that is done when the TCP stream is closed, after at most ``close_timeout``.

        Raises:
            LocalProtocolError: the code or the reason may not be sent.
        """
        if threading.get_ident() != self._thread:
            encode_close(code, reason)  # raises here what nobody would see over there
            self._from_thread(lambda: self.end(reason, code=code))
            return READY
        self._queue_close(code, reason)
        self._advance_and_settle()
        return _Pending(self.wait_closed)

    def destroy(self) -> None:
        """Drop the TCP stream without a Close frame; ``end`` is emitted with code 1006 unless it was already."""
        if threading.get_ident() != self._thread:
            self._from_thread(self.destroy)
            return
        self._drop()

    async def run(self) -> tuple[int, str]:
        """Push messages to the handlers until the connection has ended.

        Returns:
            close code and reason.

        Raises:
            Exception: whatever a handler raised; the connection has then been closed with 1011.
        """
        self._push = self._running = True
        self._advance_and_settle()
        try:
            while not self._finished():
                await self._wait_in(self._closers)
        finally:
            self._running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """Wait until the TCP stream is closed, which ``close_timeout`` bounds once the end has begun."""
        while not self._lost:
            await self._wait_in(self._closers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection: with 1000, or with 1011 when an exception passes by."""
        failed = error is not None and not isinstance(error, ConnectionClosed)
        await self.end(code=1011 if failed else 1000)

    # --- waiting -----------------------------------------------------------------------------------------

    async def _drained(self) -> None:
        while self._writing_paused and not self._lost:
            await self._wait_in(self._drainers)

    def _from_thread(self, call: Any, *, sending: bool = False) -> None:
        if sending and not self._core.sending:
            raise self._closed_error()

        def guarded() -> None:
            try:
                call()
            except ConnectionClosed:
                pass  # It ended between the two threads; its handlers know.

        try:
            self._loop.call_soon_threadsafe(guarded)
        except RuntimeError:
            raise self._closed_error() from None  # The loop is closed, and every connection with it.
