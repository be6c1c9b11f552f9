"""Frequent requests of users of other implementations: much data, many messages, peers that do not read.

`@pytest.mark.need(N)` names the row of the list; tests elsewhere carry it too, and tests/test_coverage_of_needs.py
knows which rows must have one. These tests need a complete server with real sockets.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import time
import tracemalloc
import zlib
from typing import ClassVar

import pytest
from websockets.frames import Frame, Opcode

from tests.support import LIMIT, SOON
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.memory import measured
from tests.support.native_apps import NATIVE, accepting, echoing
from tests.support.peers import Peer, binary, close, head, text
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import AsyncConnection
from watershed_mw.options import ConnectionOptions
from watershed_mw.uvicorn import WatershedProtocol

MIB = 2**20


# --- 1: everything arrives before the close, and the close does not tear the stream --------------------------


@pytest.mark.need(1)
@NATIVE
def test_a_slow_reader_that_keeps_sending_gets_everything_and_the_close_code(uvicorns: Uvicorn, native: bool) -> None:
    """The application never receives this client's data: an immediate close would make the socket send an RST."""
    data = b"d" * 100_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(40):
            await send({"type": "websocket.send", "bytes": data})
        await send({"type": "websocket.close", "code": 4000, "reason": "all sent"})

    async def handler(connection: AsyncConnection) -> None:
        for _ in range(40):
            await connection.send(data)
        await connection.end("all sent", code=4000)

    run = uvicorns.run(accepting(handler) if native else app)
    with Peer(uvicorns.port, receive_buffer=4096) as peer:
        peer.open()
        for _ in range(8):
            peer.send(binary(bytes(65536)))
        for _ in range(40):
            assert bytes(peer.frame().data) == data
        assert peer.close() == (4000, "all sent")
        peer.send(binary(bytes(65536)) + close(4000))
        # The server ends its direction and keeps reading. An RST would be an error from recv, and soon from send.
        assert peer.sock.recv(1) == b""
        for _ in range(20):
            peer.send(binary(bytes(10_000)))
        assert peer.sock.recv(1) == b""
    assert run.outcome() is None


@pytest.mark.need(1)
def test_a_client_refused_in_the_middle_of_its_message_gets_the_close_code(uvicorns: Uvicorn) -> None:
    uvicorns.run(accepting(echoing, max_message_size=1000))
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(b"\x82\xff" + (2 * MIB).to_bytes(8, "big") + bytes(4))
        for _ in range(20):  # it has not seen the answer, and sends on
            peer.send(bytes(100_000))
        assert peer.close()[0] == 1009
        assert peer.sock.recv(1) == b""


@pytest.mark.slow
@pytest.mark.need(1)
def test_a_close_waits_for_the_clients_close_up_to_close_timeout(uvicorns: Uvicorn) -> None:
    ended = Inbox[float]()

    async def handler(connection: AsyncConnection) -> None:
        begin = time.monotonic()
        await connection.end(code=4000)
        ended.put(time.monotonic() - begin)

    uvicorns.run(accepting(handler, close_timeout=0.5))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == (4000, "")
        assert 0.4 <= ended.get() < LIMIT  # this one never answers
    uvicorns.run(accepting(handler, close_timeout=2 * LIMIT))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == (4000, "")
        peer.send(close(4000))
        assert peer.sock.recv(1) == b""
        peer.sock.close()
        assert ended.get() < LIMIT


# --- 3: drain ------------------------------------------------------------------------------------------------


class Brief(WatershedProtocol):
    options: ClassVar[ConnectionOptions] = {"close_timeout": 1.0}


@pytest.mark.slow
@pytest.mark.need(2, 3)
@NATIVE
def test_a_stopping_server_refuses_clients_closes_connections_and_bounds_its_wait(native: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)

    with Uvicorn(accepting(echoing) if native else app, ws=Brief) as server:
        polite, rude = Peer(server.port), Peer(server.port)
        with polite, rude:
            for peer in (polite, rude):
                peer.open()
                peer.send(text("before"))
            server.begin_stop()
            for peer in (polite, rude):
                assert peer.text() == "before"
                assert peer.close() == (1012, "the server restarts")
            # Both are still connected, and the server accepts no more.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), LIMIT)
            polite.send(close(1012))
            polite.end()
            server.wait_stopped(1.0 + SOON)  # the rude one never answers
            rude.end()


# --- 4, 5: a client that does not read, an application that does not receive ---------------------------------


@pytest.mark.need(4)
@NATIVE
def test_100_mib_to_a_slow_client_take_no_memory_and_block_no_other_client(uvicorns: Uvicorn, native: bool) -> None:
    message, count = bytes(65536), 1600

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(count):
            await send({"type": "websocket.send", "bytes": message})

    async def handler(connection: AsyncConnection) -> None:
        for _ in range(count):
            await connection.send(message)

    flood = accepting(handler) if native else app

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (echo if scope["path"] == "/echo" else flood)(scope, receive, send)

    uvicorns.run(both)
    with Peer(uvicorns.port, receive_buffer=65536) as slow, Peer(uvicorns.port) as other:
        other.open("/echo")
        with measured() as memory:
            slow.send(head())
            received, wanted = 0, count * len(message)
            for pause in range(1, 21):
                while received < pause * wanted // 20:
                    received += len(slow.sock.recv(65536))
                other.send(text("not blocked"))  # it does not read meanwhile
                assert other.text() == "not blocked"
            slow.send(close())
            slow.rest()
        assert memory.peak < 4 * MIB


@pytest.mark.slow
@pytest.mark.need(5)
@NATIVE
def test_100_mib_to_a_late_receiver_take_no_memory_and_arrive(uvicorns: Uvicorn, native: bool) -> None:
    gate, counted = Gate[None](), Gate[int]()
    size, count = 65536, 1600

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await gate.wait()
        received = 0
        while (event := await receive())["type"] == "websocket.receive":
            received += len(event["bytes"])
        counted.put(received)

    async def handler(connection: AsyncConnection) -> None:
        await gate.wait()
        received = 0
        async for message in connection:
            received += len(message)
        counted.put(received)

    uvicorns.run(accepting(handler) if native else app)
    message = binary(bytes(size))
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open()
        peer.sock.settimeout(0.3)
        sent, rest = 0, b""
        with contextlib.suppress(TimeoutError):
            while sent < count:
                rest = message
                while rest:
                    rest = rest[peer.sock.send(rest) :]
                sent += 1
        assert sent < count, "it never stopped reading"
        peer.sock.settimeout(LIMIT)
        gate.put(None)
        peer.send(rest)
        for _ in range(sent + 1, count):
            peer.send(message)
        peer.send(close())
        assert counted.get() == count * size
    assert memory.peak < 4 * MIB


# --- 6: limits -----------------------------------------------------------------------------------------------


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-48779")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_an_endless_flood_of_fragments_reaches_a_default_limit(one_uvicorn: Uvicorn, payload: bytes) -> None:
    one_uvicorn.run(echo)
    fragments = Frame(Opcode.CONT, payload, fin=False).serialize(mask=True) * 1024
    with Peer(one_uvicorn.port) as peer, measured() as memory:
        peer.open()
        # Some seconds of CPU for the interpreted build, traced as its memory is: only the test has a limit.
        peer.sock.settimeout(None)
        peer.send(Frame(Opcode.BINARY, payload, fin=False).serialize(mask=True))
        for _ in range(128):
            peer.send(fragments)
        while (frame := peer.frame()).opcode is Opcode.PING:
            pass  # a machine that is busy enough takes longer than ping_interval
        assert frame.opcode is Opcode.CLOSE
        assert bytes(frame.data) == (1008).to_bytes(2) + b"expected a message in at most 131072 frames, got more"
    assert memory.peak < 2 * MIB


@pytest.mark.need(6)
@NATIVE
def test_a_message_that_is_too_large_reaches_a_default_limit(uvicorns: Uvicorn, native: bool) -> None:
    uvicorns.run(accepting(echoing) if native else echo)
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open()
        peer.send(b"\x82\xff" + (16 * MIB + 1).to_bytes(8, "big") + bytes(4))
        assert peer.close()[0] == 1009
    assert memory.peak < MIB


@pytest.mark.need(6)
def test_message_size_is_limited_over_asgi_messages_too(doors: Uvicorn) -> None:
    doors.run(accepting(echoing, max_message_size=1000))
    with Peer(doors.port) as peer:
        peer.open()
        peer.send(binary(bytes(1000)))
        assert bytes(peer.frame().data) == bytes(1000)
        peer.send(binary(bytes(1001)))
        code, reason = peer.close()
        assert code == 1009
        assert reason.startswith("message too large: at most 1000 bytes (max_message_size), got 1001")


# --- 18: compression -----------------------------------------------------------------------------------------


def traced() -> int:
    """The bytes that Python holds now, including zlib's contexts; only within `measured()`."""
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.need(18)
def test_compression_costs_memory_only_while_it_is_used(uvicorns: Uvicorn) -> None:
    count, offer = 40, "permessage-deflate; client_max_window_bits"
    deflater = zlib.compressobj(wbits=-12)
    payload = (deflater.compress(b"compress me " * 20) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    plain = binary(payload)
    compressed = bytes([plain[0] | 0x40]) + plain[1:]
    uvicorns.run(accepting(echoing))

    def opened(stack: contextlib.ExitStack, offered: str | None) -> tuple[list[Peer], int]:
        before, peers = traced(), []
        for _ in range(count):
            peers.append(stack.enter_context(Peer(uvicorns.port)))
            answer = peers[-1].open(Sec_WebSocket_Extensions=offered)
            assert answer["sec-websocket-extensions"].startswith("permessage-deflate") is (offered is not None)
        return peers, (traced() - before) // count

    def echoed(peers: list[Peer], data: bytes) -> int:
        before = traced()
        for peer in peers:
            peer.send(data)
            assert bool(peer.sock.recv(65536)[0] & 0x40) is bool(data[0] & 0x40)
        return (traced() - before) // count

    with measured(), contextlib.ExitStack() as stack:
        opened(stack, offer)  # what is made once and kept is not counted
        _, without = opened(stack, None)
        peers, agreed = opened(stack, offer)
        assert agreed < without + 4096, "to agree on it is paid for"
        assert echoed(peers, text("short")) < 4096, "a message below the threshold is paid for"
        before = traced()
        assert 16_384 < echoed(peers, compressed) < 65_536, "zlib's own defaults are 300 KiB for both directions"
        assert echoed(peers, compressed) < 65_536, "those that come back for more keep their contexts"
        assert echoed(peers, compressed) < 1024, "every message is paid for"
        for peer in peers:
            peer.send(close())
            peer.rest()
            peer.sock.close()
        # The connections are in a reference cycle, which only the garbage collector frees.
        eventually(lambda: gc.collect() is not None and traced() < before, "the end of the contexts")


# --- 27: how many, and how often -----------------------------------------------------------------------------


@pytest.mark.need(27)
def test_one_connection_too_many_is_refused_with_503_until_another_ends(doors: Uvicorn) -> None:
    run = doors.run(accepting(echoing, max_connections=2))
    with Peer(doors.port) as first, Peer(doors.port) as second:
        first.open()
        second.open()
        with Peer(doors.port) as third:
            third.send(head())
            answer = third.refusal()
        assert (answer.status, answer["retry-after"]) == (503, "1")
        assert b"max_connections" in answer.body
        assert run.outcome() is None
        for peer in (first, second):
            peer.send(text("served"))
            assert peer.text() == "served"
        second.send(close())
        assert second.close()[0] in (1000, 1005)
        run.outcome()
        with Peer(doors.port) as third:
            third.open()


@pytest.mark.need(27)
def test_one_message_too_many_ends_the_connection_with_1008(doors: Uvicorn) -> None:
    doors.run(accepting(echoing, max_message_rate=5))
    for _ in range(5):  # what happens at once happens in another order the next time
        with Peer(doors.port) as peer:
            peer.open()
            for _ in range(5):
                peer.send(text("x"))
                assert peer.text() == "x"
            peer.send(text("x") * 3)
            while (frame := peer.frame()).opcode is Opcode.TEXT:  # time has passed: perhaps one more was allowed
                assert bytes(frame.data) == b"x"
            assert bytes(frame.data)[:2] == (1008).to_bytes(2, "big")
            assert b"too many messages: at most 5 per second (max_message_rate)" in bytes(frame.data)
