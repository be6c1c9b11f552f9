"""Connections over ASGI messages, on asyncio and on trio: hypercorn's two workers and uvicorn's own class.

Each server is the real one, in a thread; what a test exchanges between requests is the application. Handlers use
anyio where they wait, so that the same handler runs on both. What a server itself decides (which close codes it
passes on) is the business of the server matrix; here it is what the connection does with it.
"""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer, binary, close, dial, text
from tests.support.portable_servers import Hypercorn, Server, UvicornsOwn, echo
from tests.support.threaded_servers import errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import (
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    UnsupportedServerError,
    WatershedASGI,
    live_connections,
)
from watershed_mw.asgi.portable import PortableConnection
from watershed_mw.connection.memory import memory_budget

T = TypeVar("T")
KIB = 2**10
MIB = 2**20


@pytest.fixture(scope="module", params=["hypercorn-asyncio", "hypercorn-trio", "uvicorn"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that has only ASGI messages for us: hypercorn on either library, or uvicorn with a class of its own."""
    name, _, worker = request.param.partition("-")
    with Hypercorn(worker) if name == "hypercorn" else UvicornsOwn() as server:
        yield server


def knows_close_codes(server: Server) -> bool:
    """Whether the server passes on the peer's close code; hypercorn always says 1006."""
    return not isinstance(server, Hypercorn)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of which no event tells."""
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


# --- messages ----------------------------------------------------------------------------------------------


def test_messages_of_every_kind_and_size(server: Server) -> None:
    run = server.serve(echo)
    with dial(server.port) as client:
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70000, b"y" * MIB, "é" * MIB):
            client.send(message)
            assert client.recv(LIMIT) == message
    assert run.outcome() is None


def test_what_a_connection_knows_of_itself(server: Server) -> None:
    reports = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn = await scope["watershed"].accept(["v2", "v1"])
        await conn.send("12345")
        await conn.receive()
        stats = conn.stats
        reports.put((conn.protocol, conn.get_protocol(), conn.remote, conn.local, conn.request is scope))
        reports.put((conn.closed, conn.sending, conn.close_code, conn.close_reason, conn.latency))
        reports.put((stats.messages_received, stats.messages_sent, stats.bytes_received, stats.bytes_sent))
        reports.put((repr(conn), 0 < conn.duration < LIMIT, conn in live_connections()))
        await conn.end()
        reports.put((conn.closed, conn.sending, conn.close_code))
        ended = conn.duration
        await conn.wait_closed()
        reports.put(conn.duration >= ended)

    run = server.run(WatershedASGI(app))
    with dial(server.port, protocols=["x", "v1"]) as client:
        assert client.subprotocol == "v1"
        assert client.recv(LIMIT) == "12345"
        client.send(b"123")
        mine = f"127.0.0.1:{client.socket.getsockname()[1]}"
        assert reports.get() == ("v1", "v1", mine, f"127.0.0.1:{server.port}", True)
        with pytest.raises(ClientClosed):  # the server closes first
            client.recv(LIMIT)
    assert reports.get() == (False, True, None, None, None)
    assert reports.get() == (1, 1, 3, 5)
    shown, lasted, listed = reports.get()
    assert shown.startswith("<PortableConnection ")
    assert f" open {mine} protocol='v1'" in shown
    assert lasted
    assert listed
    assert reports.get() == (True, False, 1000)
    assert reports.get()
    assert run.outcome() is None


def test_messages_that_came_before_the_end_are_not_lost(server: Server) -> None:
    received, ready = Inbox[Any](), Gate[anyio.Event]()

    async def handler(conn: PortableConnection) -> None:
        event = anyio.Event()
        ready.put(event)
        await event.wait()
        async for message in conn:
            received.put(message)
        for _ in range(2):
            try:
                await conn.receive()
            except ConnectionClosed as error:
                received.put(error.code)

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        event = ready.get()
        peer.send(text("one") + binary(b"two") + text("three") + close(4000, "bye"))
        assert peer.close()[0] == 4000
        server.soon(event.set)
        assert [received.get() for _ in range(3)] == ["one", b"two", "three"]
    code = 4000 if knows_close_codes(server) else 1006
    assert [received.get(), received.get()] == [code, code]
    assert run.outcome() is None


# --- receive -----------------------------------------------------------------------------------------------


def test_a_receive_that_times_out_or_is_cancelled_loses_nothing(server: Server) -> None:
    async def handler(conn: PortableConnection) -> None:
        with pytest.raises(TimeoutError):
            await conn.receive(timeout=0.01)
        with pytest.raises(TimeoutError):
            await conn.receive(0)
        with anyio.move_on_after(0.01) as scope:
            await conn.receive()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conn.receive)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await conn.send("now")
        await conn.send(await conn.receive(timeout=LIMIT))
        await conn.send(await conn.receive())

    run = server.serve(handler)
    with dial(server.port) as client:
        assert client.recv(LIMIT) == "now"
        client.send("first")
        client.send("second")
        assert [client.recv(LIMIT), client.recv(LIMIT)] == ["first", "second"]
    assert run.outcome() is None


def test_a_message_that_is_there_needs_no_time(server: Server) -> None:
    async def handler(conn: PortableConnection) -> None:
        conn.send("ready")
        await until(lambda: len(conn._queue) == 2)
        await conn.send(json.dumps([await conn.receive(0), await conn.receive(0)]))

    run = server.serve(handler)
    with dial(server.port) as client:
        assert client.recv(LIMIT) == "ready"
        client.send("a")
        client.send("b")
        assert json.loads(client.recv(LIMIT)) == ["a", "b"]
    assert run.outcome() is None


def test_messages_are_pulled_or_pushed(server: Server) -> None:
    errors = Inbox[LocalProtocolError]()

    async def handler(conn: PortableConnection) -> None:
        conn.on("text", conn.send)
        try:
            await conn.receive()
        except LocalProtocolError as error:
            errors.put(error)
        await conn.run()

    run = server.serve(handler)
    with dial(server.port) as client:
        assert "pulled or pushed" in str(errors.get())
        client.send("pushed")
        assert client.recv(LIMIT) == "pushed"
    assert run.outcome() is None


def test_tasks_that_receive_get_a_message_each_in_the_order_in_which_they_asked(server: Server) -> None:
    """One that is cancelled or out of time takes none; at the end each of them hears of it."""
    count = 5
    got: list[tuple[int, str | bytes]] = []
    closed: list[int] = []

    async def handler(conn: PortableConnection) -> None:
        async def ask(number: int, seconds: float | None, scope: anyio.CancelScope) -> None:
            with scope:
                try:
                    got.append((number, await conn.receive(seconds)))
                except TimeoutError:
                    got.append((number, "out of time"))
                with pytest.raises(ConnectionClosed):
                    await conn.receive()
                closed.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(count):
                begun = anyio.CancelScope()
                tasks.start_soon(ask, number, 0.01 if number == 1 else None, begun)
                await anyio.lowlevel.checkpoint()
                if number == 2:
                    begun.cancel()
            while not got:
                await anyio.lowlevel.checkpoint()
            await conn.send("ready")

    run = server.serve(handler)
    with dial(server.port) as client:
        assert client.recv(LIMIT) == "ready"
        for text_of in ("a", "b", "c"):
            client.send(text_of)
    assert run.outcome() is None
    assert got == [(1, "out of time"), (0, "a"), (3, "b"), (4, "c")]
    assert sorted(closed) == [0, 1, 3, 4]


@pytest.mark.parametrize("verb", ["receive", "__anext__", "send", "wait_closed", "end", "run"])
def test_who_asks_again_and_again_after_the_end_leaves_others_their_turn(server: Server, verb: str) -> None:
    async def handler(conn: PortableConnection) -> None:
        async def again_and_again() -> None:
            while True:
                try:
                    await getattr(conn, verb)(*(["too late"] if verb == "send" else []))
                except (ConnectionClosed, StopAsyncIteration):
                    pass

        await conn.wait_closed()
        if verb == "run":
            await conn.run()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again_and_again)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    run = server.serve(handler)
    with dial(server.port):
        pass
    assert run.outcome() is None


# --- events ------------------------------------------------------------------------------------------------


def test_events_in_order_one_at_a_time(server: Server) -> None:
    events = Inbox[Any]()

    async def handler(conn: PortableConnection) -> None:
        async def slow(message: str) -> None:
            events.put(f"begin {message}")
            await anyio.sleep(0.01)
            events.put(f"end {message}")

        async def end(code: int, reason: str) -> None:
            events.put((code, reason))

        conn.on("text")(slow)
        conn.on("binary", events.put)
        conn.once("text", lambda message: events.put(f"once {message}"))
        never = conn.on("binary", lambda data: events.put("never"))
        conn.off("binary", never)
        conn.on("error", events.put)
        conn.on("connection_reset", lambda: events.put("reset"))
        conn.on("end", end)
        events.put(await conn.run())

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(text("a") + text("b") + binary(b"c") + close(4000, "bye"))
        assert peer.close() == (4000, "bye")
    expected: list[Any] = ["once a", "begin a", "end a", "begin b", "end b", b"c"]
    assert [events.get() for _ in expected] == expected
    if knows_close_codes(server):
        assert [events.get(), events.get()] == [(4000, "bye")] * 2
    else:
        assert [events.get(), events.get(), events.get()] == ["reset", (1006, ""), (1006, "")]
    assert run.outcome() is None
    with Peer(server.port) as peer:
        peer.open()
        peer.vanish()
        assert [events.get(), events.get()] == ["reset", (1006, "")] or knows_close_codes(server)
    assert run.outcome() is None


def test_messages_wait_for_handlers_that_are_registered_later(server: Server) -> None:
    seen = Inbox[str]()

    async def handler(conn: PortableConnection) -> None:
        await until(lambda: len(conn._queue) > 0)
        conn.on("text", seen.put)
        await conn.run()

    server.serve(handler)
    with dial(server.port) as client:
        client.send("early")
        assert seen.get() == "early"
        client.send("later")
        assert seen.get() == "later"


def test_events_come_without_run_while_the_handler_is_busy(server: Server) -> None:
    ended = Inbox[int]()

    async def handler(conn: PortableConnection) -> None:
        conn.on("text", lambda message: conn.send(message.upper()))
        conn.on("end", lambda code, reason: ended.put(code))
        await until(lambda: conn.closed)

    run = server.serve(handler)
    with dial(server.port) as client:
        client.send("loud")
        assert client.recv(LIMIT) == "LOUD"
    assert ended.get() == (1000 if knows_close_codes(server) else 1006)
    assert run.outcome() is None


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
@pytest.mark.parametrize("event", ["text", "binary", "end", "error", "drain"])
def test_an_exception_in_a_handler_ends_the_connection_and_comes_out_of_run(
    server: Server, kind: str, event: str
) -> None:
    raised = Inbox[BaseException]()

    def fail(*_: Any) -> None:
        raise LookupError(event)

    async def fail_later(*_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError(event)

    async def handler(conn: PortableConnection) -> None:
        conn.on(event, fail if kind == "function" else fail_later)
        if event == "drain":
            conn.send(bytes(MIB))
        try:
            await conn.run()
        except LookupError as error:
            raised.put(error)
            raise

    run = server.serve(handler, max_message_size=100)
    with Peer(server.port) as peer:
        peer.open()
        if event == "drain":
            assert len(peer.frame().data) == MIB
        peer.send({"text": text("x"), "binary": binary(b"x"), "error": text("x" * 101)}.get(event, b""))
        if event == "end":
            peer.send(close(4000))
            assert peer.close()[0] == 4000
        else:
            assert peer.close()[0] == (1009 if event == "error" else 1011)
    assert str(raised.get()) == event
    assert isinstance(run.outcome(), LookupError)


def test_an_exception_that_nobody_waits_for_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def fail(message: str) -> None:
        raise LookupError(message)

    async def handler(conn: PortableConnection) -> None:
        conn.on("text", fail)
        await until(lambda: conn.closed)

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(text("x"))
        assert peer.close()[0] == 1011
    assert run.outcome() is None
    (record,) = [record for record in caplog.records if record.name == "watershed_mw"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


# --- sending -----------------------------------------------------------------------------------------------


@pytest.mark.need(7)
def test_many_tasks_may_send_at_once(server: Server) -> None:
    async def sender(conn: PortableConnection, number: int) -> None:
        for count in range(20):
            await conn.send(f"{number} {count} " + "x" * (5000 if count % 5 == 0 else 0))

    async def handler(conn: PortableConnection) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(sender, conn, number)

    run = server.serve(handler)
    received: dict[int, list[int]] = {}
    with dial(server.port) as client:
        for _ in range(200):
            number, count, padding = str(client.recv(LIMIT)).split(" ")
            received.setdefault(int(number), []).append(int(count))
            assert padding == "x" * (5000 if int(count) % 5 == 0 else 0)
        with pytest.raises(ClientClosed):
            client.recv(LIMIT)
    assert received == {number: list(range(20)) for number in range(10)}
    assert run.outcome() is None


@pytest.mark.need(7, 30)
def test_other_threads_may_send_and_end(server: Server) -> None:
    connections = Gate[PortableConnection]()

    async def handler(conn: PortableConnection) -> None:
        connections.put(conn)
        await conn.run()

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        conn = connections.get()

        def send(number: int) -> None:
            for count in range(20):
                conn.send(f"{number} {count}")

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        seen: dict[str, list[int]] = {}
        for _ in range(80):
            number, count = peer.text().split()
            seen.setdefault(number, []).append(int(count))
        for thread in threads:
            thread.join(LIMIT)
        assert seen == {str(number): list(range(20)) for number in range(4)}
        # Mistakes are told to whoever made them, not to the event loop.
        with pytest.raises(LocalProtocolError):
            conn.send("\ud800")
        with pytest.raises(TypeError):
            conn.send(5)  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError):
            conn.end(code=1006)
        with pytest.raises(UnsupportedServerError):
            conn.ping()
        conn.send(bytearray(b"last"))
        conn.end("from a thread", code=4001)
        assert bytes(peer.frame().data) == b"last"
        assert peer.close() == (4001, "from a thread")
        peer.send(close(4001))
    assert run.outcome() is None
    with pytest.raises(ConnectionClosed):
        conn.send("too late")
    conn.end()  # to end what has ended is no mistake


def test_a_buffer_may_change_after_the_send(server: Server) -> None:
    async def handler(conn: PortableConnection) -> None:
        buffer = bytearray(b"before")
        conn.send(buffer)
        conn.send(memoryview(buffer)[:3])
        buffer[:] = b"after!"

    server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        assert [bytes(peer.frame().data), bytes(peer.frame().data)] == [b"before", b"bef"]


def test_mistakes_send_nothing(server: Server) -> None:
    async def handler(conn: PortableConnection) -> None:
        for wrong in (5, None, ["x"]):
            with pytest.raises(TypeError):
                await conn.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError):
            await conn.send("\ud800")
        for code, reason in ((1006, ""), (999, ""), (5000, ""), (1000, "x" * 124)):
            with pytest.raises(LocalProtocolError):
                await conn.end(reason, code=code)
        await conn.send("fine")

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "fine"
        assert peer.close()[0] == 1000
    assert run.outcome() is None


@pytest.mark.need(4)
def test_send_waits_for_a_client_that_does_not_read_and_drain_tells(server: Server) -> None:
    stalled, drained, message = Gate[int](), Gate[int](), b"m" * 64 * KIB

    async def handler(conn: PortableConnection) -> None:
        sent = 0
        while not stalled.passed:
            sent += 1
            with anyio.move_on_after(0.3) as scope:
                await conn.send(message)
            if scope.cancelled_caught:
                stalled.put(sent)
        conn.on("drain", lambda: drained.put(conn._core.unsent_size))
        conn.send(message)
        conn.send(message)
        await until(lambda: drained.passed)

    run = server.serve(handler)
    with Peer(server.port, receive_buffer=4096) as slow:
        slow.open()
        count = stalled.get()
        assert count * len(message) < 16 * MIB
        assert not drained.passed
        for _ in range(count + 2):
            assert bytes(slow.frame().data) == message
        assert drained.get() == 0
        assert slow.close()[0] == 1000
    assert run.outcome() is None


@pytest.mark.need(4)
def test_a_client_that_never_reads_is_given_up(server: Server) -> None:
    ended = Inbox[Any]()

    async def handler(conn: PortableConnection) -> None:
        conn.on("error", ended.put)
        conn.on("end", lambda code, reason: ended.put(code))
        try:
            while True:
                conn.send(b"m" * 64 * KIB)  # not awaited
                await anyio.lowlevel.checkpoint()
        except ConnectionClosed as error:
            ended.put(error)

    run = server.serve(handler, max_unsent_bytes=MIB, close_timeout=1.0)
    with Peer(server.port, receive_buffer=4096) as peer:
        peer.open()
        seen = [ended.get(), ended.get(), ended.get()]
        kinds = {type(one) for one in seen}
        assert kinds == {LocalProtocolError, ConnectionClosed, int}
        assert "max_unsent_bytes" in str(next(one for one in seen if isinstance(one, LocalProtocolError)))
        peer.vanish()
    assert run.outcome() is None


# --- what only frames can do ---------------------------------------------------------------------------------


def test_what_needs_frames_names_the_server_and_the_way_out(server: Server) -> None:
    errors = Inbox[UnsupportedServerError]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = scope["watershed"]
        with pytest.raises(UnsupportedServerError) as info:
            await upgrade.accept(detached=True)
        errors.put(info.value)
        conn = await upgrade.accept()  # nothing had been answered
        asks: list[Callable[[], object]] = [
            conn.ping,
            lambda: conn.ping(b"x"),
            conn.destroy,
            lambda: conn.on("ping", print),
            lambda: conn.on("pong"),
            lambda: conn.once("ping", print),
        ]
        for ask in asks:
            with pytest.raises(UnsupportedServerError) as info:
                ask()
            errors.put(info.value)
        with pytest.raises(ValueError, match="expected one of the events"):
            conn.on("pings", print)
        await echo(conn)

    run = server.run(WatershedASGI(app))
    with dial(server.port) as client:
        client.send("it works on")
        assert client.recv(LIMIT) == "it works on"
    for _ in range(7):
        message = str(errors.get())
        assert server.name in message
        assert "watershed_mw.uvicorn:WatershedProtocol" in message
        assert "docs/servers.md" in message
    assert run.outcome() is None


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-44545")
def test_a_message_past_the_limit_is_1009(server: Server) -> None:
    events = Inbox[Any]()

    async def handler(conn: PortableConnection) -> None:
        conn.on("error", events.put)
        conn.on("text", lambda message: events.put(len(message)))
        conn.on("end", lambda code, reason: events.put((code, reason)))
        await conn.run()

    run = server.serve(handler, max_message_size=100)
    for message, size in (("x" * 101, 101), ("é" * 51, 102)):
        with Peer(server.port) as peer:
            peer.open()
            peer.send(text("x" * 100) + text(message) + text("after"))
            code, reason = peer.close()
            assert code == 1009
            assert "max_message_size" in reason
        assert events.get() == 100
        error = events.get()
        assert isinstance(error, RemoteProtocolError)
        assert str(size) in str(error)
        assert events.get()[0] == 1009
        assert run.outcome() is None
    assert events.empty


@pytest.mark.need(27)
def test_too_many_messages_a_second_are_1008(server: Server) -> None:
    run = server.serve(echo, max_message_rate=5)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(text("x") * 8)
        while (frame := peer.frame()).opcode is Opcode.TEXT:
            assert bytes(frame.data) == b"x"
        assert frame.opcode is Opcode.CLOSE
        assert bytes(frame.data)[:2] == (1008).to_bytes(2, "big")
    assert run.outcome() is None


@pytest.mark.need(5)
@pytest.mark.parametrize("bound", ["messages", "bytes"])
def test_reading_stops_when_the_application_does_not_take(server: Server, bound: str) -> None:
    connections, ready = Gate[PortableConnection](), Gate[anyio.Event]()
    count, size = (500, 1) if bound == "messages" else (64, 16 * KIB)

    async def handler(conn: PortableConnection) -> None:
        event = anyio.Event()
        ready.put(event)
        connections.put(conn)
        await event.wait()
        for number in range(count):
            assert await conn.receive() == f"{number} ".ljust(size, "x")
        await conn.send("all of them")

    run = server.serve(handler, max_queued_messages=4 if bound == "messages" else 1000, max_queued_bytes=64 * KIB)
    with Peer(server.port) as peer:
        peer.open()
        conn = connections.get()
        for number in range(count):
            peer.send(text(f"{number} ".ljust(size, "x")))
        eventually(lambda: conn._queue.full)
        turns = Gate[None]()
        server.soon(lambda: server.soon(lambda: turns.put(None)))
        turns.get()
        # One more than the limit shows that it is reached.
        assert len(conn._queue) == 5
        server.soon(ready.get().set)
        assert peer.text() == "all of them"
        assert peer.close()[0] == 1000
    assert run.outcome() is None


# --- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["returns", "raises", "async with", "raises in async with"])
def test_what_the_application_leaves_open_is_ended(server: Server, how: str) -> None:
    async def handler(conn: PortableConnection) -> None:
        if "async with" in how:
            async with conn:
                conn.send("hi")
                if how.startswith("raises"):
                    raise LookupError("a secret")
        conn.send("hi")
        if how == "raises":
            raise LookupError("a secret")

    async def quiet(conn: PortableConnection) -> None:
        try:
            await handler(conn)
        except ConnectionClosed:
            assert how == "async with"

    run = server.serve(quiet)
    with Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "hi"
        assert peer.close() == (1011 if how.startswith("raises") else 1000, "")
        peer.send(close())
    assert isinstance(run.outcome(), LookupError) is how.startswith("raises")


@pytest.mark.need(1)
def test_everything_sent_before_the_end_arrives(server: Server) -> None:
    async def handler(conn: PortableConnection) -> None:
        for number in range(50):
            conn.send(f"{number} ".ljust(20 * KIB, "x"))
        await conn.end("done", code=4000)

    run = server.serve(handler)
    with Peer(server.port, receive_buffer=4096) as slow:
        slow.open()
        for number in range(50):
            assert slow.text() == f"{number} ".ljust(20 * KIB, "x")
        assert slow.close() == (4000, "done")
        slow.send(close(4000))
        slow.end()
    assert run.outcome() is None


@pytest.mark.need(14)
def test_a_handler_that_only_sends_learns_of_the_end_at_once(server: Server) -> None:
    errors = Inbox[BaseException]()

    async def handler(conn: PortableConnection) -> None:
        try:
            while True:
                await conn.send("tick")
                await anyio.lowlevel.checkpoint()
        except ConnectionClosed as error:
            errors.put(error)
            raise

    run = server.serve(handler)
    for leave in (Peer.vanish, lambda peer: peer.sock.close(), lambda peer: peer.send(close())):
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            leave(peer)
            assert isinstance(errors.get(), ConnectionClosed)
            assert run.outcome() is None


@pytest.mark.need(15)
@pytest.mark.parametrize("side", ["theirs", "ours"])
def test_after_the_end_there_is_one_family_of_exceptions(server: Server, side: str) -> None:
    async def handler(conn: PortableConnection) -> None:
        if side == "ours":
            await conn.end("mine", code=4001)
        else:
            with pytest.raises(ConnectionClosed):
                await conn.receive()
        asks: list[Callable[[], Awaitable[Any]]] = [
            lambda: conn.send("x"),
            lambda: conn.send(b"x"),
            conn.receive,
            lambda: conn.receive(timeout=1),
        ]
        for ask in asks:
            for _ in range(2):
                with pytest.raises(ConnectionClosed) as info:
                    await ask()
                assert isinstance(info.value, OSError)
                assert info.value.code == conn.close_code
                assert info.value.reason == conn.close_reason
        async for _ in conn:
            raise AssertionError("a message after the end")
        await conn.end("again", code=4002)
        await conn.wait_closed()
        assert await conn.run() == (conn.close_code, conn.close_reason)
        assert conn not in live_connections()
        assert conn.close_code == (4001 if side == "ours" else 4000 if knows_close_codes(server) else 1006)

    run = server.serve(handler)
    with Peer(server.port) as peer:
        peer.open()
        if side == "theirs":
            peer.send(close(4000))
        assert peer.close()[0] == (4001 if side == "ours" else 4000)
        peer.send(close(4001) if side == "ours" else b"")
    assert run.outcome() is None


# --- cancelled, and vanished ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["receive", "send", "run", "end", "wait_closed", "sleep"])
def test_cancelling_a_handler_leaves_nothing(server: Server, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    connections = Inbox["weakref.ref[PortableConnection]"]()
    waiting = Inbox[anyio.CancelScope]()
    stages: dict[str, Callable[[PortableConnection], Awaitable[Any]]] = {
        "receive": lambda conn: conn.receive(),
        "send": flood,
        "run": lambda conn: conn.run(),
        "end": end_behind_a_flood,
        "wait_closed": lambda conn: conn.wait_closed(),
        "sleep": lambda conn: anyio.sleep_forever(),
    }

    async def handler(conn: PortableConnection) -> None:
        connections.put(weakref.ref(conn))
        with anyio.CancelScope() as scope:
            waiting.put(scope)
            await stages[stage](conn)
        assert scope.cancelled_caught

    def one() -> weakref.ref[PortableConnection]:
        with Peer(server.port, receive_buffer=4096) as peer:
            peer.open()
            scope = waiting.get()
            if stage in ("send", "end"):
                time_of_the_loop(server, scope)
            server.soon(scope.cancel)
            while (frame := peer.frame()).opcode is not Opcode.CLOSE:
                assert stage in ("send", "end")
                assert bytes(frame.data) == b"m" * 64 * KIB
            peer.send(close())
            peer.end()
        reference = connections.get()
        outcome = run.outcome()
        assert outcome is None, outcome
        return reference

    run = server.serve(handler, close_timeout=0.5)
    one()
    before = server.tasks()
    references = [one() for _ in range(3)]
    eventually(lambda: server.tasks() <= before, f"only {before} tasks")

    def collected() -> bool:
        gc.collect()
        return not any(reference() for reference in references)

    eventually(collected)
    assert not [conn for conn in live_connections() if isinstance(conn, PortableConnection)]
    assert errors_in(caplog.records) == []


async def flood(conn: PortableConnection) -> None:
    while True:
        await conn.send(b"m" * 64 * KIB)


async def end_behind_a_flood(conn: PortableConnection) -> None:
    for _ in range(100):
        conn.send(b"m" * 64 * KIB)
    await conn.end()


def time_of_the_loop(server: Server, scope: anyio.CancelScope) -> None:
    """Wait until the server's loop has had many turns; by then a sender waits for its client."""
    for _ in range(50):
        turn = Gate[None]()
        server.soon(lambda turn=turn: turn.put(None))  # type: ignore[misc]
        turn.get()


def test_clients_that_vanish_leave_nothing(server: Server) -> None:
    connections = Inbox["weakref.ref[PortableConnection]"]()

    async def handler(conn: PortableConnection) -> None:
        connections.put(weakref.ref(conn))
        await echo(conn)

    run = server.serve(handler)

    def one(leave: Callable[[Peer], Any]) -> None:
        with Peer(server.port) as peer:
            peer.open()
            peer.send(text("hello"))
            assert peer.text() == "hello"
            leave(peer)
        assert run.outcome() is None

    def in_the_middle_of_a_frame(peer: Peer) -> None:
        peer.send(text("unfinished")[:5])
        peer.vanish()

    def half_closed(peer: Peer) -> None:
        peer.sock.shutdown(socket.SHUT_WR)
        peer.vanish()

    ways: list[Callable[[Peer], Any]] = [
        Peer.vanish,
        lambda peer: peer.sock.close(),
        in_the_middle_of_a_frame,
        lambda peer: peer.send(close(4000)),
        half_closed,
    ]
    one(Peer.vanish)
    before = server.tasks()
    for way in ways * 3:
        one(way)
    eventually(lambda: server.tasks() <= before, f"only {before} tasks")
    references = [connections.get() for _ in range(1 + 3 * len(ways))]

    def collected() -> bool:
        gc.collect()
        return not any(reference() for reference in references)

    eventually(collected)


# --- memory of all connections -----------------------------------------------------------------------------


@pytest.fixture
def nothing_is_held() -> None:
    """The budget is the process's: what other tests have left would count here."""
    eventually(lambda: memory_budget().total == 0)


class _Hoarder:
    """An application that echoes, but for one client, whose messages it takes once it is told to."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ready = Gate[tuple[PortableConnection, anyio.Event]]()
        self.taken = Inbox[str | bytes | ConnectionClosed]()
        server.serve(self._handle, max_memory=4 * MIB, max_queued_bytes=64 * MIB)

    async def _handle(self, conn: PortableConnection) -> None:
        if await conn.receive() == "hoard":
            go_on = anyio.Event()
            self._ready.put((conn, go_on))
            await go_on.wait()
        try:
            while True:
                message = await conn.receive()
                self.taken.put(message)
                await conn.send(message)
        except ConnectionClosed as error:
            self.taken.put(error)

    def begin(self, client: ClientConnection) -> PortableConnection:
        """Have the application hoard what this client sends."""
        client.send("hoard")
        self._hoarding, self._go_on = self._ready.get()
        return self._hoarding

    def go_on(self) -> None:
        """Have it take what it hoards."""
        self._server.soon(self._go_on.set)


@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_the_one_that_holds_most_waits_and_goes_on_when_there_is_room(server: Server) -> None:
    application = _Hoarder(server)
    messages = [*[bytes([number]) * MIB for number in range(3)], bytes(MIB // 4)]
    with dial(server.port) as large, dial(server.port) as small:
        conn = application.begin(large)
        small.send("echo")
        for message in messages:
            large.send(message)
        eventually(lambda: conn._held_back)
        more = [f"more {number}" for number in range(1000)]
        for word in more:
            large.send(word)
        small.send("not touched by that")
        assert small.recv(LIMIT) == "not touched by that"
        # The one that was being received already, and none behind it.
        assert conn.stats.messages_received <= 1 + len(messages) + 1
        application.go_on()
        assert [large.recv(LIMIT) for _ in range(len(messages) + len(more))] == [*messages, *more]
        eventually(lambda: memory_budget().total == 0)


@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_the_last_of_it_that_is_taken_at_once_makes_room(server: Server) -> None:
    application = _Hoarder(server)
    messages = [bytes(MIB), bytes(int(2.3 * MIB))]
    with dial(server.port) as large:
        conn = application.begin(large)
        for message in messages:
            large.send(message)
        eventually(lambda: conn._held_back)
        large.send("the next")
        application.go_on()
        assert [large.recv(LIMIT) for _ in range(3)] == [*messages, "the next"]
        eventually(lambda: memory_budget().total == 0)


@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_past_max_memory_the_one_that_holds_most_ends_with_1013(server: Server) -> None:
    application = _Hoarder(server)
    with dial(server.port) as large, dial(server.port) as small:
        application.begin(large)
        small.send("echo")
        large.send(bytes(int(2.9 * MIB)))
        eventually(lambda: memory_budget().total > 2.8 * MIB)
        small.send(bytes(int(1.4 * MIB)))
        assert small.recv(LIMIT) == application.taken.get() == bytes(int(1.4 * MIB))
        with pytest.raises(ClientClosed) as caught:
            large.recv(LIMIT)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code in (1013, 4013)  # 1013 is a code that not every server sends
        application.go_on()
        error = application.taken.get()
        assert isinstance(error, ConnectionClosed)
        assert (error.code, type(error.__cause__)) == (1013, LocalProtocolError)
        assert "max_memory" in str(error.__cause__)
        eventually(lambda: memory_budget().total == 0)
