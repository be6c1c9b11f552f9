"""Each flavour of client behind one interface, driven from outside by plain test code."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from typing import Any

from tests.support import LIMIT
from tests.support.loops import LoopThread
from watershed_mw.client import Connect, connect

FLAVOURS = ("threads", "asyncio", "uvloop", "asyncio and aiofastnet", "uvloop and aiofastnet")


class Client:
    """One flavour of client, driven from outside in plain test code.

    Args:
        flavour: one of ``FLAVOURS``.
        loop: where all but threads live.
    """

    def __init__(self, flavour: str, loop: LoopThread | None) -> None:
        self.flavour = flavour
        self.loop = loop
        self._opened: list[Any] = []

    def do(self, work: Callable[[], Any]) -> Any:
        """Call ``work`` where this flavour makes its calls, and await the result if it is awaitable."""
        if self.loop is None:
            return work()

        async def on_loop() -> Any:
            result = work()
            return await result if inspect.isawaitable(result) else result

        return self.loop.call(on_loop())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine; not available for threads."""
        assert self.loop is not None
        return self.loop.call(work)

    def open(self, url: Any, **options: Any) -> Conversation:
        """Open ``connect(url, ...)``."""
        return self.enter(connect(url, **options))

    def enter(self, connecting: Connect) -> Conversation:
        """Open the result of :func:`connect`."""
        conn = connecting.open() if self.loop is None else self.do(lambda: connecting)
        self._opened.append(conn)
        return Conversation(self, conn)

    def take(self, conn: Any) -> Conversation:
        """Adopt a connection that was created in another way."""
        self._opened.append(conn)
        return Conversation(self, conn)

    def close(self) -> None:
        """Drop everything that is still open."""
        for conn in self._opened:
            self.do(conn.destroy)


class Conversation:
    """A connection whose calls are made where its flavour makes them."""

    def __init__(self, client: Client, conn: Any) -> None:
        self._client = client
        self.conn = conn

    def send(self, data: str | bytes) -> None:
        self._client.do(lambda: self.conn.send(data))

    def receive(self, timeout: float = LIMIT) -> str | bytes:
        message: str | bytes = self._client.do(lambda: self.conn.receive(timeout))
        return message

    def echo(self, data: str | bytes = "hello") -> None:
        """Send a message and receive it back."""
        self.send(data)
        got = self.receive()
        assert len(got) == len(data)
        assert got == data

    def end(self, code: int = 1000) -> int:
        """Close, and return the resulting code."""
        self._client.do(lambda: self.conn.end(code=code))
        code = self.conn.close_code
        return code


def descriptors() -> int:
    """The number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"))


async def left_tasks() -> int:
    """The tasks besides the current one."""
    return len(asyncio.all_tasks()) - 1
