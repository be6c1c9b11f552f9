"""A connection that is still open when its event loop ends: the peer gets a Close, and everything can be collected."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from tests.support import LIMIT
from tests.support.ways import CLIENT, SERVER
from tests.support.wire_peer import CLOSE, HANDSHAKE_KEY, TEXT, WirePeer, request_head, response_head
from watershed_mw import AsyncConnection, Watershed, live_connections
from watershed_mw.core.states import Role
from watershed_mw.relay import live_relays, relay

# asyncio's warning about a transport that is collected without having been closed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed (transport|<socket|resource):ResourceWarning")

RUN: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
Work = Callable[[AsyncConnection], Awaitable[object]]


async def nothing(connection: AsyncConnection) -> None:
    pass


async def in_run(connection: AsyncConnection) -> None:
    connection.on("text", print)
    asyncio.create_task(connection.run())  # noqa: RUF006  # it is forgotten, as all of this is
    await asyncio.sleep(0)


async def in_a_handler(connection: AsyncConnection) -> None:
    at_work = asyncio.Event()

    async def wait(_message: str) -> None:
        at_work.set()
        await asyncio.get_running_loop().create_future()

    connection.on("text", wait)
    await at_work.wait()


async def while_it_is_ended(connection: AsyncConnection) -> None:
    connection.end()
    await asyncio.sleep(0)


async def while_another_task_receives(connection: AsyncConnection) -> None:
    await connection.receive()
    asyncio.ensure_future(connection.receive())  # noqa: RUF006
    await asyncio.sleep(0)


async def with_much_unsent(connection: AsyncConnection) -> None:
    for _ in range(64):
        connection.send(bytes(2**16))
    await asyncio.sleep(0)


WORKS: tuple[Work, ...] = (
    nothing,
    in_run,
    in_a_handler,
    while_it_is_ended,
    while_another_task_receives,
    with_much_unsent,
)


async def opened(role: Role, sock: socket.socket) -> AsyncConnection:
    sock.setblocking(False)
    shed = Watershed(compression=True)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock)
    if role is SERVER:
        return shed.accept(request_head(), transport)
    return shed.connect(response_head(HANDSHAKE_KEY), transport, key=HANDSHAKE_KEY, request=request_head())


def peer_of(role: Role, sock: socket.socket) -> WirePeer:
    return WirePeer(sock, SERVER if role is CLIENT else CLIENT)


def code_told(peer: WirePeer) -> int:
    """Read up to the Close, answer it, and expect the end of the stream."""
    if peer.role is CLIENT:
        peer.read_head()
    while (frame := peer.read()).opcode != CLOSE:
        pass
    code = int.from_bytes(frame.payload[:2], "big")
    peer.send_close(code)
    peer.finish()
    return code


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("role", [SERVER, CLIENT], ids=["server", "client"])
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_a_connection_is_closed_with_its_loop(work: Work, role: Role, run: str) -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    ids: list[int] = []
    ours, theirs = socket.socketpair()
    peer = peer_of(role, theirs)

    async def forget() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        connection = await opened(role, ours)
        ids.append(connection.id)
        peer.send(TEXT, "hello")
        await work(connection)

    with theirs, ThreadPoolExecutor(1) as threads:
        told = threads.submit(code_told, peer)
        RUN[run](forget())
        gc.collect()
        assert loops[0]() is None
        assert ids[0] not in [connection.id for connection in live_connections()]
        assert told.result(LIMIT) == (1000 if work is while_it_is_ended else 1001)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
def test_a_peer_that_does_not_answer_is_waited_for_only_briefly(run: str) -> None:
    ours, theirs = socket.socketpair()

    async def forget() -> None:
        connection = await opened(SERVER, ours)
        await with_much_unsent(connection)

    with theirs:
        began = time.monotonic()
        RUN[run](forget())
        assert time.monotonic() - began < 5  # close_timeout is 10 seconds
        gc.collect()
        assert_ended(theirs)


@pytest.mark.parametrize("run", RUN)
def test_a_loop_closed_directly_drops_the_connection(run: str) -> None:
    """Without ``shutdown_asyncgens()`` there is no Close, but nothing is kept alive either."""
    ours, theirs = socket.socketpair()

    def forget() -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[run]()
        loop.run_until_complete(opened(CLIENT, ours))
        loop.close()
        return weakref.ref(loop)

    with theirs:
        loop = forget()
        gc.collect()
        assert loop() is None
        assert_ended(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
def test_the_applications_generators_are_closed_before_the_connection(run: str) -> None:
    """A connection may be used until it ends itself."""
    ours, theirs = socket.socketpair()
    kept: list[Any] = []

    async def says_goodbye() -> AsyncIterator[str]:
        connection = await opened(SERVER, ours)
        try:
            yield "the first of many"
        finally:
            await connection.send(await asyncio.to_thread(lambda: "bye"))

    async def forget() -> None:
        kept.append(says_goodbye())
        await anext(kept[0])

    with theirs:
        RUN[run](forget())
        peer = peer_of(SERVER, theirs)
        peer.read_head()
        peer.expect(TEXT, "bye")
        peer.expect_close(1001)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
def test_a_task_that_does_not_end_does_not_shorten_the_peers_time(run: str) -> None:
    """A loop that closes its generators while tasks still run: the peer still has its half second to answer."""
    ours, theirs = socket.socketpair()
    loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[run]()
    task = loop.create_task(asyncio.Event().wait())
    loop.run_until_complete(opened(SERVER, ours))
    with theirs, ThreadPoolExecutor(1) as threads:
        told = threads.submit(code_told, peer_of(SERVER, theirs))
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert told.result(LIMIT) == 1001
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "does not return"])
def test_a_handler_that_starts_at_the_end_is_not_left_behind(returns: bool, run: str) -> None:
    ours, theirs = socket.socketpair()
    ways: list[str] = []

    async def on_end(code: int, reason: str) -> None:
        try:
            loop = asyncio.get_running_loop()
            await (loop.run_in_executor(None, print) if returns else loop.create_future())
            ways.append("returned")
        except asyncio.CancelledError:
            ways.append("cancelled")
            raise

    async def forget() -> None:
        connection = await opened(SERVER, ours)
        connection.on("end", on_end)

    with theirs, ThreadPoolExecutor(1) as threads:
        told = threads.submit(code_told, peer_of(SERVER, theirs))
        RUN[run](forget())
        assert told.result(LIMIT) == 1001
    gc.collect()  # which warns of a task that is left
    assert ways == ["returned" if returns else "cancelled"]


def test_an_error_in_one_connection_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [socket.socketpair() for _ in range(2)]

    def trace(probe: str, connection: object, data: bytes) -> None:
        if probe == "send-close":
            raise OSError("the disk is full")

    async def forget() -> None:
        for ours, shed in zip((ours for ours, _ in pairs), (Watershed(trace=trace), Watershed()), strict=True):
            ours.setblocking(False)
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
            shed.accept(request_head(), transport)
        await asyncio.sleep(0)  # each begins to read

    asyncio.run(forget())
    peer = peer_of(SERVER, pairs[1][1])
    peer.read_head()
    peer.expect_close(1001)
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch("expected <AsyncioConnection .*> to end with its event loop, got an exception: .*", line)
    for _, theirs in pairs:
        assert_ended(theirs)
        theirs.close()


def assert_ended(peer: socket.socket) -> None:
    """Everything before the end can be read, and then the end or a reset."""
    peer.settimeout(LIMIT)
    try:
        while peer.recv(2**20):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("transports", [False, True], ids=["sockets", "transports"])
def test_a_relay_is_closed_with_its_loop(transports: bool, run: str) -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    client, ours = socket.socketpair()
    server, theirs = socket.socketpair()

    async def forget() -> None:
        loop = asyncio.get_running_loop()
        loops.append(weakref.ref(loop))
        ends: list[Any] = [ours, theirs]
        if transports:
            ends = [(await loop.create_connection(asyncio.Protocol, sock=end))[0] for end in ends]
        relay(*ends)
        peer_of(SERVER, client).send(TEXT, "hello")
        await asyncio.to_thread(peer_of(CLIENT, server).expect, TEXT, "hello")

    server.settimeout(LIMIT)
    with client, server:
        # Nobody answers, so that this takes its half second.
        RUN[run](forget())
        gc.collect()
        assert loops[0]() is None
        assert live_relays() == []
        for peer in (peer_of(SERVER, client), peer_of(CLIENT, server)):
            peer.expect_close(1001)
            assert_ended(peer.sock)
