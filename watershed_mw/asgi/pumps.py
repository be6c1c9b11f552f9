"""The tasks of a :class:`.PortableConnection`: a reader, a writer, and the awaiting of handlers.

The reader receives from the server without waiting for the application, so that a disconnect is noticed immediately.
The writer sends in order. Both keep their state in :mod:`watershed_mw.core.message_protocol`. They refer to the
connection, but it does not refer to them, so it is freed as soon as it has ended.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from ..core.codes import CloseCode
from ..core.message_protocol import MessageProtocol, Outgoing
from ..errors import ConnectionClosed
from .channels import Message, Receive, Send
from .servers import ASGIServer
from .tasks import Changes, ends_task, running_task

__all__ = ["Reader", "Writer", "await_results"]


class Reader:
    """Receives messages from the server until the connection has ended.

    Args:
        receive: the ASGI channel.
        core: the connection's protocol state.
        changes: notified after each message, and at the end.
        wait_for_capacity: waits until another message may be received.
        take: called with each message.
        failed: called with an exception from the server.

    Attributes:
        running: whether the task may still receive.
    """

    def __init__(
        self,
        receive: Receive,
        core: MessageProtocol,
        changes: Changes,
        wait_for_capacity: Callable[[], Awaitable[None]],
        take: Callable[[Message], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.running = True
        self._receive = receive
        self._core = core
        self._changes = changes
        self._wait_for_capacity = wait_for_capacity
        self._take = take
        self._failed = failed
        self._receiving = anyio.CancelScope()

    async def run(self) -> None:
        """Receive until the connection has ended."""
        try:
            with self._receiving:
                while not self._core.ended:
                    await self._wait_for_capacity()
                    self._take(await self._receive())
                    self._changes.notify()
        except Exception as error:  # noqa: BLE001  # anything that a server or a middleware raises ends the connection
            self._failed(error)
        finally:
            self.running = False
            self._changes.notify()

    async def stop(self) -> None:
        """Cancel :meth:`run`, and wait until it has returned."""
        self._receiving.cancel()
        while self.running:
            await self._changes.wait()

    async def take_end(self, seconds: float) -> None:
        """After :meth:`run` has returned, receive up to the disconnect, for at most this many seconds."""
        with anyio.move_on_after(seconds):
            while not self._core.ended:
                self._take(await self._receive())


class Writer:
    """Sends the connection's messages to the server until the connection has ended.

    Args:
        send: the ASGI channel.
        core: the connection's protocol state.
        changes: awaited while no message is queued.
        server: the server and its limitations.
        reader: stopped before a Close is sent.
        close_timeout: seconds to wait for the peer's Close if ours was too late.
        taken: called after each message that the server has taken.
        failed: called with an exception from the server.
        stopped: called at the end.
    """

    def __init__(
        self,
        send: Send,
        core: MessageProtocol,
        changes: Changes,
        server: ASGIServer,
        reader: Reader,
        close_timeout: float,
        taken: Callable[[], None],
        failed: Callable[[Exception], None],
        stopped: Callable[[], None],
    ) -> None:
        self._stopped = stopped
        self._send = send
        self._core = core
        self._changes = changes
        self._server = server
        self._reader = reader
        self._close_timeout = close_timeout
        self._taken = taken
        self._failed = failed

    async def run(self) -> None:
        """Send until the connection has ended."""
        try:
            while True:
                while (item := self._core.next_to_send()) is None:
                    if self._core.ended:
                        return
                    await self._changes.wait()
                await self._write(item)
        except Exception as error:  # noqa: BLE001  # anything that a server or a middleware raises ends the connection
            self._failed(error)
        finally:
            self._stopped()

    async def _write(self, item: Outgoing) -> None:
        if isinstance(item, tuple):
            # No more messages are expected, and granian holds a Close back while a task is receiving.
            await self._reader.stop()
        try:
            await self._send(_as_asgi(item, self._server))
        except OSError:
            if not self._reader.running:
                # The peer closed first, and the server has yet to report its Close.
                await self._reader.take_end(self._close_timeout)
            raise
        self._core.taken()
        self._taken()


async def await_results(results: tuple[Any, ...], failed: Callable[[BaseException], None]) -> None:
    """Await the awaitables among the handlers' results, in order; exceptions go to ``failed``."""
    for result in results:
        if not inspect.isawaitable(result):
            continue
        task = running_task()
        try:
            await result
        except ConnectionClosed:
            pass  # the handler replied too late; the end of the connection is reported anyway
        except BaseException as error:
            if ends_task(error, task):
                raise
            failed(error)  # whatever its class, it ends only this connection


def _as_asgi(item: Outgoing, server: ASGIServer) -> Message:
    if isinstance(item, str):
        return {"type": "websocket.send", "text": item}
    if isinstance(item, bytes):
        return {"type": "websocket.send", "bytes": item}
    code, reason = item
    if code == CloseCode.NO_STATUS:
        code = CloseCode.NORMAL.value  # ASGI has no Close without a code
    elif not server.sends(code):
        code += 3000  # for example 4009, as the server cannot send 1009
    return {"type": "websocket.close", "code": code, "reason": reason}
