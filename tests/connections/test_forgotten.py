"""A connection that is still open when its event loop closes: all of it can be collected, and the peer sees the end."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from tests.connections.ways import CLIENT, SERVER, HeadReader
from tests.connections.wire import HANDSHAKE_KEY, KEY, TEXT, request_head, response_head
from tests.support import LIMIT
from watershed_mw import AsyncConnection, Watershed, live_connections
from watershed_mw.core.frames import encode_frame
from watershed_mw.core.states import Role
from watershed_mw.relay import live_relays, relay

# So asyncio says that a transport is collected that nobody has closed.
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
    transport, _ = await asyncio.get_running_loop().create_connection(HeadReader, sock=sock)
    if role is SERVER:
        return shed.accept(request_head(), transport)
    return shed.connect(response_head(HANDSHAKE_KEY), transport, key=HANDSHAKE_KEY, request=request_head())


def assert_ended(peer: socket.socket) -> None:
    """All that came before can be read, and then the end or a reset."""
    peer.settimeout(LIMIT)
    try:
        while peer.recv(2**20):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("role", [SERVER, CLIENT], ids=["server", "client"])
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_a_connection(work: Work, role: Role, run: str) -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    ids: list[int] = []
    ours, theirs = socket.socketpair()

    async def forget() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        connection = await opened(role, ours)
        ids.append(connection.id)
        theirs.sendall(encode_frame(TEXT, b"hello", KEY if role is SERVER else None))
        await work(connection)

    with theirs:
        RUN[run](forget())
        gc.collect()
        assert loops[0]() is None
        assert ids[0] not in [connection.id for connection in live_connections()]
        assert_ended(theirs)


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("transports", [False, True], ids=["sockets", "transports"])
def test_a_relay(transports: bool, run: str) -> None:
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
        client.sendall(b"hello")
        assert await asyncio.to_thread(server.recv, 100) == b"hello"

    server.settimeout(LIMIT)
    with client, server:
        RUN[run](forget())
        gc.collect()
        assert loops[0]() is None
        assert live_relays() == []
        assert_ended(client)
        assert_ended(server)
