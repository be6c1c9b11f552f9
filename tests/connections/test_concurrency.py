"""One connection, several threads or tasks: frames stay intact, nothing hangs, and cancelling loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support import LIMIT, SOON
from tests.support.waiting import in_thread, until
from tests.support.ways import EACH, FEW, IN_BACKGROUND, IN_THREADS, ON_LOOP, SERVER, Link, Opener, Way
from tests.support.wire_peer import TEXT
from watershed_mw import ConnectionClosed, LocalProtocolError

few = pytest.mark.parametrize("way", FEW, ids=str)
each = pytest.mark.parametrize("way", EACH, ids=str)
in_threads = pytest.mark.parametrize("way", IN_THREADS, ids=str)
on_loop = pytest.mark.parametrize("way", ON_LOOP, ids=str)
WRITERS, COUNT = 8, 200
Interrupt = Callable[[Callable[[], object]], object]


@pytest.mark.need(7)
@each
def test_messages_of_eight_threads_keep_each_threads_order(link: Link) -> None:
    """From threads other than the loop's, too."""
    live, peer = link()
    live.run()
    filling = "x" * 300

    def write(number: int) -> None:
        for count in range(COUNT):
            live.conn.send(f"{number} {count} {filling}")

    writing = [in_thread(partial(write, number)) for number in range(WRITERS)]
    seen: dict[str, list[int]] = {}
    for _ in range(WRITERS * COUNT):
        frame = peer.read()
        assert frame.opcode == TEXT
        number, count, rest = frame.payload.decode().split(" ")
        assert rest == filling
        seen.setdefault(number, []).append(int(count))
    for future in writing:
        future.result(LIMIT)
    assert seen == {str(number): list(range(COUNT)) for number in range(WRITERS)}


@in_threads
def test_several_threads_may_receive_and_each_message_goes_to_one(link: Link) -> None:
    live, peer = link()
    collecting = [live.collect() for _ in range(4)]
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(500)))
    peer.begin_close()
    collected = [future.result(LIMIT) for future in collecting]
    assert sorted(int(text) for texts in collected for text in texts) == list(range(500))
    for texts in collected:
        assert texts == sorted(texts, key=int)


@pytest.mark.need(30)
@few
@pytest.mark.parametrize("method", ["end", "destroy"])
def test_another_thread_wakes_a_send_that_waits_for_the_peer(link: Link, way: Way, method: str) -> None:
    live, peer = link()
    waiting = live.begin("receive", LIMIT) if way.pulls else live.run()
    threading.Event().wait(0.02)
    calling = in_thread(getattr(live.conn, method))
    if method == "end":
        peer.answer_close(1000)
    error = waiting.exception(SOON)
    assert error is None or isinstance(error, ConnectionClosed)
    calling.result(LIMIT)
    assert live.ended()[0] == (1000 if method == "end" else 1006)


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    """Raise KeyboardInterrupt in the main thread, which is this one, once a condition holds."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)

    def wait_and_raise(condition: Callable[[], object]) -> None:
        until(condition)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    yield lambda condition: in_thread(partial(wait_and_raise, condition))
    signal.signal(signal.SIGUSR1, before)


@in_threads
def test_an_interrupted_send_tears_no_message(link: Link, interrupt: Interrupt) -> None:
    """As gevent.Timeout does, or an exception from a signal handler."""
    live, peer = link(small=True)
    interrupt(lambda: live.conn._core.write_paused)
    with pytest.raises(KeyboardInterrupt):
        live.conn.send("x" * 4_000_000)
    sending = live.begin("send", "next")
    assert peer.read().payload == b"x" * 4_000_000
    assert peer.read().payload == b"next"
    sending.result(LIMIT)
    peer.send(TEXT, "heard")
    assert live.receive() == "heard", "the one who was interrupted is not the reader any more"


@in_threads
def test_an_interrupted_receive_loses_nothing(link: Link, interrupt: Interrupt) -> None:
    live, peer = link()
    interrupt(lambda: live.conn._stream.turns.reader)
    with pytest.raises(KeyboardInterrupt):
        live.conn.receive()
    peer.send(TEXT, "heard")
    assert live.receive() == "heard"


@in_threads
def test_an_interrupt_after_reading_loses_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    live, peer = link()
    peer.send(TEXT, "heard")
    with monkeypatch.context() as patch:

        def interrupted(pump: Any, conn: Any, deadline: float | None, me: int) -> None:
            until(lambda: live.conn._stream.socket.receive(deadline) or live.conn._stream.socket.data)
            signal.default_int_handler(signal.SIGINT, None)

        patch.setattr("watershed_mw.connection.threads.pump.Pump._read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            live.conn.receive(LIMIT)
    assert live.receive() == "heard"


@in_threads
def test_destroy_works_during_a_read(link: Link) -> None:
    """As in a signal handler, which runs in the thread that it interrupts."""
    live, peer = link(trace=lambda probe, conn, data: probe == "read-buffer" and conn.destroy())
    receiving = live.begin("receive")
    peer.send(TEXT, "too late")
    assert isinstance(receiving.exception(LIMIT), ConnectionClosed)
    assert live.ended() == (1006, "")


@in_threads
def test_destroy_works_during_a_read_before_sending(link: Link) -> None:
    live, peer = link(trace=lambda probe, conn, data: probe == "read-buffer" and conn.destroy())
    peer.send(TEXT, "too late")
    until(lambda: isinstance(live.begin("send", "looks").exception(LIMIT), ConnectionClosed))
    live.gone()
    assert live.ended() == (1006, "")


@in_threads
def test_destroy_works_during_a_write(link: Link) -> None:
    live, _ = link(trace=lambda probe, conn, data: probe == "send-close" and conn.destroy())
    live.call("end")
    live.gone()
    assert live.ended() == (1006, "")


@in_threads
def test_destroy_wakes_a_thread_that_waits_to_write(link: Link) -> None:
    live, peer = link(small=True)
    sending = live.begin("send", bytes(8 * 2**20))
    while peer.silent():
        threading.Event().wait(0.001)
    live.call("destroy")
    assert isinstance(sending.exception(SOON), ConnectionClosed)


@pytest.mark.need(30)
@on_loop
def test_concurrent_receivers_get_one_message_each_in_order(link: Link) -> None:
    """Whether the messages arrive one by one or at once; a task that asks again queues behind the others."""
    live, peer = link()
    asked = ["receive", "__anext__", "receive in time", "receive", "__anext__"]

    async def ask(conn: Any, how: str) -> tuple[str | bytes, str | bytes]:
        call = {"receive": conn.receive, "__anext__": conn.__anext__, "receive in time": lambda: conn.receive(LIMIT)}
        return await call[how](), await call[how]()

    async def ask_all(conn: Any, at_once: bool) -> list[tuple[str | bytes, str | bytes]]:
        tasks = [asyncio.ensure_future(ask(conn, how)) for how in asked]
        await asyncio.sleep(0)
        frames = [peer.frame(TEXT, str(number)) for number in range(2 * len(asked))]
        if at_once:
            peer.write(b"".join(frames))
        else:
            for number, frame in enumerate(frames):
                peer.write(frame)
                while conn.stats.messages_received <= number:  # noqa: ASYNC110  # there is no event for it
                    await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    for at_once in (True, False):
        got = live.do(lambda conn, at_once=at_once: ask_all(conn, at_once)).result(LIMIT)  # type: ignore[misc]
        assert got == [(str(number), str(number + len(asked))) for number in range(len(asked))]


@on_loop
def test_an_earlier_receiver_gets_the_first_message(link: Link) -> None:
    live, peer = link()

    async def leave_behind(conn: Any) -> list[str | bytes]:
        tasks = [asyncio.ensure_future(conn.receive()), asyncio.ensure_future(asyncio.sleep(0))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        peer.write(peer.frame(TEXT, "first") + peer.frame(TEXT, "second"))
        second = await conn.receive()
        first: str | bytes = await tasks[0]
        return [first, second]

    assert live.do(leave_behind).result(LIMIT) == ["first", "second"]


@on_loop
@pytest.mark.parametrize("cancelled", [(0,), (1,), (0, 1), (1, 3), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("moment", ["before", "with", "after one"])
def test_cancelled_receivers_take_no_message_from_later_ones(
    link: Link, cancelled: tuple[int, ...], moment: str
) -> None:
    live, peer = link()

    async def ask_all(conn: Any) -> list[str | bytes]:
        got: list[str | bytes] = []

        async def ask() -> None:
            got.append(await conn.receive())

        tasks = [asyncio.ensure_future(ask()) for _ in range(5)]
        await asyncio.sleep(0)
        if moment == "before":
            for number in cancelled:
                tasks[number].cancel()
        peer.write(b"".join(peer.frame(TEXT, str(number)) for number in range(5)))
        if moment == "after one":
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        else:
            while conn.stats.messages_received < 5:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        await asyncio.wait(tasks)
        while len(got) < 5:
            got.append(await conn.receive(LIMIT))
        return got

    assert live.do(ask_all).result(LIMIT) == [str(number) for number in range(5)]


@on_loop
def test_every_receiver_sees_the_end(link: Link) -> None:
    live, peer = link()

    async def ask(conn: Any, how: str) -> str:
        try:
            await getattr(conn, how)()
        except (ConnectionClosed, StopAsyncIteration) as error:
            return type(error).__name__
        return "a message"

    async def ask_all(conn: Any) -> list[str]:
        tasks = [asyncio.ensure_future(ask(conn, how)) for how in ("receive", "__anext__") * 3]
        await asyncio.sleep(0)
        peer.send(TEXT, "for the first")
        peer.send_close(1000)
        return await asyncio.gather(*tasks)

    asking = live.do(ask_all)
    peer.expect_close(1000)
    peer.finish()
    assert asking.result(LIMIT) == ["a message"] + ["StopAsyncIteration", "ConnectionClosed"] * 2 + [
        "StopAsyncIteration"
    ]


@on_loop
def test_a_receiver_in_line_has_its_own_timeout(link: Link) -> None:
    live, peer = link()

    async def too_long(conn: Any) -> list[str | bytes]:
        first = asyncio.ensure_future(conn.receive())
        await asyncio.sleep(0)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                await conn.receive(timeout)
        third = asyncio.ensure_future(conn.receive())
        await asyncio.sleep(0)
        peer.write(peer.frame(TEXT, "first") + peer.frame(TEXT, "third"))
        return [await first, await third]

    assert live.do(too_long).result(LIMIT) == ["first", "third"]


@on_loop
@pytest.mark.parametrize(
    "ask",
    [
        lambda conn: conn.receive(),
        lambda conn: conn.receive(LIMIT),
        lambda conn: conn.receive(0),
        lambda conn: conn.__anext__(),
        lambda conn: conn.send("too late"),
        lambda conn: conn.ping(),
        lambda conn: conn.wait_closed(),
        lambda conn: conn.end(),
    ],
    ids=["receive", "receive in time", "receive at once", "iteration", "send", "ping", "wait_closed", "end"],
)
def test_receiving_in_a_loop_after_the_end_lets_other_tasks_run(link: Link, ask: Any) -> None:
    live, _ = link()

    async def again_and_again(conn: Any) -> None:
        while True:
            with contextlib.suppress(ConnectionClosed, StopAsyncIteration):
                await ask(conn)

    async def beside(conn: Any) -> None:
        conn.destroy()
        await conn.wait_closed()
        asking = asyncio.ensure_future(again_and_again(conn))
        for _ in range(20):
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    live.do(beside).result(LIMIT)


@on_loop
def test_calling_run_in_a_loop_after_the_end_lets_other_tasks_run(link: Link) -> None:
    live, _ = link()

    async def beside(conn: Any) -> None:
        conn.destroy()

        async def again_and_again() -> None:
            while True:
                await conn.run()

        asking = asyncio.ensure_future(again_and_again())
        for _ in range(20):
            await asyncio.sleep(0)
        asking.cancel()

    live.do(beside).result(LIMIT)


@on_loop
def test_pinging_in_a_loop_lets_other_tasks_run(link: Link) -> None:
    live, _ = link()

    async def beside(conn: Any) -> None:
        async def again_and_again() -> None:
            while True:
                await conn.ping()

        pinging = asyncio.ensure_future(again_and_again())
        for _ in range(3):
            await asyncio.sleep(0)
        pinging.cancel()
        conn.destroy()

    live.do(beside).result(LIMIT)


@pytest.mark.need(30)
@on_loop
@pytest.mark.parametrize("moment", ["before", "with"])
def test_cancelling_receive_loses_nothing(link: Link, moment: str) -> None:
    live, peer = link()

    async def cancelled(conn: Any) -> list[str | bytes]:
        got: list[str | bytes] = []
        for number in range(20):
            task = asyncio.ensure_future(conn.receive())
            await asyncio.sleep(0)
            if moment == "before":
                task.cancel()
            peer.send(TEXT, str(number))
            while moment == "with" and conn.stats.messages_received <= number:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0)
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                got.append(await conn.receive(LIMIT))
        return got

    assert live.do(cancelled).result(LIMIT) == [str(number) for number in range(20)]


@on_loop
def test_cancelling_iteration_and_run_loses_nothing(link: Link) -> None:
    live, peer = link()

    async def iterate(conn: Any) -> None:
        async for _ in conn:
            raise AssertionError

    async def run(conn: Any) -> list[str | bytes]:
        got: list[str | bytes] = []
        for work in (iterate(conn), conn.send("x"), iterate(conn)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.ensure_future(_endless(work)), 0.01)
        peer.send(TEXT, "pulled")
        got.append(await conn.receive())
        conn.on("text", got.append)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(conn.run(), 0.01)
        peer.send(TEXT, "pushed")
        while len(got) < 2:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)
        return got

    assert live.do(run).result(LIMIT) == ["pulled", "pushed"]


async def _endless(work: Any) -> None:
    await work
    await asyncio.sleep(LIMIT)


@on_loop
def test_errors_raise_in_the_calling_thread(link: Link) -> None:
    live, peer = link()
    with pytest.raises(TypeError):
        live.conn.send(5)
    with pytest.raises(LocalProtocolError):
        live.conn.send("\ud800")
    with pytest.raises(LocalProtocolError):
        live.conn.ping(b"x" * 126)
    with pytest.raises(LocalProtocolError):
        live.conn.end(code=1006)
    live.conn.send("fine")
    peer.expect(TEXT, "fine")
    live.conn.destroy()
    live.ended()
    with pytest.raises(ConnectionClosed):
        live.conn.send("late")


@pytest.mark.parametrize("way", IN_BACKGROUND, ids=str)
def test_a_peer_may_leave_before_the_background_begins(opener: Opener, way: Way) -> None:
    live, peer = opener.open(way)
    peer.reset()
    over = live.run()
    assert over.result(LIMIT) == (1006, "")
    live.call("end")
    live.call("destroy")
    with pytest.raises(ConnectionClosed):
        live.send("late")


@pytest.mark.need(30)
@pytest.mark.parametrize("way", [Way("threads", "socket", False, SERVER)], ids=str)
def test_concurrent_end_and_destroy_emit_one_end(link: Link) -> None:
    for _ in range(10):
        live, peer = link()
        calls = [live.begin(method) for method in ("end", "destroy", "end", "destroy", "receive")]
        for call in calls:
            error = call.exception(LIMIT)
            assert error is None or isinstance(error, ConnectionClosed)
        assert [event[0] for event in live.endings.events].count("end") == 1
        peer.close()
