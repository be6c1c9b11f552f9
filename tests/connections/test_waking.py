"""How a task that waits for a message resumes: immediately, as itself, and never inside another task."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.ways import ON_LOOP, SERVER, Link, Way
from tests.support.wire_peer import BINARY, KEY, PING, TEXT, request_head
from watershed_mw.connection.aio.writer import SENDS_PER_TURN
from watershed_mw.core.frames.codec import encode_frame

on_loop = pytest.mark.parametrize("way", ON_LOOP, ids=str)
who = contextvars.ContextVar("who", default="nobody")

EXITS = """
import asyncio, socket, sys
import {loop} as runner
from watershed_mw import Watershed

async def serve(ours, theirs):
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    conn = Watershed(origins="*").accept({request!r}, transport)
    theirs.sendall({frame!r})
    await conn.receive()
    sys.exit(7)

async def main():
    ours, theirs = socket.socketpair()
    working = asyncio.ensure_future(serve(ours, theirs))
    await asyncio.get_running_loop().create_future()  # forever: only the exit of the other task ends this

runner.run(main())
"""


@on_loop
def test_a_resumed_task_runs_as_itself(link: Link) -> None:
    """With its own context variables and as the current task, whatever delivered the bytes."""
    live, peer = link()

    async def wait(conn: Any, name: str) -> tuple[str, bool]:
        who.set(name)
        await conn.receive()
        return who.get(), asyncio.current_task() is tasks[name]

    tasks: dict[str, asyncio.Task[tuple[str, bool]]] = {}

    async def one_after_the_other(conn: Any) -> None:
        for name in ("Ann", "Ben"):
            tasks[name] = asyncio.ensure_future(wait(conn, name))
            await asyncio.sleep(0)
            peer.send(TEXT, "go on")
            assert await tasks[name] == (name, True)
        assert who.get() == "nobody"

    live.do(one_after_the_other).result(LIMIT)


@on_loop
def test_a_task_may_be_resumed_by_bytes_fed_in_another_task(link: Link) -> None:
    """As an in-memory transport may do: a task cannot resume inside another one, so it resumes later."""
    live, peer = link()

    async def bring(conn: Any) -> str | bytes:
        receiving = asyncio.ensure_future(conn.receive())
        await asyncio.sleep(0)
        conn.data_received(peer.frame(TEXT, "by hand"))
        assert not receiving.done()
        message: str | bytes = await receiving
        return message

    assert live.do(bring).result(LIMIT) == "by hand"


@on_loop
def test_a_receiver_after_a_cancelled_one_waits_on_its_own(link: Link) -> None:
    """Even if the previous one has not been told about its cancellation yet."""
    live, peer = link()

    async def one_after_the_other(conn: Any) -> None:
        for number in range(3):
            first = asyncio.ensure_future(conn.receive())
            await asyncio.sleep(0)
            first.cancel()
            peer.send(TEXT, str(number))
            assert await conn.receive() == str(number)
            with pytest.raises(asyncio.CancelledError):
                await first

    live.do(one_after_the_other).result(LIMIT)


@on_loop
def test_receive_works_in_tasks_timeouts_and_custom_awaitables(link: Link) -> None:
    live, peer = link()

    async def in_four_ways(conn: Any) -> list[str | bytes]:
        got = []
        for number in range(4):
            if number == 0:
                waiting = asyncio.create_task(conn.receive())
            elif number == 1:
                waiting = asyncio.ensure_future(asyncio.wait_for(conn.receive(), LIMIT))
            elif number == 2:
                waiting = asyncio.create_task(conn.receive(LIMIT))
            else:
                waiting = asyncio.create_task(conn.__anext__())
            await asyncio.sleep(0)
            peer.send(TEXT, str(number))
            got.append(await asyncio.shield(waiting))
        return got

    assert live.do(in_four_ways).result(LIMIT) == ["0", "1", "2", "3"]


@on_loop
def test_results_of_send_ping_and_end_may_be_awaited_wrapped_or_dropped(link: Link) -> None:
    live, peer = link()

    async def in_every_way(conn: Any) -> None:
        conn.send("let go")
        await conn.send("awaited")
        assert await asyncio.create_task(conn.send("a task")) is None
        await asyncio.gather(conn.send("two"), conn.ping("at once"))
        for number in range(SENDS_PER_TURN):
            await asyncio.create_task(conn.send(str(number)))  # now and then it waits for the next turn
        last = [conn.send("many in one turn") for _ in range(SENDS_PER_TURN + 1)][-1]
        assert last is not conn.send("one more")
        task = asyncio.create_task(last)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(asyncio.create_task(conn.end()), LIMIT)

    working = live.do(in_every_way)
    for expected in ("let go", "awaited", "a task", "two"):
        peer.expect(TEXT, expected)
    peer.expect(PING, "at once")
    for number in range(SENDS_PER_TURN):
        peer.expect(TEXT, str(number))
    for _ in range(SENDS_PER_TURN + 1):
        peer.expect(TEXT, "many in one turn")
    peer.expect(TEXT, "one more")
    peer.expect_close(1000)
    peer.send_close(1000)
    peer.close()
    working.result(LIMIT)


@on_loop
def test_a_series_of_large_sends_ends_normally(link: Link) -> None:
    """Bytes sent in one iteration do not count in the next."""
    live, peer = link()
    data = bytes(300_000)

    async def two_turns(conn: Any) -> tuple[int, int]:
        sent = conn.send(data)
        counted = conn._writer.sends
        await sent
        await asyncio.sleep(0)
        return counted, conn._writer.sends

    counting = live.do(two_turns)
    peer.expect(BINARY, data)
    counted, left = counting.result(LIMIT)
    assert counted > 0
    assert left == 0


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_exiting_the_program_is_not_swallowed(loop: str) -> None:
    """Not only the connection whose message made it exit."""
    program = EXITS.format(loop=loop, request=request_head(), frame=encode_frame(TEXT, b"leave", KEY))
    assert subprocess.run([sys.executable, "-c", program], timeout=LIMIT, capture_output=True).returncode == 7


@pytest.mark.parametrize("way", [Way("asyncio", "transport", False, SERVER)], ids=str)
def test_a_burst_consumed_immediately_does_not_pause_reading(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it is longer than the queue: nothing is read meanwhile, and pausing and resuming are two system calls."""
    live, peer = link(max_queued_messages=4)
    burst = [str(number) for number in range(50)]

    async def receive(conn: Any) -> list[str]:
        return [await conn.receive() for _ in burst]

    received = live.do(receive)
    live.flush()
    stops: list[object] = []
    real = asyncio.selector_events._SelectorSocketTransport.pause_reading  # type: ignore[attr-defined]

    def stop(transport: Any) -> None:
        stops.append(transport)
        real(transport)

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.pause_reading", stop)
    peer.write(b"".join(peer.frame(TEXT, text) for text in burst))
    assert received.result(LIMIT) == burst
    assert stops == []
