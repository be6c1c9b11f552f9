"""Everything sent arrives complete and in order, whether the kernel accepts it at once, in part, or not at all."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from tests.conftest import RunPython
from tests.support import LIMIT
from tests.support.loops import LoopThread
from tests.support.waiting import in_thread
from tests.support.ways import SERVER, Link, Way
from tests.support.wire_peer import BINARY, TEXT, Frame, request_head, tcp_pair
from watershed_mw import AsyncConnection, Watershed, implementation, live_connections

PLAIN = [Way(loop, carrier, False, SERVER) for loop in ("asyncio", "uvloop") for carrier in ("streams", "transport")]
plain = pytest.mark.parametrize("way", PLAIN, ids=str)


def numbered(count: int) -> list[str]:
    """Messages of different numbers and lengths, so that the kernel stops somewhere within one."""
    return [f"{number} ".ljust(200 + number * 7919 % 3000, "*") for number in range(count)]


@plain
def test_order_is_kept_when_the_socket_buffer_fills_and_drains(link: Link) -> None:
    """Half of them are sent while the peer reads nothing, the rest while it reads as fast as it can."""
    live, peer = link(small=True)
    messages = numbered(2000)

    async def send(conn: Any, some: list[str]) -> None:
        for index, message in enumerate(some):
            conn.send(message)
            if index % 3 == 0:
                await asyncio.sleep(0)  # each of them leaves in a turn of its own

    live.do(lambda conn: send(conn, messages[:1000])).result(LIMIT)
    reading = in_thread(lambda: [peer.read() for _ in messages])
    live.do(lambda conn: send(conn, messages[1000:])).result(LIMIT)
    assert reading.result(LIMIT) == [Frame(TEXT, message.encode()) for message in messages]


@plain
def test_order_is_kept_between_large_and_small_messages(link: Link) -> None:
    """The large ones are written in pieces, which may wait where small ones could overtake them."""
    live, peer = link(small=True)
    messages = [f"{number} ".ljust(100_000 if number % 4 == 0 else 50, "*") for number in range(400)]

    async def send(conn: Any) -> None:
        for message in messages:
            await conn.send(message)
            await asyncio.sleep(0)

    reading = in_thread(lambda: [peer.read() for _ in messages])
    live.do(send).result(LIMIT)
    assert [frame.payload[:50] for frame in reading.result(LIMIT)] == [text[:50].encode() for text in messages]


@pytest.mark.parametrize("flavour", ["asyncio", "uvloop"])
def test_the_handshake_response_comes_first(flavour: str, loops: Callable[[str], LoopThread]) -> None:
    """Even if it still waits in the transport when the first message is sent, and the socket buffer has drained."""
    ours, theirs = tcp_pair(small=True)
    before = b"x" * 2**20
    taken: list[int] = []

    async def accept() -> AsyncConnection:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
        transport.write(before)
        conn = Watershed(origins="*").accept(request_head(), transport)
        assert isinstance(conn, AsyncConnection)
        # The kernel has room now, and the loop has not been told of it.
        taken.append(len(theirs.recv(2**18)))
        conn.send("hello")
        return conn

    conn = loops(flavour).call(accept())
    try:
        stream = theirs.makefile("rb")
        rest = stream.read(len(before) - taken[0])
        head = b"".join(iter(stream.readline, b"\r\n"))
        assert rest == b"x" * len(rest)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert stream.read(7) == b"\x81\x05hello"
    finally:
        conn.destroy()
        theirs.close()


@plain
def test_bytes_of_another_writer_are_not_overtaken(link: Link) -> None:
    """Even if the socket buffer has drained, and the loop has not noticed it."""
    live, peer = link(small=True)
    live.send("first")
    peer.expect(TEXT, "first")
    payload = b"x" * 2**20

    async def write(conn: Any) -> None:
        conn._transport.write(b"\x82\x7f" + len(payload).to_bytes(8, "big") + payload)
        peer._buffer += peer.sock.recv(2**18)
        conn.send("last")

    live.do(write).result(LIMIT)
    peer.expect(BINARY, payload)
    peer.expect(TEXT, "last")


@pytest.mark.slow
def test_the_bypass_can_be_switched_off(run_python: RunPython) -> None:
    """The variable is read once, when the package is imported."""
    script = """
import asyncio, socket
from tests.support.wire_peer import request_head
from watershed_mw import Watershed

async def main():
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    conn = Watershed(origins="*").accept(request_head(), transport)
    await conn.send("sent")
    await asyncio.sleep(0)
    theirs.settimeout(5)
    data = b""
    while not data.endswith(b"\\x81\\x04sent"):
        data += theirs.recv(1000)
    print(conn._writer.bypasses_transport)

asyncio.run(main())
"""
    assert run_python(script).strip() == str(implementation == "compiled")
    assert run_python(script, WATERSHED_MW_RAW_SEND="0").strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("way", [*PLAIN, Way("uvloop", "transport", True, SERVER)], ids=str)
def test_only_plain_transports_are_bypassed(link: Link, way: Way) -> None:
    """If one of these classes is renamed, writes become slower, and nothing else would show it."""
    live, _ = link()
    assert live.conn._writer.bypasses_transport is (implementation == "compiled" and not way.tls)


@pytest.mark.slow
def test_nothing_is_sent_to_a_reused_descriptor_of_a_closed_loop() -> None:
    """A uvloop loop closes its sockets with itself, without notice."""
    ours, theirs = tcp_pair()
    number = ours.fileno()

    async def accept() -> AsyncConnection:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
        conn = Watershed(origins="*").accept(request_head(), transport)
        assert isinstance(conn, AsyncConnection)
        await asyncio.sleep(0)  # it begins to read
        return conn

    loop = uvloop.new_event_loop()
    conn = loop.run_until_complete(accept())
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        loop.close()  # without shutdown_asyncgens(), which would end the connection
    ours.detach()
    taken: list[socket.socket] = []
    while all(end.fileno() != number for end in taken):
        taken += socket.socketpair()
        assert len(taken) < 100, "expected the descriptor to be used again"
    try:
        with pytest.raises(RuntimeError):
            conn.send("not for a stranger")
        for end in taken:
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(1)
    finally:
        with suppress(RuntimeError):
            conn.destroy()  # or it would be listed among the living
        assert conn not in live_connections()
        for end in (theirs, *taken):
            end.close()
