"""Published advisories of comparable packages, tried on this package's integrations with real sockets.

`@pytest.mark.advisory(...)` names the advisory; the core's tests carry it too if bytes alone show it, and
tests/test_coverage_of_needs.py knows which must have a test. Tests of request parsing use both of uvicorn's HTTP
parsers (the fixture `uvicorns`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.memory import measured
from tests.support.native_apps import accepting, echoing
from tests.support.peers import KEY, Peer, close, dial, head, ping, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import AsyncConnection, HandshakeError, LocalProtocolError
from watershed_mw.core.handshake.headers import Headers, parse_extensions
from watershed_mw.core.handshake.negotiation import offered_subprotocols

from .conftest import Start

MIB = 2**20


def fragment(opcode: Opcode, payload: bytes, *, rsv: int = 0, fin: bool = False) -> bytes:
    """A masked frame with any FIN and RSV bits; RSV1 is 4."""
    data = Frame(opcode, payload, fin=fin).serialize(mask=True)
    return bytes([data[0] | rsv << 4]) + data[1:]


def beginning(opcode: Opcode, declared: int, *, fin: bool = True) -> bytes:
    """A frame's header whose payload is still to come; its mask is zero."""
    return bytes([(0x80 if fin else 0) | opcode, 0xFF]) + declared.to_bytes(8, "big") + bytes(4)


@pytest.fixture
def survivor(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> Iterator[Peer]:
    """Another client of the same server, which is served before and after, whatever the first one does."""
    uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.open()
        yield peer
        peer.send(text("still served"))
        assert peer.text() == "still served"
    assert errors_in(caplog.records) == []


# --- messages that are too large ---------------------------------------------------------------------------


@pytest.mark.advisory("CVE-2026-44545")
@pytest.mark.parametrize("declared", [2**40, 2**62, 2**63 - 1, 16 * MIB + 1])
def test_a_declared_length_reserves_no_memory(uvicorns: Uvicorn, survivor: Peer, declared: int) -> None:
    with Peer(uvicorns.port) as first:
        first.open()  # the first connection of a process allocates more
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open()
        peer.send(beginning(Opcode.BINARY, declared))
        assert peer.close()[0] == 1009
    assert memory.peak < MIB


@pytest.mark.advisory("CVE-2026-44545", "CVE-2026-54274")
@pytest.mark.parametrize("shape", ["fragments", "an incomplete frame behind a fragment"])
def test_a_message_streamed_past_the_limit_is_refused_at_the_limit(
    uvicorns: Uvicorn, survivor: Peer, shape: str
) -> None:
    uvicorns.run(accepting(echoing, max_message_size=MIB))
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open()
        peer.send(fragment(Opcode.BINARY, bytes(900_000)))
        if shape == "fragments":
            for _ in range(20):
                peer.send(fragment(Opcode.CONT, bytes(100_000)))
        else:
            # The header alone shows that the message is too long, so no byte of it is awaited.
            peer.send(beginning(Opcode.CONT, 200_000))
        assert peer.close()[0] == 1009
    # The message so far, its pieces in transit, and this test's own data.
    assert memory.peak < 4 * MIB


@pytest.mark.advisory("CVE-2026-54274")
def test_a_trickled_frame_costs_only_the_received_bytes(uvicorns: Uvicorn, survivor: Peer) -> None:
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open()
        peer.send(ping(b"1") + beginning(Opcode.BINARY, 16 * MIB))
        for _ in range(200):
            peer.send(bytes(100))
        assert bytes(peer.frame().data) == b"1"
        survivor.send(text("meanwhile"))
        assert survivor.text() == "meanwhile"
    assert memory.peak < MIB


# --- bytes that come one at a time -------------------------------------------------------------------------


def trickle(peer: Peer, data: bytes) -> None:
    """Send every byte in a segment of its own."""
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for index in range(len(data)):
        peer.send(data[index : index + 1])


@pytest.mark.slow
@pytest.mark.advisory("aiohttp#13350")
@pytest.mark.parametrize("kind", ["one frame", "fragments"])
def test_single_bytes_cost_little_more_than_their_size(uvicorns: Uvicorn, survivor: Peer, kind: str) -> None:
    size = 66_000
    with Peer(uvicorns.port) as peer:
        peer.open()
        if kind == "one frame":
            whole = beginning(Opcode.BINARY, size + 1)
            peer.send(whole)
            data, last = bytes(size), b"x"
        else:
            size = 15_000
            peer.send(fragment(Opcode.BINARY, b""))
            data, last = fragment(Opcode.CONT, b"\0") * size, fragment(Opcode.CONT, b"x", fin=True)
        with measured() as memory:
            trickle(peer, data)
            # There cannot be a PING inside a frame, so a second connection shows that the server has caught up.
            survivor.send(text("caught up?"))
            assert survivor.text() == "caught up?"
        assert memory.held < 2 * size + 16_384, "measured: 1.3 bytes for each; aiohttp held 28"
        peer.send(last)
        assert bytes(peer.frame().data) == bytes(size) + b"x"


@pytest.mark.advisory("aiohttp#13487")
def test_reading_paused_by_single_bytes_resumes(uvicorns: Uvicorn) -> None:
    gate, counted = Gate[None](), Gate[int]()

    async def handler(connection: AsyncConnection) -> None:
        await gate.wait()
        count = 0
        async for message in connection:
            assert message == "x"
            count += 1
        counted.put(count)

    uvicorns.run(accepting(handler, max_queued_messages=4))
    with Peer(uvicorns.port) as peer:
        peer.open()
        trickle(peer, text("x") * 500)
        gate.put(None)
        trickle(peer, text("x") * 500)
        peer.send(close())
        assert peer.close()[0] == 1000
    assert counted.get() == 1000


# --- bombs and floods --------------------------------------------------------------------------------------


@pytest.mark.advisory("aiohttp#11898", "CVE-2018-1000518")
@pytest.mark.parametrize("pieces", [1, 30])
def test_a_bomb_is_stopped_during_decompression(uvicorns: Uvicorn, survivor: Peer, pieces: int) -> None:
    deflater = zlib.compressobj(9, wbits=-12)
    bomb = (deflater.compress(bytes(32 * MIB)) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    step = len(bomb) // pieces + 1
    parts = [bomb[index : index + step] for index in range(0, len(bomb), step)]
    data = b"".join(
        fragment(Opcode.CONT if index else Opcode.BINARY, part, rsv=0 if index else 4, fin=index == len(parts) - 1)
        for index, part in enumerate(parts)
    )
    assert len(data) < 100_000
    uvicorns.run(accepting(echoing, max_message_size=MIB))
    with Peer(uvicorns.port) as peer, measured() as memory:
        peer.open(Sec_WebSocket_Extensions="permessage-deflate")
        peer.send(data)
        assert peer.close()[0] == 1009
    assert memory.peak < 5 * MIB


@pytest.mark.slow
@pytest.mark.advisory("CVE-2026-48802")
def test_neither_connections_nor_pongs_start_threads(uvicorns: Uvicorn, survivor: Peer) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for number in range(120):
            peer = stack.enter_context(Peer(uvicorns.port))
            if number % 3 == 0:
                peer.open()  # accepted, and no word from it
            elif number % 3 == 1:
                peer.send(head()[:-2])  # a head that does not end
            else:
                peer.send(head(Sec_WebSocket_Key=None))
                assert peer.refusal().status == 400
            assert threading.active_count() <= before
        for number in range(200):
            survivor.send(Frame(Opcode.PONG, b"%d" % number).serialize(mask=True) * 50)
            if number % 20 == 0:
                survivor.send(ping(b"%d" % number))
                assert bytes(survivor.frame().data) == b"%d" % number
                assert threading.active_count() <= before


# --- requests ----------------------------------------------------------------------------------------------

LINE_ENDS_TO_SOME = [b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"]
"""What `str.splitlines` takes for the end of a line, and HTTP does not."""

FIELDS = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "chat",
    "Sec-WebSocket-Extensions": "permessage-deflate",
    "Origin": "http://127.0.0.1",
    "Cookie": "a=b",
    "X-Other": "value",
}


@pytest.mark.advisory("CVE-2026-44546")
@pytest.mark.parametrize("field", FIELDS)
def test_no_byte_inside_a_value_creates_a_second_header(uvicorns: Uvicorn, field: str) -> None:
    scopes = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.put(scope)
        if scope["type"] == "websocket":
            await accept(receive, send)
        else:  # a request that uvicorn does not take for an upgrade any more
            await send({"type": "http.response.start", "status": 404, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body"})

    uvicorns.run(app)
    for byte in LINE_ENDS_TO_SOME:
        for template in (
            b"%s%sX-Evil: 1",
            b"%s%s\tX-Evil: 1",
            b"%s%sOrigin: http://evil.example%s",
            b"%s%s%sX-Evil: 1",
        ):
            parts = (FIELDS[field].encode(), byte, byte)[: template.count(b"%s")]
            values = {name: value.encode() for name, value in FIELDS.items()} | {field: template % parts}
            lines = [b"GET / HTTP/1.1", *(b"%s: %s" % (name.encode(), value) for name, value in values.items())]
            with Peer(uvicorns.port) as peer:
                peer.send(b"\r\n".join([*lines, b"", b""]))
                status = peer.answer().status
            if scopes.empty:
                assert status in (400, 403, 426), (byte, status)
                continue
            scope = scopes.get()
            assert [tuple(pair) for pair in scope["headers"]] == [
                (name.lower().encode(), value) for name, value in values.items()
            ], (byte, status)


@pytest.mark.advisory("CVE-2026-44546")
def test_no_byte_inside_the_target_creates_a_header(uvicorns: Uvicorn) -> None:
    scopes = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.put(scope)
        await accept(receive, send)

    uvicorns.run(app)
    for byte in LINE_ENDS_TO_SOME:
        with Peer(uvicorns.port) as peer:
            peer.send(head().replace(b"GET / ", b"GET /?a=" + byte + b"X-Evil:1 "))
            if peer.answer().status == 400:
                assert scopes.empty
                continue
        scope = scopes.get()
        assert scope["query_string"] == b"a=" + byte + b"X-Evil:1"
        assert b"x-evil" not in dict(scope["headers"])


@pytest.mark.advisory("CVE-2026-42544")
@pytest.mark.parametrize("value", ["\x80\xff", "chat, \xff", "\xe9", "\x80" * 4000])
@pytest.mark.parametrize("field", ["Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions", "Origin", "Sec_WebSocket_Key"])
def test_non_ascii_headers_are_harmless(uvicorns: Uvicorn, survivor: Peer, field: str, value: str) -> None:
    for app in (echo, accepting(echoing)):
        uvicorns.run(app)
        with Peer(uvicorns.port) as peer:
            peer.send(head(**{field: value}))
            status = peer.answer().status
        if field == "Origin" and app is echo:
            assert status == 101  # origins are the application's business there
        else:
            assert status == (403 if field == "Origin" else 400)


@pytest.mark.advisory("CVE-2024-37890")
@pytest.mark.parametrize("name", ["X-{}", "X-Same", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Cookie"])
def test_2000_headers_are_harmless(uvicorns: Uvicorn, survivor: Peer, name: str) -> None:
    for app in (echo, accepting(echoing)):
        uvicorns.run(app)
        fields = "".join(f"{name.format(number)}: v{number}\r\n" for number in range(2000))
        with Peer(uvicorns.port) as peer:
            peer.send(head()[:-2] + fields.encode() + b"\r\n")
            status = peer.answer().status
        # The middleware knows none of these subprotocols.
        assert status == (400 if name == "Sec-WebSocket-Protocol" and app is not echo else 101)


@pytest.mark.advisory("CVE-2021-32640", "node ws 3.3.1")
@pytest.mark.parametrize("field", ["Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions"])
@pytest.mark.parametrize(
    "value",
    [
        "b" + " " * 32_000 + "x",
        "b" + "\t" * 32_000 + "x",
        "," * 32_000 + "@",
        "a" + ";" * 32_000,
        'a;b="' + "\\" * 32_000,
        'a;b="' * 6_000,
        "a;b" + "=" * 32_000,
        'permessage-deflate; server_max_window_bits="',
        "permessage-deflate; =12",
        "; permessage-deflate",
        "permessage-deflate client_max_window_bits",
        "permessage-deflate; a=b=c",
        'permessage-deflate; a="b c"',
        "constructor; __proto__=\x7f",
    ],
    ids=lambda value: f"{value[:44]!a}",
)
def test_a_request_with_a_malformed_list_is_refused(uvicorns: Uvicorn, survivor: Peer, field: str, value: str) -> None:
    with Peer(uvicorns.port) as peer:
        peer.send(head(**{field: value}))
        assert peer.refusal().status == 400


SHAPES = {
    "spaces": lambda size: "b" + " " * size + "x",
    "spaces at the end": lambda size: "b" + " " * size,
    "commas": lambda size: "," * size + "@",
    "quotes": lambda size: 'a;b="' * (size // 5),
    "backslashes": lambda size: 'a;b="' + "\\" * size,
    "parameters": lambda size: "a" + ";b" * (size // 2) + "@",
}


@pytest.mark.advisory("CVE-2021-32640", "node ws 3.3.1")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parse", [offered_subprotocols, parse_extensions])
def test_parsing_takes_linear_time(parse: Callable[[Headers], object], shape: str) -> None:
    """16 times the length; quadratic work would take 256 times as long. The clock is this thread's own."""

    def work(size: int) -> int:
        name = "sec-websocket-protocol" if parse is offered_subprotocols else "sec-websocket-extensions"
        headers = Headers([(name, SHAPES[shape](size))])
        begin = time.thread_time_ns()
        with contextlib.suppress(HandshakeError):
            parse(headers)
        return time.thread_time_ns() - begin

    small = min(work(2_000) for _ in range(20))
    large = min(work(32_000) for _ in range(3))
    assert large < 64 * max(small, 2_000)


@pytest.mark.advisory("aiohttp changelog")
@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "notupgrade"},
        {"Upgrade": "notwebsocket"},
        {"Upgrade": "websocketx, h2c"},
        {"Connection": "notupgrade"},
        {"Connection": "keep-alive, not-Upgrade"},
        {"Upgrade": ""},
        {"Upgrade": None},
        {"Connection": None},
    ],
)
def test_a_request_that_only_resembles_an_upgrade_gets_no_101(uvicorns: Uvicorn, changes: dict[str, Any]) -> None:
    kinds = Inbox[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.put(scope["type"])
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 404, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body"})

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head(**changes))
        assert peer.answer().status in (400, 404, 426)
    assert kinds.empty or kinds.get() == "http"


# --- frames ------------------------------------------------------------------------------------------------


@pytest.mark.advisory("engine.io 4.x")
@pytest.mark.parametrize("rsv", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.PING, Opcode.CLOSE])
def test_reserved_bits_end_only_their_connection(uvicorns: Uvicorn, survivor: Peer, rsv: int, opcode: Opcode) -> None:
    with Peer(uvicorns.port) as peer:
        peer.open()  # without compression: RSV1 has no meaning either
        peer.send(fragment(opcode, b"", rsv=rsv, fin=True))
        assert peer.close()[0] == 1002
    if rsv != 4 or opcode is not Opcode.TEXT:
        with Peer(uvicorns.port) as peer:
            peer.open(Sec_WebSocket_Extensions="permessage-deflate")
            peer.send(fragment(opcode, b"", rsv=rsv, fin=True))
            assert peer.close()[0] == 1002


@pytest.mark.advisory("aiohttp changelog")
@pytest.mark.parametrize("compressed", [False, True])
def test_control_frames_inside_a_message_do_not_affect_it(uvicorns: Uvicorn, survivor: Peer, compressed: bool) -> None:
    message = b"Hello, " * 40
    deflater = zlib.compressobj(wbits=-12)
    data = (deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4] if compressed else message
    with Peer(uvicorns.port) as peer:
        peer.open(Sec_WebSocket_Extensions="permessage-deflate" if compressed else None)
        peer.send(fragment(Opcode.TEXT, data[:3], rsv=4 if compressed else 0) + ping(b"1"))
        assert bytes(peer.frame().data) == b"1"
        peer.send(Frame(Opcode.PONG, b"?").serialize(mask=True) + fragment(Opcode.CONT, data[3:5]) + ping(b"2"))
        assert bytes(peer.frame().data) == b"2"
        peer.send(fragment(Opcode.CONT, data[5:], fin=True))
        if not compressed:
            assert peer.text() == message.decode()
        else:
            answer = peer.sock.recv(65536)
            assert zlib.decompressobj(-15).decompress(answer[2:] + b"\0\0\xff\xff") == message


@pytest.mark.slow
@pytest.mark.advisory("aiohttp changelog")
@pytest.mark.parametrize("native", [False, True], ids=["messages", "native"])
def test_a_cancelled_send_keeps_the_compressor_consistent(uvicorns: Uvicorn, native: bool) -> None:
    sent = Gate[list[bytes]]()
    source = random.Random(1)
    # Half of each is noise, which does not compress; later messages can refer to the other half.
    data = [source.randbytes(40_000) + b"the same again " * 1000 for _ in range(400)]

    async def flood(send: Callable[[bytes], Awaitable[None]]) -> None:
        count = cancelled = 0
        while cancelled < 3:
            task = asyncio.ensure_future(send(data[count]))
            count += 1
            done, _ = await asyncio.wait([task], timeout=0.2)
            if not done:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                cancelled += 1
        sent.put(data[:count])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await flood(lambda message: send({"type": "websocket.send", "bytes": message}))
        await send({"type": "websocket.send", "text": "the end " * 20})

    async def handler(connection: AsyncConnection) -> None:
        async def send(message: bytes) -> None:
            await connection.send(message)

        await flood(send)
        await connection.send("the end " * 20)

    run = uvicorns.run(accepting(handler) if native else app)
    with dial(uvicorns.port, compression="deflate") as client:
        assert client.protocol.extensions, "nothing is compressed"
        for message in sent.get():
            assert client.recv(LIMIT) == message
        assert client.recv(LIMIT) == "the end " * 20
    assert run.outcome() is None


# --- the application's own close -----------------------------------------------------------------------------

ODD_REASONS: list[Any] = [5, b"bytes", 4096, 1.5, ["a"], "x" * 124, "é" * 62, "\ud800", bytearray(5)]


@pytest.mark.advisory("CVE-2026-45736")
@pytest.mark.parametrize("server", ["native", "portable"])
def test_an_invalid_close_reason_is_a_clear_error_and_leaks_no_memory(running: Start, server: str) -> None:
    errors = Inbox[BaseException]()

    async def handler(connection: AsyncConnection) -> None:
        for reason in ODD_REASONS:
            try:
                connection.end(reason, code=4000)
            except BaseException as error:  # noqa: BLE001  # checked below
                errors.put(error)
        await connection.send("still open")
        await connection.end("x" * 123, code=4000)

    with contextlib.ExitStack() as stack:
        if server == "native":
            subject = running("asyncio", "h11")
        else:
            subject = stack.enter_context(Uvicorn(ws="websockets-sansio"))
        subject.run(accepting(handler))
        peer = stack.enter_context(Peer(subject.port))
        peer.open()
        assert peer.text() == "still open"
        assert peer.close() == (4000, "x" * 123)
        peer.send(close(4000))
        peer.end()
    for _ in ODD_REASONS:
        error = errors.get()
        assert isinstance(error, LocalProtocolError)
        assert str(error).startswith("expected ")
    assert errors.empty


@pytest.mark.advisory("CVE-2026-45736")
@pytest.mark.parametrize("reason", [5, b"bytes", 4096, 1.5, ["a"], "\ud800", bytearray(5)], ids=repr)
def test_an_invalid_close_reason_in_an_asgi_message_is_a_clear_error(uvicorns: Uvicorn, reason: Any) -> None:
    errors = Gate[BaseException]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        try:
            await send({"type": "websocket.close", "code": 4000, "reason": reason})
        except LocalProtocolError as error:
            errors.put(error)
        await send({"type": "websocket.close", "code": 4000, "reason": "plain"})

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == (4000, "plain")
    assert str(errors.get()).startswith("expected ")
    eventually(lambda: not uvicorns.server.server_state.tasks)
