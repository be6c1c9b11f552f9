"""The same scenarios under ASGI and under every kind of WSGI handler: a client cannot tell them apart.

Limits, keepalive, closing and backpressure belong to the core. These tests show that each integration passes them on,
with the same options and the same effect on the wire.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from websockets.frames import Frame, Opcode

from tests.support import LIMIT, SOON
from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer, binary, close, head, ping, text
from tests.support.threaded_servers import Werkzeug
from tests.support.waiting import Gate, Inbox, eventually
from tests.support.wsgi_apps import Environ, StartResponse
from watershed_mw import AsyncConnection, ThreadConnection, WatershedASGI, WatershedWSGI

from .conftest import Start

MIB = 2**20
DOORS = ["asgi", "wsgi-blocking", "wsgi-events", "wsgi-async"]


# --- the applications, once for await and once for blocking calls -----------------------------------------------


async def echo_async(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)


def echo_blocking(connection: ThreadConnection) -> None:
    for message in connection:
        connection.send(message)


def echo_events(connection: ThreadConnection) -> None:
    connection.on("text", connection.send)
    connection.on("binary", connection.send)
    connection.run_in_background()


@dataclass
class Flood:
    """An application that sends as much as its peer accepts, and ends with 4000."""

    count: int = 64
    data: bytes = field(default=b"x" * MIB, repr=False)
    sent: Inbox[int] = field(default_factory=Inbox)

    async def in_async(self, connection: AsyncConnection) -> None:
        for number in range(self.count):
            await connection.send(self.data)
            self.sent.put(number)
        await connection.end("all of it", code=4000)

    def in_blocking(self, connection: ThreadConnection) -> None:
        for number in range(self.count):
            connection.send(self.data)
            self.sent.put(number)
        connection.end("all of it", code=4000)

    def in_events(self, connection: ThreadConnection) -> None:
        connection.on("text", lambda message: self.in_blocking(connection))
        connection.run_in_background()


@dataclass
class Late:
    """An application that receives nothing until it is allowed to, and then counts the messages."""

    may: Gate[None] = field(default_factory=Gate)
    counted: Gate[int] = field(default_factory=Gate)

    async def in_async(self, connection: AsyncConnection) -> None:
        await self.may.wait()
        count = 0
        async for _ in connection:
            count += 1
        self.counted.put(count)

    def in_blocking(self, connection: ThreadConnection) -> None:
        self.may.get()
        self.counted.put(sum(1 for _ in connection))

    def in_events(self, connection: ThreadConnection) -> None:
        taken: list[bytes] = []

        def take(message: bytes) -> None:
            self.may.get()
            taken.append(b"")

        connection.on("binary", take)
        connection.on("end", lambda code, reason: self.counted.put(len(taken)))
        connection.run_in_background()


class Ender:
    """An application that ends the connection at its first message."""

    @staticmethod
    async def in_async(connection: AsyncConnection) -> None:
        await connection.receive()
        await connection.end("enough", code=4001)

    @staticmethod
    def in_blocking(connection: ThreadConnection) -> None:
        connection.receive()
        connection.end("enough", code=4001)

    @staticmethod
    def in_events(connection: ThreadConnection) -> None:
        connection.on("text", lambda message: connection.end("enough", code=4001))
        connection.run_in_background()


# --- the doors -------------------------------------------------------------------------------------------------

Serve: TypeAlias = Callable[..., contextlib.AbstractContextManager[int]]
"""Called with the application's ways and the middleware's options; the port."""


def asgi(start: Start) -> Serve:
    @contextlib.contextmanager
    def serve(in_async: Callable[[AsyncConnection], Awaitable[None]], *_: Any, **options: Any) -> Iterator[int]:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await in_async(await scope["watershed"].accept())

        server = start("asyncio", "h11")
        server.run(WatershedASGI(app, **options))
        yield server.port

    return serve


def wsgi(way: str) -> Serve:
    @contextlib.contextmanager
    def serve(in_async: Any, in_blocking: Any, in_events: Any, **options: Any) -> Iterator[int]:
        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            connection: ThreadConnection = environ["watershed"].accept()
            if way == "wsgi-async":
                connection.run_in_background(in_async)
            else:
                (in_blocking if way == "wsgi-blocking" else in_events)(connection)
            return []

        with Werkzeug(WatershedWSGI(app, **options)) as server:
            yield server.port
            assert server.troubles == []

    return serve


@pytest.fixture(params=DOORS)
def serve(running: Start, request: pytest.FixtureRequest) -> Serve:
    return asgi(running) if request.param == "asgi" else wsgi(request.param)


ECHO = (echo_async, echo_blocking, echo_events)


def ways(application: Any) -> tuple[Any, Any, Any]:
    return application.in_async, application.in_blocking, application.in_events


# --- limits ------------------------------------------------------------------------------------------------------


def fragment(opcode: Opcode, data: bytes, *, fin: bool = False) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def bomb(size: int) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    data = squeezer.compress(bytes(size)) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    whole = fragment(Opcode.BINARY, data.removesuffix(b"\x00\x00\xff\xff"), fin=True)
    return bytes([whole[0] | 0x40]) + whole[1:]  # RSV1, which marks compression


VIOLATIONS = [
    pytest.param({"max_message_size": 1000}, text("x" * 1001), 1009, id="a large message"),
    pytest.param({"max_message_size": 1000}, text("x" * 70_000)[:14], 1009, id="a large length alone"),
    pytest.param(
        {"max_message_size": 1000},
        fragment(Opcode.BINARY, bytes(600)) + fragment(Opcode.CONT, bytes(600)),
        1009,
        id="a large message in fragments",
    ),
    pytest.param({"max_message_size": 100_000}, bomb(20 * MIB), 1009, id="a bomb"),
    pytest.param(
        {"max_fragments": 5},
        fragment(Opcode.TEXT, b"a") + fragment(Opcode.CONT, b"") * 5,
        1008,
        id="a flood of fragments",
    ),
    pytest.param({"max_message_rate": 5}, ping(b"") * 6, 1008, id="a flood of PINGs"),
    pytest.param({}, fragment(Opcode.TEXT, b"\xff", fin=True), 1007, id="no UTF-8"),
    pytest.param({}, Frame(Opcode.TEXT, b"a").serialize(mask=False), 1002, id="no mask"),
    pytest.param({}, fragment(Opcode.CONT, b"a"), 1002, id="a continuation of nothing"),
    pytest.param({"compression": False}, bomb(10), 1002, id="compression that was not agreed on"),
    pytest.param({}, b"\x88\x85\0\0\0\0\x03\xedabc", 1002, id="a code that nobody may send"),
]


@pytest.mark.need(6, 27)
@pytest.mark.parametrize("options, data, code", VIOLATIONS)
def test_a_violation_is_answered_with_its_code(serve: Serve, options: dict[str, Any], data: bytes, code: int) -> None:
    with serve(*ECHO, **options) as port, Peer(port) as peer:
        deflate = "permessage-deflate" if options.get("compression", True) else None
        peer.open_with(head(Sec_WebSocket_Extensions=deflate) + text("first"))
        assert peer.frame().opcode is Opcode.TEXT
        peer.send(data)
        frame = peer.frame()
        while frame.opcode is Opcode.PONG:
            frame = peer.frame()
        assert frame.opcode is Opcode.CLOSE
        assert int.from_bytes(bytes(frame.data)[:2], "big") == code
        peer.send(close(code))
        peer.end()


@pytest.mark.need(27)
def test_one_connection_too_many_is_refused_until_another_ends(serve: Serve) -> None:
    with serve(*ECHO, max_connections=2) as port, Peer(port) as first, Peer(port) as second:
        first.open()
        second.open()
        with Peer(port) as third:
            third.send(head())
            answer = third.refusal()
            assert (answer.status, answer["retry-after"]) == (503, "1")
        first.send(close())
        assert first.close() == (1000, "")
        first.sock.close()

        def served() -> bool:
            with Peer(port) as fourth:
                fourth.send(head())
                return fourth.answer().status == 101

        eventually(served, "a place for another one")


@pytest.mark.need(8)
@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": None}, 400),
    ],
)
def test_a_handshake_is_refused_with_status_and_reason(serve: Serve, changes: Any, status: int) -> None:
    with serve(*ECHO) as port, Peer(port) as peer:
        peer.send(head(**changes))
        answer = peer.refusal()
        assert answer.status == status
        assert answer.body.startswith(b"expected ")


# --- keepalive ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.need(16)
def test_a_client_that_answers_pings_stays_connected(serve: Serve) -> None:
    with serve(*ECHO, ping_interval=0.1, ping_timeout=LIMIT) as port, Peer(port) as peer:
        peer.open()
        for _ in range(8):
            frame = peer.frame()
            assert frame.opcode is Opcode.PING
            peer.send(Frame(Opcode.PONG, frame.data).serialize(mask=True))
        peer.send(text("still here"))
        while (frame := peer.frame()).opcode is Opcode.PING:
            peer.send(Frame(Opcode.PONG, frame.data).serialize(mask=True))
        assert bytes(frame.data) == b"still here"


@pytest.mark.need(16)
def test_a_silent_client_is_dropped(serve: Serve) -> None:
    with serve(*ECHO, ping_interval=0.05, ping_timeout=0.1, close_timeout=0.1) as port, Peer(port) as peer:
        began = time.monotonic()
        peer.open()
        assert peer.frame().opcode is Opcode.PING
        assert peer.close()[0] == 1011
        peer.end()
        assert 0.15 <= time.monotonic() - began < SOON


# --- closing -----------------------------------------------------------------------------------------------------


@pytest.mark.need(1)
def test_messages_before_a_close_are_answered_before_it(serve: Serve) -> None:
    with serve(*ECHO) as port, Peer(port) as peer:
        peer.open_with(head() + b"".join(text(str(number)) for number in range(20)) + close(4321, "done"))
        assert [peer.text() for _ in range(20)] == [str(number) for number in range(20)]
        assert peer.close() == (4321, "done")
        peer.end()


@pytest.mark.need(1, 2)
@pytest.mark.parametrize("answers", [True, False], ids=["answered", "ignored"])
def test_an_application_close_waits_for_the_peers_at_most_close_timeout(serve: Serve, answers: bool) -> None:
    with serve(*ways(Ender), close_timeout=0.3 if not answers else LIMIT) as port, Peer(port) as peer:
        peer.open_with(head() + text("go on"))
        began = time.monotonic()
        assert peer.close() == (4001, "enough")
        if answers:
            peer.send(close(4001))
        peer.end()
        took = time.monotonic() - began
        assert took < SOON
        assert answers or took >= 0.25


# --- backpressure ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def grows_less_than(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        now, _ = tracemalloc.get_traced_memory()
        assert now - before < size
    finally:
        tracemalloc.stop()


@pytest.mark.need(4)
def test_a_client_that_does_not_read_costs_no_memory_and_gets_everything_later(serve: Serve) -> None:
    flood = Flood()
    with serve(*ways(flood)) as port, Peer(port, receive_buffer=65536) as slow:
        with grows_less_than(16 * MIB):
            slow.open_with(head() + text("go on"))
            flood.sent.get()
            # Another client is served meanwhile, by the same process.
            with Peer(port) as other:
                other.open_with(head() + text("go on"))
                assert bytes(other.frame().data) == flood.data
        for _ in range(flood.count):
            frame = slow.frame()
            assert frame.opcode is Opcode.BINARY
            assert len(frame.data) == MIB
        assert slow.close() == (4000, "all of it")


@pytest.mark.slow
@pytest.mark.need(5)
def test_an_application_that_does_not_receive_pauses_its_client(serve: Serve) -> None:
    late = Late()
    with serve(*ways(late)) as port, Peer(port) as peer:
        peer.open()
        data = binary(bytes(65536))
        sent = 0
        with grows_less_than(16 * MIB):
            peer.sock.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while sent < 64 * MIB:
                    sent += peer.sock.send(data[sent % len(data) :])
        assert sent < 64 * MIB, "everything was taken from it"
        late.may.put(None)
        peer.sock.settimeout(LIMIT)
        peer.send(data[sent % len(data) :] + close())
        assert peer.close() == (1000, "")
        peer.sock.close()  # a blocked handler now sees the end of the stream
        assert late.counted.get() == sent // len(data) + 1
