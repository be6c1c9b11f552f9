"""Waiting for a condition, a value or a thread, always with a limit and never for a fixed time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tests.support import LIMIT

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str = "") -> T:
    """The first true value of `condition`; AssertionError after the limit."""
    deadline = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it never came: {what or condition}"
        time.sleep(0.005)
    return value


class Gate(Generic[T]):
    """A value that one thread passes to another, or to a coroutine, once."""

    def __init__(self) -> None:
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def put(self, value: T) -> None:
        self._future.set_result(value)

    def get(self) -> T:
        return self._future.result(LIMIT)

    async def wait(self) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(self._future), LIMIT)

    @property
    def passed(self) -> bool:
        return self._future.done()


class Inbox(Generic[T]):
    """Values that an application reports, in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[T] = queue.Queue()

    def put(self, value: T) -> None:
        self._queue.put(value)

    def get(self) -> T:
        try:
            return self._queue.get(timeout=LIMIT)
        except queue.Empty:
            raise AssertionError("the application reported nothing") from None

    @property
    def empty(self) -> bool:
        return self._queue.empty()


def until(condition: Callable[[], object], what: str = "") -> None:
    """Poll until ``condition()`` holds."""
    deadline = time.monotonic() + LIMIT
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"had {LIMIT} s and did not come true: {what or inspect.getsource(condition)}")
        pause.wait(0.001)


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run ``work`` in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # the test gets it from the future
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True, name=f"test-{next(_numbers)}").start()
    return future


_numbers = itertools.count(1)
