"""What applications of uvicorn's own classes rely on while a connection lives: closes, failures, floods, shutdowns.

Every scenario runs under `WatershedProtocol` and under uvicorn's `websockets-sansio`, on real sockets: the two may
differ only where a test says so, and why. Responses to requests are tested in test_uvicorn_denials.py,
test_accept_values.py and test_targets.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.peers import Peer, binary, close, head, ping, text
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw.uvicorn import WatershedProtocol

CLASSES = [UVICORN_CLASS, "websockets-sansio"]
MIB = 2**20


@pytest.fixture(scope="module", params=CLASSES, ids=["ours", "sansio"])
def server(request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    with Uvicorn(ws=request.param, http="httptools") as server:
        yield server


@pytest.fixture(params=CLASSES, ids=["ours", "sansio"])
def ws(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def is_ours(server: Uvicorn) -> bool:
    return server.server.config.ws == UVICORN_CLASS


class Telling:
    """Accepts, and reports every message that it receives up to the end."""

    def __init__(self) -> None:
        self.events = Inbox[Any]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while True:
            event = await receive()
            self.events.put(event)
            if event["type"] == "websocket.disconnect":
                return


def drained(peer: Peer) -> list[Frame]:
    """Every frame up to the end of the stream, however it ends; a Close is answered."""
    frames: list[Frame] = []
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            frames.append(peer.frame())
            if frames[-1].opcode is Opcode.CLOSE:
                peer.send(close())
    return frames


# --- the client closes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, reason", [(1000, ""), (1001, "away"), (4005, "enough"), (3000, "Grüße")])
def test_the_clients_close_is_a_disconnect(server: Uvicorn, code: int, reason: str) -> None:
    app = Telling()
    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(text("last") + close(code, reason))
        assert app.events.get() == {"type": "websocket.receive", "text": "last"}
        assert app.events.get() == {"type": "websocket.disconnect", "code": code, "reason": reason}
        assert peer.close()[0] == code
        peer.end()


def test_a_close_without_a_code_is_1005(server: Uvicorn) -> None:
    app = Telling()
    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(Frame(Opcode.CLOSE, b"").serialize(mask=True))
        assert app.events.get()["code"] == 1005
        peer.close()
        peer.end()


def test_frames_after_a_close_are_ignored(server: Uvicorn) -> None:
    app = Telling()
    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(close(4000) + text("late") + binary(b"later") + ping(b"!"))
        assert app.events.get()["type"] == "websocket.disconnect"
        assert [frame.opcode for frame in drained(peer)] == [Opcode.CLOSE]
    assert run.outcome() is None
    assert app.events.empty


@pytest.mark.parametrize("leave", [Peer.vanish, lambda peer: peer.sock.close()], ids=["RST", "FIN"])
def test_a_client_that_vanishes_is_a_disconnect_with_1006(server: Uvicorn, leave: Any) -> None:
    """Our 1006 means that no Close arrived (RFC 6455 section 7.1.5); uvicorn's 1005 means a Close without a code."""
    app, errors = Telling(), Gate[BaseException]()

    async def sending_on(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        try:
            await send({"type": "websocket.send", "text": "?"})
        except OSError as error:
            errors.put(error)

    server.run(sending_on)
    with Peer(server.port) as peer:
        peer.open()
        leave(peer)
    assert app.events.get()["code"] == (1006 if is_ours(server) else 1005)
    assert isinstance(errors.get(), OSError)


# --- the application closes --------------------------------------------------------------------------------------


def test_the_application_closes_and_gets_a_disconnect(server: Uvicorn) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
        events.put(await receive())

    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "last"
        assert peer.close() == (4001, "bye")
        peer.send(close(4001, "bye"))
        peer.end()
    assert events.get() == {"type": "websocket.disconnect", "code": 4001, "reason": "bye"}
    assert run.outcome() is None


def test_late_frames_do_not_delay_the_clients_close(server: Uvicorn) -> None:
    """The application is past its close; what the client sent meanwhile must not hold up its Close.

    An application that goes on receiving gets the disconnect, from ours behind the messages that were on their way.
    """
    closed, events = Gate[None](), Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close"})
        closed.put(None)
        while (event := await receive())["type"] == "websocket.receive":
            pass
        events.put(event)

    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        closed.get()
        peer.send(b"".join(text("x" * 1000) for _ in range(500)) + close(1000))
        assert [frame.opcode for frame in drained(peer)] == [Opcode.CLOSE]
    assert events.get()["type"] == "websocket.disconnect"
    assert run.outcome() is None
    assert events.empty


def test_a_client_that_does_not_answer_a_close_is_dropped() -> None:
    """After `close_timeout`, which uvicorn's class fixes at 10 seconds."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close"})

    class Impatient(WatershedProtocol):
        options = {"close_timeout": 0.2}  # noqa: RUF012

    with Uvicorn(app, ws=Impatient) as server, Peer(server.port) as peer:
        peer.open()
        assert peer.close() == (1000, "")
        peer.end()


@pytest.mark.parametrize("kind", ["websocket.send", "websocket.close"])
def test_messages_after_the_applications_close_are_refused(server: Uvicorn, kind: str) -> None:
    """In uvicorn's class they are the application's fault. Ours cannot say so: the client may have closed first.

    A second close of ours does nothing, and a send raises the `OSError` that ASGI has for a connection that is over:
    which of two tasks was first is nothing that an application can know.
    """
    outcome = Gate[BaseException | None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close"})
        try:
            await send({"type": kind, "text": "late"})
        except (OSError, RuntimeError) as error:
            outcome.put(error)
        else:
            outcome.put(None)

    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        assert peer.close() == (1000, "")
        peer.send(close())
        peer.end()
    error = outcome.get()
    if not is_ours(server):
        assert isinstance(error, RuntimeError)
    elif kind == "websocket.send":
        assert isinstance(error, OSError)
    else:
        assert error is None


@pytest.mark.parametrize("kind", ["websocket.accept", "websocket.http.response.start", "unheard.of"])
def test_an_invalid_message_after_the_accept_is_an_error(server: Uvicorn, kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": kind, "status": 200, "headers": []})

    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        drained(peer)
    assert isinstance(run.outcome(), RuntimeError)


# --- the application ends without a close -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, LookupError("a secret")], ids=["returns", "raises"])
def test_a_connection_left_open_by_the_application_is_closed(
    server: Uvicorn, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """Ours closes with 1000 or 1011; uvicorn's class drops the stream, and its client sees a broken connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last"})
        if error is not None:
            raise error

    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        assert peer.text() == "last"
        frames = drained(peer)
    code = 1000 if error is None else 1011
    assert [bytes(frame.data) for frame in frames] == ([code.to_bytes(2, "big")] if is_ours(server) else [])
    expected = [] if error is None else ["Exception in ASGI application\n"]
    assert errors_in(caplog.records) == expected


# --- input --------------------------------------------------------------------------------------------------------


def test_fragments_are_one_message_with_control_frames_in_between(server: Uvicorn) -> None:
    app = Telling()
    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        for opcode, parts in ((Opcode.TEXT, ["Gr", "ü", "ße"]), (Opcode.BINARY, ["\0", "", "\1"])):
            for number, part in enumerate(parts):
                kind = opcode if number == 0 else Opcode.CONT
                frame = Frame(kind, part.encode(), fin=number == len(parts) - 1)
                peer.send(frame.serialize(mask=True) + ping(b"between"))
        assert app.events.get() == {"type": "websocket.receive", "text": "Grüße"}
        assert app.events.get() == {"type": "websocket.receive", "bytes": b"\0\1"}
        pongs = [peer.frame() for _ in range(6)]
        assert {(frame.opcode, bytes(frame.data)) for frame in pongs} == {(Opcode.PONG, b"between")}


def test_a_large_message_passes_in_both_directions(server: Uvicorn) -> None:
    server.run(echo)
    data = bytes(range(256)) * (4 * MIB // 256)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(binary(data) + text("x" * MIB) + binary(b"") + text(""))
        assert bytes(peer.frame().data) == data
        assert peer.text() == "x" * MIB
        assert bytes(peer.frame().data) == b""
        assert peer.text() == ""
        peer.send(close())
        assert peer.close()[0] == 1000


@pytest.mark.parametrize(
    "frame, code",
    [
        (Frame(Opcode.TEXT, b"\xff").serialize(mask=True), 1007),
        (Frame(Opcode.TEXT, b"unmasked").serialize(mask=False), 1002),
        (b"\x91\x81\0\0\0\0x", 1002),
        (Frame(Opcode.CONT, b"x").serialize(mask=True), 1002),
    ],
    ids=["no UTF-8", "unmasked", "a reserved bit", "nothing to continue"],
)
def test_protocol_violations_close_with_their_code(server: Uvicorn, frame: bytes, code: int) -> None:
    app = Telling()
    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        peer.send(frame)
        assert peer.close()[0] == code
        peer.end()
    assert app.events.get()["code"] == code
    assert run.outcome() is None


def test_a_message_that_is_too_long_closes_with_1009(ws: str) -> None:
    app = Telling()
    with Uvicorn(app, ws=ws, ws_max_size=1000) as server, Peer(server.port) as peer:
        peer.open()
        peer.send(binary(bytes(1000)))
        assert app.events.get()["bytes"] == bytes(1000)
        peer.send(binary(bytes(1001)))
        assert peer.close()[0] == 1009
        assert app.events.get()["code"] == 1009


# --- backpressure ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_application_waits_for_a_client_that_does_not_read(server: Uvicorn) -> None:
    sent = Inbox[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for number in range(64):
            await send({"type": "websocket.send", "bytes": bytes([number]) * MIB})
            sent.put(number)
        await send({"type": "websocket.close"})

    run = server.run(app)
    with Peer(server.port, receive_buffer=16384) as peer:
        peer.open()
        other = Peer(server.port)
        with other:  # until the server has had time to send all of it, if it did
            server.run(echo)
            other.open()
            for _ in range(200):
                other.send(text("hi"))
                assert other.text() == "hi"
        assert run.empty, "64 MiB were taken for a client that reads nothing"
        for number in range(64):
            assert bytes(peer.frame().data) == bytes([number]) * MIB
            assert sent.get() == number
        assert peer.close() == (1000, "")
        peer.send(close())
    assert run.outcome() is None


def test_a_send_that_waits_ends_when_the_client_vanishes(server: Uvicorn) -> None:
    begun = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for number in range(10_000):
            await send({"type": "websocket.send", "bytes": bytes(MIB)})
            await asyncio.sleep(0)  # a send of uvicorn's class that does not wait lets nothing else run
            if number == 0:
                begun.put(None)

    run = server.run(app)
    with Peer(server.port, receive_buffer=16384) as peer:
        peer.open()
        begun.get()
        peer.vanish()
    assert isinstance(run.outcome(), OSError)


@pytest.mark.slow
def test_a_client_waits_for_an_application_that_does_not_receive(server: Uvicorn) -> None:
    go_on, events = Gate[None](), Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await go_on.wait()
        while (event := await receive())["type"] == "websocket.receive":
            events.put(event["bytes"][:4])
        events.put(event["code"])

    server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        peer.sock.settimeout(0.5)
        taken = 0
        frames = [binary(number.to_bytes(4, "big") + bytes(MIB)) for number in range(64)]
        pending = b"".join([*frames, close()])
        with contextlib.suppress(TimeoutError):
            while taken < len(pending):
                taken += peer.sock.send(pending[taken : taken + MIB])
        assert taken < len(pending), "64 MiB were read for an application that receives nothing"
        go_on.put(None)
        peer.sock.settimeout(LIMIT)
        peer.send(pending[taken:])
        assert [events.get() for _ in range(64)] == [number.to_bytes(4, "big") for number in range(64)]
        assert events.get() == 1000
        assert peer.close()[0] == 1000


# --- keepalive -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_does_not_answer_pings_is_dropped(ws: str) -> None:
    app = Telling()
    with Uvicorn(app, ws=ws, ws_ping_interval=0.1, ws_ping_timeout=0.2) as server, Peer(server.port) as peer:
        peer.open()
        assert peer.frame().opcode is Opcode.PING
        *_, last = drained(peer)
        assert last.opcode is Opcode.CLOSE
        assert bytes(last.data)[:2] == (1011).to_bytes(2, "big")
        assert app.events.get()["type"] == "websocket.disconnect"


def test_a_client_that_answers_pings_stays_connected(ws: str) -> None:
    with Uvicorn(echo, ws=ws, ws_ping_interval=0.05, ws_ping_timeout=5) as server, Peer(server.port) as peer:
        peer.open()
        for _ in range(4):
            frame = peer.frame()
            assert frame.opcode is Opcode.PING
            peer.send(Frame(Opcode.PONG, frame.data).serialize(mask=True))
        peer.send(text("still here"))
        while (frame := peer.frame()).opcode is Opcode.PING:
            peer.send(Frame(Opcode.PONG, frame.data).serialize(mask=True))
        assert bytes(frame.data) == b"still here"


def test_keepalive_can_be_switched_off(ws: str) -> None:
    """None switches it off: only the echo may arrive, however many of the intervals above have passed."""
    with Uvicorn(echo, ws=ws, ws_ping_interval=None, ws_ping_timeout=None) as server, Peer(server.port) as peer:
        peer.open()
        for number in range(50):
            peer.send(text(str(number)))
            assert peer.text() == str(number)


# --- shutdown --------------------------------------------------------------------------------------------------------


def test_a_shutdown_closes_open_connections(ws: str) -> None:
    apps = [Telling() for _ in range(3)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[int(scope["path"][1:])](scope, receive, send)

    with Uvicorn(app, ws=ws) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in apps]
        for number, peer in enumerate(peers):
            peer.open(f"/{number}")
        server.begin_stop()
        for peer in peers:
            assert peer.close()[0] == 1012
            peer.send(close(1012))
            peer.end()
            peer.sock.close()  # as clients do: our class waits for it, so that nothing in transit is lost
        server.wait_stopped()
    for telling in apps:
        assert telling.events.get()["code"] == 1012


def test_a_shutdown_before_the_answer_is_a_503(ws: str) -> None:
    """Ours responds with 503, which clients and proxies take as an invitation to retry; uvicorn's class with 500."""
    asked = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asked.put(None)
        assert (await receive())["type"] == "websocket.disconnect"

    with Uvicorn(app, ws=ws) as server, Peer(server.port) as peer:
        peer.send(head())
        asked.get()
        server.begin_stop()
        assert peer.refusal().status == (503 if ws == UVICORN_CLASS else 500)


def test_other_tasks_of_an_application_may_send(server: Uvicorn) -> None:
    """One task receives and another sends, as chat applications do; the sender is cancelled at the end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def tick() -> None:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        while (await receive())["type"] == "websocket.receive":
            pass
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await ticking

    run = server.run(app)
    with Peer(server.port) as peer:
        peer.open()
        assert [peer.text() for _ in range(3)] == ["tick"] * 3
        peer.send(text("thanks") + close())
        eventually(lambda: not run.empty)
    assert run.outcome() is None
