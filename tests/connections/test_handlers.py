"""Handlers that raise, wait, or end their own connection, and the connection as a context manager."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.ways import EACH, FEW, FEW_PULLING, ON_LOOP, Link, Live, Log, Way
from tests.support.wire_peer import PING, PONG, TEXT
from watershed_mw import ConnectionClosed

each = pytest.mark.parametrize("way", EACH, ids=str)
few = pytest.mark.parametrize("way", FEW, ids=str)
few_pulling = pytest.mark.parametrize("way", FEW_PULLING, ids=str)
on_loop = pytest.mark.parametrize("way", ON_LOOP, ids=str)


class Oops(Exception):
    pass


class Odd(BaseException):
    pass


raised = pytest.mark.parametrize(
    "raised",
    [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Odd],
    ids=lambda kind: kind.__name__,
)


def running(live: Live, way: Way) -> Future[Any]:
    """The result or exception of ``run`` as a result: a task that raised SystemExit would end its loop."""

    async def on_loop(conn: Any) -> Any:
        try:
            return await conn.run()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            return error

    def in_a_thread(conn: Any) -> Any:
        try:
            return conn.run()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            return error

    over = live.do(on_loop if way.on_loop else in_a_thread) if way.pulls else live.run()
    live.flush()  # now run() runs
    return over


def fail(*_args: Any) -> None:
    raise Oops


async def fail_later(*_args: Any) -> None:
    await asyncio.sleep(0)
    raise Oops


def logged(caplog: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    return [record.exc_info[0] for record in caplog.records if record.name == "watershed_mw" and record.exc_info]


@each
def test_a_handler_that_raises_ends_the_connection_with_1011(
    link: Link, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    """``run`` raises it; if nothing is waiting in ``run`` it is logged."""
    live, peer = link(setup=lambda conn: conn.on("text", fail))
    over = live.run()
    peer.send(PING)
    peer.expect(PONG)
    live.flush()  # now run() runs
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    if way.pulls:
        with pytest.raises(Oops):
            over.result(LIMIT)
        assert logged(caplog) == []
    else:
        assert over.result(LIMIT) == (1011, "")
        assert logged(caplog) == [Oops]
    assert live.endings.events == [("end", 1011, "")]


@raised
@few
def test_whatever_a_handler_raises_ends_the_connection_with_1011(
    link: Link, way: Way, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Not the thread or the event loop that called it, which others need as well."""

    def leave(_message: str) -> None:
        raise raised

    live, peer = link(setup=lambda conn: conn.on("text", leave))
    over = running(live, way)
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    if way.pulls:
        assert isinstance(over.result(LIMIT), raised)
    else:
        assert over.result(LIMIT) == (1011, "")
        assert logged(caplog) == [raised]
    assert live.endings.events == [("end", 1011, "")]


@raised
@on_loop
def test_whatever_a_coroutine_handler_raises_ends_the_connection_with_1011(
    link: Link, way: Way, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def leave(_message: str) -> None:
        await asyncio.sleep(0)
        raise raised

    live, peer = link(setup=lambda conn: conn.on("text", leave))
    over = running(live, way)
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    assert isinstance(over.result(LIMIT), raised)
    # Exceptions that end a task silently are reported here.
    assert logged(caplog) == ([raised] if raised is asyncio.CancelledError else [])


@raised
@on_loop
def test_whatever_a_handler_raises_without_run_is_logged(
    link: Link, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def leave(_message: str) -> None:
        raise raised

    live, peer = link(setup=lambda conn: conn.on("text", leave))
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    assert live.ended() == (1011, "")
    assert logged(caplog) == [raised]


@on_loop
def test_a_coroutine_handler_that_raises_ends_the_connection_with_1011(link: Link) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", fail_later))
    over = live.run()
    peer.send(PING)
    peer.expect(PONG)
    live.flush()  # now run() runs
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    with pytest.raises(Oops):
        over.result(LIMIT)


@on_loop
def test_without_run_an_error_of_a_handler_is_logged(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", fail_later))
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    assert live.ended() == (1011, "")
    assert logged(caplog) == [Oops]


@on_loop
def test_after_run_was_cancelled_an_error_of_a_handler_is_logged(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", fail))

    async def run_for_a_moment(conn: Any) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(conn.run(), 0.01)

    live.do(run_for_a_moment).result(LIMIT)
    peer.send(TEXT, "x")
    peer.answer_close(1011)
    live.ended()
    assert logged(caplog) == [Oops]


@few
def test_an_end_handler_that_raises_is_harmless(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    live, peer = link(setup=lambda conn: conn.on("end", fail))
    over = live.run()
    peer.begin_close(4000)
    live.endings.wait_for("end", 4000)
    error = over.exception(LIMIT)
    assert error is None or isinstance(error, Oops)
    assert isinstance(error, Oops) or logged(caplog) == [Oops]


@few_pulling
def test_a_ping_handler_may_raise_while_messages_are_pulled(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    live, peer = link(setup=lambda conn: conn.on("ping", fail))
    receiving = live.begin("receive", LIMIT)
    peer.send(PING)
    peer.expect(PONG)
    peer.answer_close(1011)
    with pytest.raises(ConnectionClosed):
        receiving.result(LIMIT)
    assert logged(caplog) == [Oops]


@pytest.mark.parametrize("way", [way for way in FEW if not way.on_loop], ids=str)
def test_a_reply_that_comes_too_late_is_not_an_error_of_the_handler(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    def setup(conn: Any) -> None:
        def handler(text: str) -> None:
            peer.reset()
            while True:
                conn.send(text)

        conn.on("text", handler)

    live, peer = link(setup=setup)
    over = live.run()
    peer.send(TEXT, "x")
    assert over.result(LIMIT) == (1006, "")
    assert logged(caplog) == []


@on_loop
def test_coroutine_handlers_run_in_order(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        async def first(text: str) -> None:
            for _ in range(int(text) % 3):
                await asyncio.sleep(0)
            log.note("first", text)

        async def second(text: str) -> None:
            log.note("second", text)
            await conn.send(text)

        conn.on("text", first)
        conn.on("text", second)

    live, peer = link(setup=setup)
    over = live.run()
    for number in range(30):
        peer.send(TEXT, str(number))
    for number in range(30):
        peer.expect(TEXT, str(number))
    peer.begin_close()
    over.result(LIMIT)
    assert log.events == [(name, str(number)) for number in range(30) for name in ("first", "second")]


@each
def test_a_handler_may_end_its_connection(link: Link) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", lambda text: conn.end(text, code=4000) and None))
    over = live.run()
    peer.send(TEXT, "bye")
    peer.answer_close(4000, "bye")
    assert over.result(LIMIT) == (4000, "")


@on_loop
def test_a_handler_may_await_the_end_of_its_connection(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        async def handler(_text: str) -> None:
            await conn.end(code=4000)
            log.note("awaited", conn.close_code)

        conn.on("text", handler)

    live, peer = link(setup=setup)
    over = live.run()
    peer.send(TEXT, "bye")
    peer.answer_close(4000)
    assert over.result(LIMIT) == (4000, "")
    assert log.events == [("awaited", 4000)]


@each
def test_a_handler_may_destroy_its_connection(link: Link) -> None:
    live, peer = link(setup=lambda conn: conn.on("text", lambda text: conn.destroy()))
    over = live.run()
    peer.write(peer.frame(TEXT, "x"))
    peer.expect_end()
    assert over.result(LIMIT) == (1006, "")
    assert live.endings.events == [("end", 1006, "")]


@few_pulling
@pytest.mark.parametrize("error, code", [(None, 1000), (Oops, 1011), (ConnectionClosed(1000), 1000)], ids=str)
def test_leaving_the_with_block_ends_the_connection(link: Link, way: Way, error: Any, code: int) -> None:
    live, peer = link()

    def use(conn: Any) -> None:
        with conn:
            if error is not None:
                raise error

    async def use_on_loop(conn: Any) -> None:
        async with conn:
            if error is not None:
                raise error

    using = live.do(use_on_loop if way.on_loop else use)
    peer.answer_close(code)
    raised = using.exception(LIMIT)
    assert raised is error if error is None else isinstance(raised, (Oops, ConnectionClosed))
    assert live.conn.closed
