"""What goes wrong around a connection on our uvicorn class, and that nothing is left of it.

Handlers are cancelled wherever they can wait, callbacks raise, clients vanish at every step. After each of these no
task, no file descriptor and no object may be left, and nobody may be blamed who did nothing wrong. The last test
counts the memory of a server of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, ClassVar, TypeAlias
from weakref import WeakSet

import pytest
from websockets.frames import Opcode

from tests.support.asgi import ASGIApp, Receive, Scope, Send, accept, echo
from tests.support.clients import descriptors
from tests.support.peers import Peer, binary, close, head, ping, text
from tests.support.threaded_servers import Run, Uvicorn, errors_in
from tests.support.waiting import Inbox, eventually
from watershed_mw import AsyncConnection, ConnectionClosed, WatershedASGI, WatershedConnection, live_connections
from watershed_mw.options import ConnectionOptions
from watershed_mw.uvicorn import WatershedProtocol

KIB = 2**10
MIB = 2**20
Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
_made: WeakSet[object] = WeakSet()


def _note(probe: str, connection: WatershedConnection, data: bytes) -> None:
    if probe == "start":
        _made.add(connection)


class Tracked(WatershedProtocol):
    """`WatershedProtocol`, which records its instances and their connections for as long as they live."""

    options: ClassVar[ConnectionOptions] = {"trace": _note, "close_timeout": 0.5}

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        _made.add(self)


class Server:
    """A uvicorn with `WatershedProtocol`, and a view of what it holds."""

    def __init__(self, uvicorn: Uvicorn) -> None:
        self._uvicorn = uvicorn
        self.port = uvicorn.port
        self.loop: asyncio.AbstractEventLoop | None = None
        with self.leaving_nothing():  # the first request shows the loop, and fills what is only ever filled once
            pass

    def run(self, app: ASGIApp) -> Run:
        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            self.loop = asyncio.get_running_loop()
            await app(scope, receive, send)

        return self._uvicorn.run(noting)

    def soon(self, call: Callable[[], Any]) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(call)

    def turn(self) -> None:
        """Run everything that the event loop can run now, twice."""
        for _ in range(2):
            done = Inbox[None]()
            self.soon(lambda done=done: done.put(None))  # type: ignore[misc]
            done.get()

    def tasks(self) -> int:
        count = Inbox[int]()
        self.soon(lambda: count.put(len(asyncio.all_tasks())))
        return count.get()

    @contextlib.contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """After the block the server holds what it held before: tasks, file descriptors, objects."""
        run = self.run(echo)
        with Peer(self.port) as peer:
            peer.open()
            peer.send(close())
            peer.close()
            peer.end()
        run.outcome()
        eventually(self._idle)
        tasks, files = self.tasks(), descriptors()
        yield
        eventually(self._idle, f"{[*live_connections()]}, {[*_made]}")
        eventually(lambda: self.tasks() <= tasks, f"{tasks} tasks")
        eventually(lambda: descriptors() <= files, f"{files} file descriptors")

    @staticmethod
    def _idle() -> bool:
        if live_connections():
            return False
        if len(_made):
            gc.collect()
        return not len(_made)


@pytest.fixture(scope="module", params=["asyncio-h11", "uvloop-httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    loop, http = request.param.split("-")
    gc.collect()
    gc.freeze()  # what is there already need not be searched for garbage after each test
    try:
        with Uvicorn(loop=loop, http=http, ws=Tracked) as uvicorn:
            yield Server(uvicorn)
    finally:
        gc.unfreeze()


@pytest.fixture
def nothing_left(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The check around a complete test."""
    with server.leaving_nothing():
        yield
        caplog.get_records("call").clear()  # a traceback keeps its objects alive


def accepting(handler: Handler, **options: Any) -> ASGIApp:
    """An application that accepts and calls `handler` with the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(await scope["watershed"].through(receive, send).accept())

    return WatershedASGI(app, **options)


class Slow:
    """A middleware that waits before it passes on one type of message."""

    def __init__(self, app: ASGIApp, kind: str) -> None:
        self.app = app
        self.kind = kind
        self.waiting = Inbox["asyncio.Future[None]"]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def slowly(message: MutableMapping[str, Any]) -> None:
            if message["type"] == self.kind:
                future = asyncio.get_running_loop().create_future()
                self.waiting.put(future)
                await future
            await send(message)

        await self.app(scope, receive, slowly)


# --- a handler is cancelled ----------------------------------------------------------------------------------


async def flood(conn: AsyncConnection) -> None:
    while True:
        await conn.send(bytes(64 * KIB))


async def end_behind_a_flood(conn: AsyncConnection) -> None:
    for _ in range(64):
        conn.send(bytes(64 * KIB))
    await conn.end()


NATIVE: dict[str, Handler] = {
    "receive": lambda conn: conn.receive(),
    "receive with a limit": lambda conn: conn.receive(timeout=3600),
    "iteration": anext,
    "send": flood,
    "run": lambda conn: conn.run(),
    "end": end_behind_a_flood,
    "wait_closed": lambda conn: conn.wait_closed(),
    "something else": lambda conn: asyncio.sleep(3600),
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("stage", NATIVE)
def test_cancelling_a_handler_at_any_await_ends_its_connection(
    server: Server, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    tasks = Inbox["asyncio.Task[Any]"]()

    async def handler(conn: AsyncConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.put(task)
        await NATIVE[stage](conn)

    run = server.run(accepting(handler))
    with Peer(server.port, receive_buffer=4096) as peer:
        peer.open()
        task = tasks.get()
        server.turn()
        server.soon(task.cancel)
        assert isinstance(run.outcome(), asyncio.CancelledError)
        while (frame := peer.frame()).opcode is Opcode.BINARY:
            assert bytes(frame.data) == bytes(64 * KIB)
        assert frame.opcode is Opcode.CLOSE
        code = int.from_bytes(bytes(frame.data)[:2], "big")
        assert code == (1000 if stage == "end" else 1012)
        peer.send(close(code))
        peer.end()
    assert errors_in(caplog.records) == []


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("event", ["text", "end"])
def test_a_callback_that_never_returns_soon_ends_with_its_application(
    server: Server, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    told = Inbox[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn = await scope["watershed"].through(receive, send).accept(close_timeout=0.2)
        begun = asyncio.Event()

        async def hang(*args: object) -> None:
            begun.set()
            await asyncio.Event().wait()

        conn.on("end", lambda code, reason: told.put(code))
        conn.on(event, hang)
        conn.on("text", lambda message: None)
        if event == "text":
            await begun.wait()

    run = server.run(WatershedASGI(app))
    with Peer(server.port) as peer:
        peer.open()
        peer.send(text("hang"))
        assert peer.close()[0] == 1000
        peer.send(close(1000))
        peer.end()
    assert run.outcome() is None
    assert told.get() == 1000
    eventually(lambda: "has not returned 0.2 seconds (close_timeout) after its application: cancelled" in caplog.text)


@pytest.mark.parametrize("app", [accepting(lambda conn: conn.receive()), echo], ids=["native", "plain"])
@pytest.mark.parametrize("end", ["Close", "reset"])
def test_an_ended_connection_is_freed_without_gc(server: Server, app: ASGIApp, end: str) -> None:
    eventually(server._idle)
    gc.disable()
    try:
        run = server.run(app)
        with Peer(server.port) as peer:
            peer.open(Sec_WebSocket_Extensions="permessage-deflate")
            if end == "Close":
                peer.send(close(1000))
                peer.close()
                peer.end()
            else:
                peer.vanish()
        run.outcome()
        eventually(lambda: not len(_made), f"{[*_made]}")
    finally:
        gc.enable()


async def plain_flood(receive: Receive, send: Send) -> None:
    while True:
        await send({"type": "websocket.send", "bytes": bytes(64 * KIB)})


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("stage", ["receive", "send"])
def test_cancelling_a_plain_asgi_application_ends_its_connection(
    server: Server, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    tasks = Inbox["asyncio.Task[Any]"]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        task = asyncio.current_task()
        assert task is not None
        tasks.put(task)
        await (receive() if stage == "receive" else plain_flood(receive, send))

    run = server.run(app)
    with Peer(server.port, receive_buffer=4096) as peer:
        peer.open()
        task = tasks.get()
        server.turn()
        server.soon(task.cancel)
        assert isinstance(run.outcome(), asyncio.CancelledError)
        while (frame := peer.frame()).opcode is Opcode.BINARY:
            pass
        assert bytes(frame.data)[:2] == (1012).to_bytes(2, "big")
        peer.send(close(1012))
        peer.end()
    assert errors_in(caplog.records) == []


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("stage", ["before the accept", "in a middleware that holds the accept", "receive", "denial"])
def test_cancelling_a_handler_before_its_answer_is_complete_ends_the_request(
    server: Server, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    tasks = Inbox["asyncio.Task[Any]"]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.put(task)
        if stage == "before the accept":
            await asyncio.sleep(3600)
        elif stage == "receive":
            await receive()
            await receive()
        elif stage == "denial":
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            while True:
                body = {"type": "websocket.http.response.body", "body": bytes(64 * KIB), "more_body": True}
                await send(body)
        else:
            await scope["watershed"].through(receive, send).accept()

    slow = Slow(app, "websocket.accept" if stage.startswith("in a") else "nothing")
    run = server.run(WatershedASGI(slow))
    with Peer(server.port, receive_buffer=4096) as peer:
        peer.send(head())
        task = tasks.get()
        server.turn()
        server.soon(task.cancel)
        assert isinstance(run.outcome(), asyncio.CancelledError)
        answer = peer.refusal()
        assert answer.status == (401 if stage == "denial" else 500)
    assert errors_in(caplog.records) == []


@pytest.mark.usefixtures("nothing_left")
def test_a_cancelled_wait_does_not_affect_the_connection(server: Server) -> None:
    async def handler(conn: AsyncConnection) -> None:
        for wait in (conn.receive, conn.wait_closed, conn.run):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await wait()
            if wait == conn.wait_closed:
                await conn.send("now")
                await conn.send(await conn.receive())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await flood(conn)
        await conn.end("done", code=4000)

    run = server.run(accepting(handler))
    with Peer(server.port, receive_buffer=4096) as peer:
        peer.open()
        assert peer.text() == "now"
        peer.send(text("hello"))
        assert peer.text() == "hello"
        while (frame := peer.frame()).opcode is Opcode.BINARY:
            assert len(frame.data) == 64 * KIB
        assert bytes(frame.data)[2:] == b"done"
        peer.send(close(4000))
        peer.end()
    assert run.outcome() is None


# --- something raises ----------------------------------------------------------------------------------------


# The client's action that causes an event, and the code that it then sees.
EVENTS: dict[str, tuple[bytes, int | None]] = {
    "text": (text("x"), 1011),
    "binary": (binary(b"x"), 1011),
    "ping": (ping(b"x"), 1011),
    "pong": (b"\x8a\x80\0\0\0\0", 1011),
    "end": (close(4000), 4000),
    "error": (b"\xc1\x80\0\0\0\0", 1002),
    "connection_reset": (b"", None),
    "drain": (b"", 1011),
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("waits", [True, False], ids=["in run", "and nobody waits"])
@pytest.mark.parametrize("kind", ["function", "coroutine function"])
@pytest.mark.parametrize("event", EVENTS)
def test_an_exception_in_a_callback_ends_only_its_connection_and_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture, event: str, kind: str, waits: bool
) -> None:
    sent, code = EVENTS[event]

    def fail(*_: Any) -> None:
        raise LookupError(event)

    async def fail_later(*_: Any) -> None:
        await asyncio.sleep(0)
        raise LookupError(event)

    async def handler(conn: AsyncConnection) -> None:
        conn.on(event, fail if kind == "function" else fail_later)
        if event == "drain":
            conn.send(bytes(8 * MIB))
        if waits:
            await conn.run()
        else:
            conn.on("text", lambda message: None)  # with a handler, messages are pushed
            await conn.wait_closed()

    run = server.run(accepting(handler))
    with Peer(server.port) as peer:
        peer.open()
        if event == "drain":
            server.turn()
            assert len(peer.frame().data) == 8 * MIB
        elif event == "connection_reset":
            peer.vanish()
        peer.send(sent) if sent else None
        if code is not None:
            frame = peer.frame()
            if event == "ping":
                assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"x")
                frame = peer.frame()
            assert frame.opcode is Opcode.CLOSE
            assert int.from_bytes(bytes(frame.data)[:2], "big") == code
            if event not in ("end", "error"):
                peer.send(close(code))
            peer.end()
    outcome = run.outcome()
    if waits:
        assert isinstance(outcome, LookupError)
        assert str(outcome) == event
        assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]
    else:
        assert outcome is None
        record = eventually(lambda: [one for one in caplog.records if one.name == "watershed_mw"])[0]
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
def test_an_exception_in_a_handler_does_not_affect_other_connections(
    server: Server, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    async def handler(conn: AsyncConnection) -> None:
        async for message in conn:
            if message == "raise":
                raise LookupError("a secret")
            await conn.send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            if event["text"] == "raise":
                raise LookupError("a secret")
            await send({**event, "type": "websocket.send"})

    run = server.run(accepting(handler) if native else app)
    with Peer(server.port) as bystander, Peer(server.port) as peer:
        bystander.open()
        peer.open()
        peer.send(text("before") + text("raise") + text("after"))
        assert peer.text() == "before"
        assert peer.close() == (1011, "")
        peer.send(close(1011))
        peer.end()
        assert isinstance(run.outcome(), LookupError)
        bystander.send(text("still here"))
        assert bystander.text() == "still here"
        bystander.send(close())
        bystander.close()
    assert run.outcome() is None
    assert errors_in(caplog.records) == ["Exception in ASGI application\n"]


# --- the client vanishes -------------------------------------------------------------------------------------


class Stages:
    """Applications that a client can leave at each step, plain or native, and how it gets there."""

    def __init__(self, server: Server, native: bool) -> None:
        self.server = server
        self.native = native
        self.reached = Inbox[None]()
        self.slow = Slow(self._slow_accept, "websocket.accept")

    def app(self, step: str) -> ASGIApp:
        plain: dict[str, ASGIApp] = {
            "before the accept": self._hold,
            "while a middleware holds the accept": self.slow,
            "during a denial": self._deny,
            "while the server waits for the Close": self._close,
            "while a send is blocked": self._flood,
        }
        return WatershedASGI(plain.get(step, self._echo)) if self.native else plain.get(step, echo)

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.reached.put(None)
        assert (await receive())["type"] == "websocket.disconnect"
        if self.native:
            with pytest.raises(ConnectionClosed):
                await scope["watershed"].accept()
        else:
            with pytest.raises(OSError, match="1006"):
                await send({"type": "websocket.accept"})

    async def _slow_accept(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.native:
            await scope["watershed"].through(receive, send).accept()
        else:
            await accept(receive, send)

    async def _deny(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        self.reached.put(None)
        while True:
            await send({"type": "websocket.http.response.body", "body": bytes(64 * KIB), "more_body": True})

    async def _close(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.native:
            await (await scope["watershed"].accept()).end()
        else:
            await accept(receive, send)
            await send({"type": "websocket.close", "code": 1000})
            await receive()

    async def _flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.native:
            conn = await scope["watershed"].accept()
            self.reached.put(None)
            await flood(conn)
        else:
            await accept(receive, send)
            self.reached.put(None)
            await plain_flood(receive, send)

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        conn = await scope["watershed"].accept()
        async for message in conn:
            await conn.send(message)

    def go(self, step: str, peer: Peer) -> None:
        """Bring a client to the step at which it will leave."""
        if step == "in the middle of the head":
            peer.send(head()[:60])
        elif step in ("before the accept", "while a middleware holds the accept", "during a denial"):
            peer.send(head())
            if step.startswith("while"):
                self.held = self.slow.waiting.get()
            else:
                self.reached.get()
            self.server.turn()
        else:
            peer.open()
            if step == "while the server waits for the Close":
                assert peer.close() == (1000, "")
            elif step == "while a send is blocked":
                self.reached.get()
                self.server.turn()
            elif step == "while nothing happens":
                peer.send(text("hello"))
                assert peer.text() == "hello"
            else:
                frame = text("the whole of a message")
                peer.send({"in a frame": frame[:9], "in a frame's head": frame[:1]}.get(step, b"\x01" + frame[1:]))


STEPS = (
    "in the middle of the head",
    "before the accept",
    "while a middleware holds the accept",
    "during a denial",
    "while nothing happens",
    "in a frame's head",
    "in a frame",
    "between the frames of a message",
    "while the server waits for the Close",
    "while a send is blocked",
)


def half_close_and_vanish(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)
    peer.vanish()


LEAVE: dict[str, Callable[[Peer], None]] = {
    "RST": Peer.vanish,
    "FIN": lambda peer: peer.sock.close(),
    "half-close, then RST": half_close_and_vanish,
}


@pytest.mark.need(14)
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("step", STEPS)
def test_a_client_may_vanish_at_any_step(
    server: Server, caplog: pytest.LogCaptureFixture, step: str, how: str, native: bool
) -> None:
    stages = Stages(server, native)
    run = server.run(stages.app(step))
    with Peer(server.port, receive_buffer=4096) as peer:
        stages.go(step, peer)
        LEAVE[how](peer)
    if step == "in the middle of the head":
        return  # no application has begun
    if step == "while a middleware holds the accept":
        eventually(held_is_lost)
        server.soon(lambda: stages.held.set_result(None))
    outcome = run.outcome()
    assert outcome is None or isinstance(outcome, ConnectionClosed)
    assert errors_in(caplog.records) == []


def held_is_lost() -> bool:
    """Whether the server has noticed that the client of the only open request has left."""
    (protocol,) = [one for one in _made if isinstance(one, Tracked)]
    return protocol._transport.is_closing()
