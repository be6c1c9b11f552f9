"""An ended connection leaves nothing behind: no task, socket, timer, thread or memory."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import tracemalloc
from typing import Any
from weakref import ref

import pytest

from tests.support import LIMIT
from tests.support.waiting import until
from tests.support.ways import SERVER, Opener, Way, tasks_are_gone
from tests.support.wire_peer import BINARY, TEXT
from watershed_mw import WatershedConnection
from watershed_mw.runtime.loop_thread import background_loop
from watershed_mw.runtime.timers import timers_of

WAYS = (
    Way("asyncio", "streams", False, SERVER),
    Way("uvloop", "transport", False, SERVER),
    Way("threads", "socket", False, SERVER),
    Way("background", "socket", False, SERVER),
)
ENDINGS = ("their close", "reset", "destroy", "violation")
ROUND = len(ENDINGS) * 25


def one(opener: Opener, way: Way, ending: str) -> None:
    live, peer = opener.open(way, setup=lambda conn: conn.on("text", conn.send))
    over = live.run()
    peer.send(TEXT, "hello")
    peer.expect(TEXT, "hello")
    if ending == "their close":
        peer.begin_close()
    elif ending == "reset":
        peer.reset()
    elif ending == "destroy":
        live.call("destroy")
    else:
        peer.send(TEXT, b"\xff")
        peer.expect_close(1007)
    peer.close()
    over.exception(LIMIT)  # the echo may have come too late
    opener.close()


def connections() -> int:
    gc.collect()
    return sum(isinstance(thing, WatershedConnection) for thing in gc.get_objects())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("flavour", ["asyncio", "uvloop"])
def test_a_connection_that_received_large_messages_is_freed_without_gc(opener: Opener, flavour: str, tls: bool) -> None:
    """Transports keep references to the methods through which they have read a large message."""
    live, peer = opener.open(Way(flavour, "transport", tls, SERVER))
    conn = ref(live.conn)
    for _ in range(2):
        peer.send(BINARY, bytes(2**20))
        assert live.receive() == bytes(2**20)
    ending = live.begin("end")
    peer.answer_close()
    ending.result(LIMIT)
    gc.disable()
    try:
        opener.close()
        del live, ending
        until(lambda: conn() is None, "the connection is gone")
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_200_connections_leave_nothing_behind(opener: Opener, way: Way) -> None:
    def rounds() -> int:
        for number in range(ROUND):
            one(opener, way, ENDINGS[number % len(ENDINGS)])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    before = connections()
    tracemalloc.start()
    try:
        first = rounds()
        open_files, threads = descriptors(), threading.active_count()
        second = rounds()
    finally:
        tracemalloc.stop()
    until(lambda: connections() <= before, "every connection is collected")
    assert descriptors() <= open_files + 1  # a loop's thread may be at work for the last one
    until(lambda: threading.active_count() <= threads)
    assert second - first < 64 * 2**10, f"{second - first} bytes more after {ROUND} connections more"
    if way.flavour == "threads":
        return
    loop = background_loop()[0] if way.flavour == "background" else opener.loop(way.flavour).loop

    async def look() -> tuple[bool, Any]:
        timers = timers_of(asyncio.get_running_loop())
        return await tasks_are_gone(), (timers._waiting, timers._times, timers._handle)

    assert asyncio.run_coroutine_threadsafe(look(), loop).result(LIMIT) == (True, (0, [], None))
