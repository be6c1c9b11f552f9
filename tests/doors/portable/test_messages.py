"""Portable connections: messages, received and sent, and events."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from websockets.exceptions import ConnectionClosed as ClientClosed

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer, binary, close, dial, text
from tests.support.portable_servers import Server, echo, knows_close_codes, until
from tests.support.waiting import Gate, Inbox
from watershed_mw import ConnectionClosed, LocalProtocolError, UnsupportedServerError, WatershedASGI, live_connections
from watershed_mw.asgi.portable import PortableConnection

KIB = 2**10
MIB = 2**20


# --- messages ------------------------------------------------------------------------------------------------


def test_messages_of_every_type_and_size_are_echoed(server: Server) -> None:
    run = server.serve(echo)
    with dial(server.port) as client:
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70000, b"y" * MIB, "é" * MIB):
            client.send(message)
            assert client.recv(LIMIT) == message
    assert run.outcome() is None


def test_a_connection_has_request_addresses_and_counters(server: Server) -> None:
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


def test_messages_before_the_end_are_not_lost(server: Server) -> None:
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


# --- receive -------------------------------------------------------------------------------------------------


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


def test_a_queued_message_is_returned_with_any_timeout(server: Server) -> None:
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


def test_concurrent_receivers_get_one_message_each_in_order(server: Server) -> None:
    """A receiver that is cancelled or times out takes none; at the end each receiver sees it."""
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
def test_receiving_in_a_loop_after_the_end_lets_other_tasks_run(server: Server, verb: str) -> None:
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


# --- events --------------------------------------------------------------------------------------------------


def test_events_arrive_in_order_and_one_at_a_time(server: Server) -> None:
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


def test_messages_wait_for_handlers_registered_later(server: Server) -> None:
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


def test_events_arrive_without_run_while_the_handler_is_busy(server: Server) -> None:
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
def test_an_exception_in_a_handler_ends_the_connection_and_run_raises_it(server: Server, kind: str, event: str) -> None:
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


def test_an_exception_that_nothing_awaits_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
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


# --- sending -------------------------------------------------------------------------------------------------


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
        # Errors are raised in the caller, not reported to the event loop.
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


def test_invalid_calls_send_nothing(server: Server) -> None:
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


@pytest.mark.slow
@pytest.mark.need(4)
def test_send_waits_for_a_client_that_does_not_read_and_drain_follows(server: Server) -> None:
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
def test_a_client_that_never_reads_is_dropped(server: Server) -> None:
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


def test_unsupported_calls_name_the_server_and_an_alternative(server: Server) -> None:
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
