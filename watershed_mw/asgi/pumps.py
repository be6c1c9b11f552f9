"""The tasks that carry a :class:`.PortableConnection`'s messages: a reader and a writer; and how handlers are awaited.

The reader takes what the server has, so that an end is noticed at once; the writer gives the server what is to be sent,
in order. Both ask :mod:`watershed_mw.core.message_protocol` what comes next. They hold on to the connection, and it not
to them: one that has ended is free at once.
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
    """Takes messages from the server until the connection has ended.

    Args:
        receive: the ASGI channel.
        core: the connection's state.
        changes: notified after each message, and at the end.
        wait_for_room: waits until another message may come.
        take: called with each message.
        failed: called with what the server raised.

    Attributes:
        running: whether it may still receive.
    """

    def __init__(
        self,
        receive: Receive,
        core: MessageProtocol,
        changes: Changes,
        wait_for_room: Callable[[], Awaitable[None]],
        take: Callable[[Message], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.running = True
        self._receive = receive
        self._core = core
        self._changes = changes
        self._wait_for_room = wait_for_room
        self._take = take
        self._failed = failed
        self._receiving = anyio.CancelScope()

    async def run(self) -> None:
        """The task."""
        try:
            with self._receiving:
                while not self._core.ended:
                    await self._wait_for_room()
                    self._take(await self._receive())
                    self._changes.notify()
        except Exception as error:  # noqa: BLE001  # anything that a server or a middleware raises ends the connection
            self._failed(error)
        finally:
            self.running = False
            self._changes.notify()

    async def stop(self) -> None:
        """Receive no more, and wait until nothing does."""
        self._receiving.cancel()
        while self.running:
            await self._changes.wait()

    async def take_end(self, seconds: float) -> None:
        """Take what is there up to the end, once :attr:`running` is over; for so many seconds at most."""
        with anyio.move_on_after(seconds):
            while not self._core.ended:
                self._take(await self._receive())


class Writer:
    """Gives the server what the connection sends, until that has ended.

    Args:
        send: the ASGI channel.
        core: the connection's state.
        changes: awaited while there is nothing to send.
        server: what is known of the server.
        reader: stopped before a Close is sent.
        close_timeout: seconds to wait for the peer's Close where ours came too late.
        taken: called after each message that the server has taken.
        failed: called with what the server raised.
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
        """The task."""
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
            # Nothing more is expected, and granian holds a Close back while a task is receiving.
            await self._reader.stop()
        try:
            await self._send(_as_asgi(item, self._server))
        except OSError:
            if not self._reader.running:
                # Our Close came too late; the server still has the peer's to report.
                await self._reader.take_end(self._close_timeout)
            raise
        self._core.taken()
        self._taken()


async def await_results(results: tuple[Any, ...], failed: Callable[[BaseException], None]) -> None:
    """Await what handlers returned, in turn; ``failed`` is called with what one of them raises."""
    for result in results:
        if not inspect.isawaitable(result):
            continue
        task = running_task()
        try:
            await result
        except ConnectionClosed:
            pass  # A reply came too late; the end itself says so.
        except BaseException as error:
            if ends_task(error, task):
                raise
            failed(error)  # any class: it ends this connection alone


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
