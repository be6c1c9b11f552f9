"""uvicorn's own settings under `WatershedProtocol`, and the effect of its shutdown on open connections."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.support import LIMIT, SOON
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import Peer, binary, close, dial, head, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import WatershedASGI
from watershed_mw.options import ConnectionOptions
from watershed_mw.uvicorn import WatershedProtocol, options_of

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def reporting(events: Inbox[Any]) -> ASGIApp:
    """An application that accepts, says so, and reports the end that it sees."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "open"})
        events.put(await receive())

    return app


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.need(6)
@pytest.mark.advisory("aiohttp#11898", "CVE-2018-1000518")
def test_ws_max_size_applies() -> None:
    with Uvicorn(echo, ws_max_size=1000) as server:
        with dial(server.port) as client:
            client.send(b"x" * 1000)
            assert client.recv(LIMIT) == b"x" * 1000
            client.send(b"x" * 1001)
            with pytest.raises(ConnectionClosed):
                client.recv(LIMIT)
            assert client.close_code == 1009
        # A bomb is stopped during decompression: 1 MiB of zeros is about 1 KiB on the wire.
        with dial(server.port, compression="deflate") as client:
            client.send(bytes(2**20))
            with pytest.raises(ConnectionClosed):
                client.recv(LIMIT)
            assert client.close_code == 1009


@pytest.mark.need(6)
def test_the_default_max_size_is_that_of_uvicorn() -> None:
    with Uvicorn(echo) as server, Peer(server.port) as peer:
        peer.open()
        size = 16 * 2**20
        peer.send(b"\x82\xff" + (size + 1).to_bytes(8, "big") + bytes(4))
        assert peer.close()[0] == 1009


@pytest.mark.need(16)
@LOOPS
def test_ws_ping_interval_applies(loop: str) -> None:
    events = Inbox[Any]()
    # The client is not dropped, however long this thread is kept from answering.
    with Uvicorn(reporting(events), loop=loop, ws_ping_interval=0.05, ws_ping_timeout=2 * LIMIT) as server:
        with Peer(server.port) as peer:
            peer.open()
            assert peer.text() == "open"
            for _ in range(3):
                frame = peer.frame()
                assert frame.opcode is Opcode.PING
                payload = bytes(frame.data)
                peer.send(bytes([0x8A, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
            peer.send(close())
            while (frame := peer.frame()).opcode is Opcode.PING:
                pass
            assert frame.opcode is Opcode.CLOSE
        assert events.get()["code"] == 1000


@pytest.mark.need(16)
@LOOPS
def test_ws_ping_timeout_applies(loop: str) -> None:
    events = Inbox[Any]()
    with Uvicorn(reporting(events), loop=loop, ws_ping_interval=0.05, ws_ping_timeout=0.1) as server:
        with Peer(server.port) as silent:
            silent.open()
            assert silent.text() == "open"
            while (frame := silent.frame()).opcode is Opcode.PING:
                pass
            assert frame.opcode is Opcode.CLOSE
            assert bytes(frame.data)[:2] == (1011).to_bytes(2, "big")
        assert events.get()["code"] == 1011


@pytest.mark.need(16)
@pytest.mark.parametrize("value", [None, 0])
def test_keepalive_can_be_switched_off(value: Any) -> None:
    with Uvicorn(echo, ws_ping_interval=value, ws_ping_timeout=value) as server, Peer(server.port) as peer:
        peer.open()
        options = options_of(server.server.config)
        assert (options["ping_interval"], options["ping_timeout"]) == (None, None)


@pytest.mark.need(18)
@pytest.mark.parametrize("enabled", [True, False])
def test_ws_per_message_deflate_applies(enabled: bool) -> None:
    with Uvicorn(echo, ws_per_message_deflate=enabled) as server:
        with dial(server.port, compression="deflate") as client:
            assert bool(client.protocol.extensions) is enabled
            client.send("compress me " * 1000)
            assert client.recv(LIMIT) == "compress me " * 1000
        with dial(server.port, compression=None) as client:
            client.send("as it is")
            assert client.recv(LIMIT) == "as it is"


@pytest.mark.need(5)
def test_ws_max_queue_bounds_what_is_read_ahead() -> None:
    gate = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await gate.wait()
        await echo_rest(receive, send)

    async def echo_rest(receive: Receive, send: Send) -> None:
        while (event := await receive())["type"] == "websocket.receive":
            await send({**event, "type": "websocket.send"})

    with Uvicorn(app, ws_max_queue=1) as server, Peer(server.port) as peer:
        peer.open()
        messages = [str(number) for number in range(50)]
        for message in messages:
            peer.send(text(message))
        gate.put(None)
        assert [peer.text() for _ in messages] == messages


def test_root_path_applies() -> None:
    scopes = Inbox[Scope]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.put(scope)
        await echo(scope, receive, send)

    with Uvicorn(app, root_path="/app") as server, dial(server.port, "/chat"):
        scope = scopes.get()
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/app", "/app/chat", b"/app/chat")


def test_uvicorns_default_headers_are_in_the_101() -> None:
    with Uvicorn(echo, headers=[("X-Server", "mine")], server_header=False) as server, Peer(server.port) as peer:
        answer = peer.open()
        assert answer["x-server"] == "mine"
        assert answer.all("server") == []
        assert len(answer.all("date")) == 1


# --- shutdown ----------------------------------------------------------------------------------------------


@pytest.mark.need(2, 3)
@LOOPS
def test_shutdown_ends_open_connections_with_1012(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    events = Inbox[Any]()
    with Uvicorn(reporting(events), loop=loop) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in range(5)]
        for peer in peers:
            peer.open()
            assert peer.text() == "open"
        server.begin_stop()
        for peer in peers:
            assert peer.close()[0] == 1012
            peer.send(close(1012))
            peer.end()
            peer.sock.close()
            assert events.get() == {"type": "websocket.disconnect", "code": 1012, "reason": ""}
        server.wait_stopped(SOON)
    assert errors_in(caplog.records) == []


@pytest.mark.need(2)
@LOOPS
def test_a_well_behaved_client_does_not_delay_the_shutdown(loop: str) -> None:
    with Uvicorn(echo, loop=loop) as server, dial(server.port) as client:
        client.send("open")
        assert client.recv(LIMIT) == "open"
        server.begin_stop()
        with pytest.raises(ConnectionClosed):
            client.recv(LIMIT)
        assert client.close_code == 1012
        server.wait_stopped(SOON)


@pytest.mark.slow
@pytest.mark.need(2, 3)
@LOOPS
@pytest.mark.parametrize("reads", [True, False], ids=["silent", "does not read"])
def test_an_unresponsive_client_delays_the_shutdown_by_at_most_close_timeout(loop: str, reads: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept()
        connection.send("open")
        if not reads:
            for _ in range(500):
                connection.send(bytes(65536))
        await connection.run()

    wrapped = WatershedASGI(app, close_timeout=0.3)
    with Uvicorn(wrapped, loop=loop) as server, Peer(server.port, receive_buffer=4096) as peer:
        peer.open()
        assert peer.text() == "open"
        server.begin_stop()
        server.wait_stopped(SOON)


@pytest.mark.need(2)
@LOOPS
def test_an_undecided_upgrade_gets_a_503_at_shutdown(loop: str) -> None:
    started = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        started.put(None)
        assert (await receive())["type"] == "websocket.disconnect"

    with Uvicorn(loop=loop) as server, Peer(server.port) as peer:
        run = server.run(app)
        peer.send(head())
        started.get()
        server.begin_stop()
        assert peer.refusal().status == 503
        assert run.outcome() is None
        server.wait_stopped(SOON)


@pytest.mark.need(2)
@LOOPS
def test_an_unread_denial_does_not_block_the_shutdown(loop: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": bytes(32 * 2**20)})

    with Uvicorn(loop=loop, timeout_graceful_shutdown=1) as server, Peer(server.port, receive_buffer=4096) as peer:
        run = server.run(app)
        peer.send(head())
        assert peer.sock.recv(12) == b"HTTP/1.1 403"
        assert run.outcome() is None
        server.begin_stop()
        server.wait_stopped(SOON)


@pytest.mark.slow
@pytest.mark.need(2)
def test_an_application_that_does_not_end_is_cancelled_after_the_grace_period() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "open"})
        await asyncio.Event().wait()

    with Uvicorn(timeout_graceful_shutdown=1) as server, Peer(server.port) as peer:
        run = server.run(app)
        peer.open()
        assert peer.text() == "open"
        server.begin_stop()
        assert peer.close()[0] == 1012
        peer.send(close(1012))
        server.wait_stopped(SOON)
        assert isinstance(run.outcome(), asyncio.CancelledError)


def test_many_connections_leave_nothing_behind() -> None:
    """Open, use and end 200 connections in every way: afterwards uvicorn knows of no connection and no task."""
    gone = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == "/refused":
                return
            await echo(scope, receive, send)
            if scope["path"] == "/raises":
                raise LookupError
        finally:
            gone.put(scope["path"])

    with Uvicorn(app) as server:
        for number in range(200):
            path = ("/echo", "/refused", "/raises", "/vanishes")[number % 4]
            with Peer(server.port) as peer:
                peer.send(head(path))
                if peer.answer().status != 101:
                    continue
                peer.send(binary(b"x") + text("y"))
                assert (bytes(peer.frame().data), peer.text()) == (b"x", "y")
                if path == "/vanishes":
                    peer.vanish()
                else:
                    peer.send(close())
                    peer.rest()
        for _ in range(200):
            gone.get()
        eventually(lambda: not server.server.server_state.connections, "the end of every connection")
        eventually(lambda: not server.server.server_state.tasks, "the end of every task")


# --- what uvicorn has no setting for -----------------------------------------------------------------------


class Hurried(WatershedProtocol):
    """A class that a user writes to set options that uvicorn has no setting for."""

    options: ClassVar[ConnectionOptions] = {"close_timeout": 0.3, "max_message_size": 1000}


@pytest.mark.slow
@LOOPS
@pytest.mark.need(2)
@pytest.mark.parametrize("stage", ["deciding", "open", "denying"])
def test_an_application_that_never_receives_does_not_delay_the_shutdown(
    loop: str, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if stage == "open":
            await send({"type": "websocket.accept"})
        elif stage == "denying":
            await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        started.put(None)
        await asyncio.Event().wait()

    started = Gate[None]()
    with Uvicorn(loop=loop, ws=Hurried) as server, Peer(server.port) as peer:
        run = server.run(app)
        peer.send(head())
        started.get()
        server.begin_stop()
        server.wait_stopped(SOON)  # uvicorn itself would wait forever
        assert isinstance(run.outcome(), asyncio.CancelledError)
    assert errors_in(caplog.records) == []
    assert "has not returned 0.3 seconds after the shutdown began: cancelled" in caplog.text


def test_options_of_a_subclass_override_uvicorns_settings() -> None:
    with Uvicorn(echo, ws=Hurried, ws_max_size=5000) as server, Peer(server.port) as peer:
        peer.open()
        peer.send(binary(bytes(1001)))
        assert peer.close()[0] == 1009


def test_options_of_the_middleware_override_both() -> None:
    async def native(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept(max_message_size=int(scope["query_string"] or 100))
        await connection.run()

    with Uvicorn(WatershedASGI(native, max_message_size=50), ws=Hurried) as server:
        for path, most in (("/", 100), ("/?200", 200)):
            with Peer(server.port) as peer:
                peer.open(path)
                peer.send(binary(bytes(most)) + binary(bytes(most + 1)))
                code, reason = peer.close()
                assert (code, f"at most {most} bytes" in reason) == (1009, True)


@pytest.mark.parametrize("name", ["origins", "max_connections", "colour"])
def test_an_option_that_does_not_belong_to_the_class_is_a_clear_error(name: str) -> None:
    error = f"expected {{}}.options among close_timeout, .*; got {name}: origins, "
    with pytest.raises(TypeError, match=error.format("Wrong")):
        type("Wrong", (WatershedProtocol,), {"options": {name: 1}})
    wrong = type("SetLate", (WatershedProtocol,), {})
    wrong.options = {name: 1}  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=error.format("SetLate")):
        wrong(uvicorn.Config(echo), uvicorn.server.ServerState(), {})


@pytest.mark.need(27)
def test_limit_concurrency_counts_open_connections(caplog: pytest.LogCaptureFixture) -> None:
    """Uvicorn counts the request itself and refuses at the limit: with 3, two may be open."""
    with Uvicorn(echo, limit_concurrency=3) as server, Peer(server.port) as first, Peer(server.port) as second:
        first.open()
        second.open()
        with Peer(server.port) as third:
            third.send(head())
            answer = third.refusal()
            assert (answer.status, answer["retry-after"]) == (503, "1")
            assert b"--limit-concurrency" in answer.body
        first.send(text("still served"))
        assert first.text() == "still served"
        second.send(close())
        second.rest()
        second.sock.close()  # the server waits for that, so that nothing it sent is lost to a reset
        eventually(lambda: len(server.server.server_state.connections) < 2)
        with Peer(server.port) as third:
            third.open()
    assert errors_in(caplog.records) == []


def test_contextvars_are_reset_if_uvicorn_is_configured_to() -> None:
    config = uvicorn.Config(echo)
    if not hasattr(config, "reset_contextvars"):
        return  # an older uvicorn has no such setting
    variable = contextvars.ContextVar("variable", default="unset")
    seen = Inbox[str]()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        variable.set("by the lifespan")
        yield

    async def endpoint(websocket: WebSocket) -> None:
        seen.put(variable.get())
        await websocket.accept()

    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan)
    with Uvicorn(app, lifespan="on", reset_contextvars=True) as server, Peer(server.port) as peer:
        peer.open()
    assert seen.get() == "unset"
