"""Portable connections: limits, the end of a connection, and memory."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from websockets.exceptions import ConnectionClosed as ClientClosed
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection

from tests.support import LIMIT
from tests.support.memory import held_by_connections
from tests.support.peers import Peer, close, dial, text
from tests.support.portable_servers import Server, echo, knows_close_codes
from tests.support.threaded_servers import errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import ConnectionClosed, LocalProtocolError, RemoteProtocolError, live_connections
from watershed_mw.asgi.portable import PortableConnection

KIB = 2**10
MIB = 2**20


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-44545")
def test_a_message_above_the_limit_is_1009(server: Server) -> None:
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
def test_reading_pauses_when_the_application_does_not_receive(server: Server, bound: str) -> None:
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


# --- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["returns", "raises", "async with", "raises in async with"])
def test_a_connection_left_open_by_the_application_is_closed(server: Server, how: str) -> None:
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
def test_a_handler_that_only_sends_stops_immediately_at_the_end(server: Server) -> None:
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
def test_after_the_end_every_call_raises_connection_closed(server: Server, side: str) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["receive", "send", "run", "end", "wait_closed", "sleep"])
def test_cancelling_a_handler_leaves_nothing_behind(
    server: Server, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
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

    run = server.serve(handler, close_timeout=LIMIT)
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
    """Wait for many iterations of the server's loop; by then a sender waits for its client."""
    for _ in range(50):
        turn = Gate[None]()
        server.soon(lambda turn=turn: turn.put(None))  # type: ignore[misc]
        turn.get()


def test_clients_that_vanish_leave_nothing_behind(server: Server) -> None:
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


# --- memory of all connections -------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_held() -> None:
    """The budget belongs to the process, so memory left by other tests would count here."""
    eventually(lambda: held_by_connections() == 0)


class _Hoarder:
    """An application that echoes, except to one client, whose messages it receives only when told to."""

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
        """Make the application hoard this client's messages."""
        client.send("hoard")
        self._hoarding, self._go_on = self._ready.get()
        return self._hoarding

    def go_on(self) -> None:
        """Make it receive the hoarded messages."""
        self._server.soon(self._go_on.set)


@pytest.mark.slow
@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_the_largest_pauses_and_resumes_when_memory_is_free(server: Server) -> None:
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
        # Only the one that was already being received.
        assert conn.stats.messages_received <= 1 + len(messages) + 1
        application.go_on()
        assert [large.recv(LIMIT) for _ in range(len(messages) + len(more))] == [*messages, *more]
        eventually(lambda: held_by_connections() == 0)


@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_consuming_everything_at_once_frees_memory(server: Server) -> None:
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
        eventually(lambda: held_by_connections() == 0)


@pytest.mark.need(6)
@pytest.mark.usefixtures("nothing_is_held")
def test_beyond_max_memory_the_largest_ends_with_1013(server: Server) -> None:
    application = _Hoarder(server)
    with dial(server.port) as large, dial(server.port) as small:
        application.begin(large)
        small.send("echo")
        large.send(bytes(int(2.9 * MIB)))
        eventually(lambda: held_by_connections() > 2.8 * MIB)
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
        eventually(lambda: held_by_connections() == 0)
