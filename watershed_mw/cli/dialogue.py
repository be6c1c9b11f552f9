"""The common part of ``connect`` on a terminal and in a pipe: opens connections, handles signals and reports closes.

``pipe.py`` and ``terminal.py`` send and receive the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
from rich.console import Console

from ..client import Connect, connect, worth_retrying
from ..client.handshake import shown
from ..connection.aio.api import AsyncConnection
from ..errors import ConnectionClosed, HandshakeError, WatershedError
from .output import Failure, describe_end, escape, say, status_of

__all__ = ["Dialogue", "Order", "plain"]

# Bytes of a refusal's body to show.
_MAX_BODY: Final = 500


@dataclass(frozen=True, slots=True)
class Order:
    """The arguments of the command line.

    Attributes:
        url: the server's URL.
        options: arguments of :func:`watershed_mw.client.connect`.
        reconnect: whether to reconnect after a failure or a close.
        verbose: whether to show the response's header fields, PINGs, PONGs and counts.
    """

    url: str
    options: dict[str, Any]
    reconnect: bool = False
    verbose: bool = False


class Dialogue:
    """Connects, runs :meth:`converse` on each connection, and returns the exit status.

    Args:
        order: the arguments of the command line.
        console: the console for states and errors.

    Raises:
        ValueError, TypeError, ImportError: an argument is invalid.
    """

    close_timeout = 5.0
    """Seconds to wait for the peer's Close frame; short, as a person is waiting."""

    def __init__(self, order: Order, console: Console) -> None:
        self.order = order
        self.console = console
        self.connection: AsyncConnection | None = None
        self.over = False  # whether not to reconnect
        self.signal = 0  # the number of the signal that ends the program, or 0
        self._interrupted = False
        self._error: BaseException | None = None
        self._connect: Connect = connect(
            order.url, **order.options, close_timeout=self.close_timeout, retry=self._is_worth_retrying
        )

    async def converse(self, connection: AsyncConnection) -> None:
        """Send and receive until the connection is closed."""
        raise NotImplementedError

    async def run(self) -> int:
        """Run to the end, and return the exit status.

        Raises:
            Failure: no connection could be opened.
        """
        task = asyncio.current_task()
        assert task is not None
        with self._signals(task.cancel):
            try:
                return await self._run()
            except asyncio.CancelledError:
                if not self.signal:
                    raise
        return 128 + self.signal

    async def _run(self) -> int:
        status = 0
        try:
            async for connection in self._connections():
                self.connection, self._error = connection, None
                connection.on("error", self._note_error)
                if self.order.verbose:
                    self._show_response(connection)
                try:
                    await self.converse(connection)
                    await connection.end()
                finally:
                    self.connection = None
                    connection.destroy()
                status = self._show_end(connection)
                if self.over:
                    break
        except (OSError, ValueError, WatershedError) as error:  # ValueError: an invalid proxy in the environment
            raise Failure(_describe_failure(error, self.order.url)) from error
        return 128 + self.signal if self.signal else status

    async def _connections(self) -> AsyncIterator[AsyncConnection]:
        if self.order.reconnect:
            async for connection in self._connect:
                yield connection
        else:
            yield await self._connect

    def _is_worth_retrying(self, error: Exception) -> bool:
        if self.over or not worth_retrying(error):
            return False
        if not isinstance(error, ConnectionClosed):  # which has already been shown
            self.show(_describe_failure(error, self.order.url) + "; trying again", "yellow")
        return True

    # --- signals -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Close the connection with 1000 on a signal; cancel the task on a second one, or without a connection."""

        def leave(number: int) -> None:
            again, self._interrupted = self._interrupted, True
            self.signal = number
            self.over = True
            if again or self.connection is None:
                cancel()
            else:
                self.leave(self.connection)

        loop = asyncio.get_running_loop()
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        with contextlib.suppress(NotImplementedError):  # on Windows
            for number in numbers:
                loop.add_signal_handler(number, leave, number)
        try:
            yield
        finally:
            with contextlib.suppress(NotImplementedError):
                for number in numbers:
                    loop.remove_signal_handler(number)

    def leave(self, connection: AsyncConnection) -> None:
        """Close the connection after a signal."""
        connection.end()

    # --- output ------------------------------------------------------------------------------------------

    def show(self, text: str, style: str = "") -> None:
        """Write a line to the console."""
        say(self.console, text, style)

    def _show_response(self, connection: AsyncConnection) -> None:
        response = connection.request
        self.show(f"connected to {escape(connection.remote) or plain(self.order.url)}", "dim")
        lines = [f"{response.status_code} {response.reason_phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers.multi_items()]
        for line in lines:
            self.show(f"  {escape(line)}", "dim")

    def _note_error(self, error: BaseException) -> None:
        self._error = error

    def _show_end(self, connection: AsyncConnection) -> int:
        code, reason = connection.close_code or 1006, connection.close_reason or ""
        status = status_of(code)
        # A reason already describes the error, shortened to fit into the Close frame.
        why = escape(f": {self._error}") if self._error is not None and not reason else ""
        self.show_end(describe_end(code, reason) + why, status)
        if self.order.verbose:
            stats = connection.stats
            self.show(
                f"  {connection.duration:.3f} s, received {stats.messages_received} messages in "
                f"{stats.bytes_received} bytes, sent {stats.messages_sent} in {stats.bytes_sent}",
                "dim",
            )
        return status

    def show_end(self, text: str, status: int) -> None:
        """Report the end of a connection."""
        self.show(text, "red" if status else "dim")


def _describe_failure(error: Exception, url: str) -> str:
    """Why no connection could be opened, in one line; a refusal includes its status and body."""
    if isinstance(error, HandshakeError):
        refused = error.response is not None and error.response.status_code != 101
        body = error.body[:_MAX_BODY].decode("utf-8", "replace").strip() if refused else ""
        more = " ..." if len(error.body) > _MAX_BODY else ""
        return escape(f"{error}: {body}{more}" if body else str(error))
    text = str(error) or type(error).__name__
    # The text of a timeout contains the URL.
    return escape(text if isinstance(error, TimeoutError) else f"no connection to {plain(url)}: {text}")


def plain(url: str) -> str:
    """A URL without credentials and query, which may be secret, and without control characters."""
    try:
        return escape(shown(httpx.URL(url)))
    except httpx.InvalidURL:
        return escape(url)
