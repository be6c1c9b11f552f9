"""``watershed-mw connect`` in a pipe: stdin is sent as messages, received messages go to stdout, the rest to stderr.

Neither end of the pipe blocks the event loop, so PINGs are answered while ``less`` shows its first page. A slow reader
of stdout applies backpressure to the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any, Final, TypeVar

from rich.console import Console

from ..connection.aio.api import AsyncConnection
from ..errors import ConnectionClosed
from .dialogue import Dialogue, Order
from .output import Failure, dump, shown

__all__ = ["Mode", "Pipe"]

T = TypeVar("T")

_CHUNK: Final = 64 * 2**10
# Bytes that a writable pipe accepts without blocking (POSIX: PIPE_BUF, at least 512).
_NONBLOCKING_WRITE: Final = getattr(select, "PIPE_BUF", 512)


class Mode(Enum):
    """The format of stdin."""

    LINES = ""
    """Each line is a TEXT message."""
    HEX = "hex"
    """Each line is a BINARY message in hex."""
    WHOLE = "binary"
    """All of stdin is one BINARY message."""


async def _in_daemon_thread(function: Callable[..., T], *args: Any) -> T:
    """Call ``function``, which may block forever, in a daemon thread: unlike an executor's, it does not block exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def set_outcome(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def call() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as raised:  # noqa: BLE001  # raised where the future is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(set_outcome, result, error)

    threading.Thread(target=call, daemon=True).start()
    return await future


class Pipe(Dialogue):
    """Sends messages read from one descriptor, and writes received messages to another.

    Args:
        order: the arguments of the command line.
        console: the console for states and errors.
        mode: the format of stdin.
        wait: seconds without a message, after the end of stdin, before the connection is closed.
        source, target: descriptors to read from and to write to.
    """

    close_timeout = 60.0  # long, as the peer first replies to everything sent

    def __init__(
        self, order: Order, console: Console, mode: Mode, wait: float, *, source: int = 0, target: int = 1
    ) -> None:
        super().__init__(order, console)
        self._mode = mode
        self._wait = wait
        self._source = source
        self._target = target
        self._terminal = os.isatty(target)
        self._heard = 0.0
        self._feeding: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._failure: Exception | None = None

    async def run(self) -> int:
        """As :meth:`Dialogue.run`."""
        try:
            status = await super().run()
        finally:
            if self._feeding is not None:
                self._feeding.cancel()
                await asyncio.wait([self._feeding])
        if self._failure is not None:
            raise self._failure
        return status

    async def converse(self, connection: AsyncConnection) -> None:
        """As :meth:`Dialogue.converse`; one task reads stdin for all connections in turn."""
        if self.order.verbose:
            connection.on("ping", lambda data: self.show(f"ping {data!r}", "dim"))
            connection.on("pong", lambda data: self.show(f"pong {data!r}", "dim"))
        self._connected.set()
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed())
        elif self._feeding.done():
            connection.end()
        try:
            async for message in connection:
                self._heard = asyncio.get_running_loop().time()
                await self._write(self._rendered(message))
        except BrokenPipeError:  # the reader of stdout has exited
            self._stop(connection)
        except OSError as error:
            self._failure = Failure(f"stdout: {error}")
            self._stop(connection)
        finally:
            self._connected.clear()

    def show_end(self, text: str, status: int) -> None:
        """As :meth:`Dialogue.show_end`, but silent after a normal close."""
        if status or self.order.verbose:
            super().show_end(text, status)

    # --- stdin -------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Send all of stdin, wait until the peer is silent, and close."""
        try:
            async for message in self._messages():
                if not await self._send(message):
                    return
            await self._silence()
        except (OSError, ValueError) as error:
            self._failure = Failure(str(error))
        self._stop(self.connection)

    def _stop(self, connection: AsyncConnection | None) -> None:
        self.over = True
        if connection is not None:
            connection.end()

    async def _send(self, message: str | bytes) -> bool:
        while True:
            await self._connected.wait()
            connection = self.connection
            assert connection is not None
            try:
                await connection.send(message)
                return True
            except ConnectionClosed:
                if not self.order.reconnect or self.over:
                    return False
                self._connected.clear()  # until the next connection

    async def _silence(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        while True:
            remaining = self._heard + self._wait - loop.time()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, 3600.0))  # timers do not accept inf

    async def _messages(self) -> AsyncIterator[str | bytes]:
        if self._mode is Mode.WHOLE:
            whole = b"".join([chunk async for chunk in self._chunks()])
            if whole:
                yield whole
            return
        number = 0
        async for line in self._lines():
            number += 1
            try:
                yield line.decode() if self._mode is Mode.LINES else bytes.fromhex(line.decode("ascii"))
            except ValueError:
                expected = "UTF-8 (--binary sends any bytes)" if self._mode is Mode.LINES else "hex digits"
                raise ValueError(f"expected {expected} in line {number} of stdin, got {line[:32]!r}") from None

    async def _lines(self) -> AsyncIterator[bytes]:
        rest: list[bytes] = []
        async for chunk in self._chunks():
            *lines, last = chunk.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line])
                rest = []
            rest.append(last)
        if last_line := b"".join(rest):
            yield last_line

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await _in_daemon_thread(os.read, self._source, _CHUNK):
            yield chunk

    # --- stdout ------------------------------------------------------------------------------------------

    def _rendered(self, message: str | bytes) -> bytes:
        if isinstance(message, str):
            # Escaped for a terminal only; a file gets the text unchanged.
            return (shown(message) if self._terminal else message).encode() + b"\n"
        if self._mode is Mode.HEX:
            return message.hex().encode() + b"\n"
        return "".join(f"{line}\n" for line in dump(message)).encode() if self._terminal else message

    async def _write(self, data: bytes) -> None:
        if len(data) <= _NONBLOCKING_WRITE and self._writable():
            os.write(self._target, data)
        else:
            await _in_daemon_thread(self._write_all, data)

    def _writable(self) -> bool:
        try:
            return bool(select.select([], [self._target], [], 0)[1])
        except (OSError, ValueError):  # select does not support it: on Windows, or above descriptor 1,023
            return False

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]
