"""The uvicorn class over TLS: the loop's TLS transport in place of a plain one.

The peers of these tests require close_notify: a stream that just breaks off could have been cut by anyone (RFC 8446
section 6.1).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.support import LIMIT, SOON
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.peers import Peer, close, head, ping, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import WatershedASGI
from watershed_mw.connection.adopt import DetachedStreams

MIB = 2**20


def reporting(events: Inbox[Any]) -> Callable[[Scope, Receive, Send], Any]:
    """An application that accepts, and reports the end that it sees."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        events.put(await receive())

    return app


def dial_tls(port: int, tls: ssl.SSLContext, **options: Any) -> connect:
    """A well-behaved client (the `websockets` package), in one thread."""
    return connect(f"wss://127.0.0.1:{port}/", ssl=tls, proxy=None, max_size=2 * MIB, ping_interval=None, **options)


def test_an_accepted_connection_echoes(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> tuple[int | None, str | None]:
        async with asyncio.timeout(LIMIT), dial_tls(tls_uvicorns.port, client_tls, compression="deflate") as client:
            for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"y" * MIB, "compress me " * 10_000):
                await client.send(message)
                assert await client.recv() == message
            await client.close(3001, "enough")
            return client.close_code, client.close_reason

    run = tls_uvicorns.run(echo)
    assert asyncio.run(talk()) == (3001, "enough")
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_the_scheme_is_wss(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    scopes = Inbox[Scope]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.put(scope)
        await accept(receive, send)

    tls_uvicorns.run(app)
    with Peer(tls_uvicorns.port, client_tls) as peer:
        peer.open()
        scope = scopes.get()
        assert scope["scheme"] == "wss"
        assert (tuple(scope["client"]), tuple(scope["server"])) == (peer.sock.getsockname(), peer.sock.getpeername())


def test_frames_before_the_accept_are_not_lost(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    started, gate = Gate[None](), Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.put(None)
        await gate.wait()
        await echo(scope, receive, send)

    tls_uvicorns.run(app)
    # More than the class buffers: the rest has to wait in the kernel, in TLS records.
    messages = [f"{number} " + "x" * 1000 for number in range(200)]
    with Peer(tls_uvicorns.port, client_tls) as peer:
        peer.send(head())
        started.get()
        for number, message in enumerate(messages):
            peer.send(text(message))
            if number == 150:
                gate.put(None)
        assert peer.answer().status == 101
        assert [peer.text() for _ in messages] == messages


# --- the closing handshake ---------------------------------------------------------------------------------


def test_the_clients_close_is_a_disconnect(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    events = Inbox[Any]()
    run = tls_uvicorns.run(reporting(events))
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.open()
        peer.send(close(4000, "bye"))
        assert peer.close() == (4000, "bye")
        peer.end()
    assert events.get() == {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_the_applications_close_reaches_the_client(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last words"})
        await send({"type": "websocket.close", "code": 4001, "reason": "so long"})
        events.put(await receive())
        events.put(await receive())

    events = Inbox[Any]()
    run = tls_uvicorns.run(app)
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.open()
        assert peer.text() == "last words"
        assert peer.close() == (4001, "so long")
        # Until the peer has answered, the stream stays open in both directions.
        peer.send(text("one more") + close(4001))
        peer.end()
    assert events.get() == {"type": "websocket.receive", "text": "one more"}
    assert events.get() == {"type": "websocket.disconnect", "code": 4001, "reason": ""}
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_the_applications_close_is_orderly_to_a_tls_client(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 4001, "reason": "so long"})

    async def talk() -> tuple[int | None, str | None]:
        async with asyncio.timeout(LIMIT), dial_tls(tls_uvicorns.port, client_tls) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()
            return client.close_code, client.close_reason

    run = tls_uvicorns.run(app)
    assert asyncio.run(talk()) == (4001, "so long")
    assert run.outcome() is None


@pytest.mark.need(1)
def test_megabytes_sent_before_the_close_arrive_before_it(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    data = b"d" * 100_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(40):
            await send({"type": "websocket.send", "bytes": data})
        await send({"type": "websocket.close", "code": 4000, "reason": "all sent"})

    run = tls_uvicorns.run(app)
    with Peer(tls_uvicorns.port, client_tls, clean=True, receive_buffer=4096) as peer:
        peer.open()
        for _ in range(40):
            assert bytes(peer.frame().data) == data
        assert peer.close() == (4000, "all sent")
        peer.send(close(4000))
        peer.end()
    assert run.outcome() is None


def _close_notify(peer: Peer) -> None:
    assert isinstance(peer.sock, ssl.SSLSocket)
    peer.sock.unwrap().close()


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(_close_notify, id="close_notify"),
        pytest.param(lambda peer: peer.sock.shutdown(socket.SHUT_WR), id="FIN"),
        pytest.param(Peer.vanish, id="RST"),
    ],
)
def test_a_client_that_vanishes_is_a_disconnect_with_1006(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture, leave: Callable[[Peer], None]
) -> None:
    events = Inbox[Any]()
    run = tls_uvicorns.run(reporting(events))
    with Peer(tls_uvicorns.port, client_tls) as peer:
        peer.open()
        peer.send(ping(b"open?"))
        assert peer.frame().opcode is Opcode.PONG
        leave(peer)
        assert events.get() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.slow
def test_a_violation_is_answered_with_its_code(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    tls_uvicorns.run(echo)
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.open()
        peer.send(text("before") + b"GET / HTTP/1.1\r\n\r\n")
        assert peer.text() == "before"
        assert peer.close()[0] == 1002
        peer.end()


@pytest.mark.need(2, 3)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_shutdown_ends_open_connections_with_1012(
    certificate: tuple[Path, ssl.SSLContext], loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    events = Inbox[Any]()
    path, client_tls = certificate
    with Uvicorn(reporting(events), loop=loop, ssl_certfile=path) as server:
        with Peer(server.port, client_tls, clean=True) as peer:
            peer.open()
            server.begin_stop()
            assert peer.close()[0] == 1012
            peer.send(close(1012))
            peer.end()
        assert events.get()["code"] == 1012
        server.wait_stopped(SOON)
    assert errors_in(caplog.records) == []


# --- no connection -----------------------------------------------------------------------------------------


def test_a_denial_response_is_sent(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    body = b"x" * 300_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        await send({"type": "websocket.http.response.body", "body": body})

    run = tls_uvicorns.run(app)
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body) == (401, body)
    assert run.outcome() is None


def test_a_bad_handshake_is_refused(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    run = tls_uvicorns.run(echo)
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.send(head(Sec_WebSocket_Version="8"))
        assert peer.refusal().status == 426
    assert run.empty


# --- WatershedASGI -----------------------------------------------------------------------------------------


def test_the_native_connection_works(tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext) -> None:
    stalled, message = Gate[int](), b"m" * 65536

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept()
        async for request in connection:
            await connection.send(f"{request} over TLS")
            break
        sent = 0
        while not stalled.passed:
            sent += 1
            try:
                await asyncio.wait_for(connection.send(message), 0.3)
            except TimeoutError:
                stalled.put(sent)
        await connection.end(code=4000)

    run = tls_uvicorns.run(WatershedASGI(app))
    with Peer(tls_uvicorns.port, client_tls, clean=True, receive_buffer=4096) as slow:
        # The same origin: wss and https belong together.
        slow.open(Origin="https://127.0.0.1")
        slow.send(text("echo"))
        assert slow.text() == "echo over TLS"
        count = stalled.get()
        assert count * len(message) < 8 * MIB
        for _ in range(count):
            assert bytes(slow.frame().data) == message
        assert slow.close()[0] == 4000
        slow.send(close(4000))
        slow.end()
    assert run.outcome() is None


@pytest.mark.parametrize("after", ["returns", "raises"])
def test_a_detached_connection_is_a_reader_and_a_writer(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, after: str
) -> None:
    started, gate, served = Gate[None](), Gate[None](), Inbox[bytes]()

    async def serve(streams: DetachedStreams) -> None:
        reader, writer = streams
        served.put(streams.head)
        served.put(await reader.readexactly(11))
        writer.write(b"raw")
        served.put(await reader.readexactly(7))
        writer.close()
        await writer.wait_closed()

    tasks = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.put(None)
        await gate.wait()
        taken = await scope["watershed"].accept(detached=True, headers=[("X-Detached", "1")])
        tasks.append(asyncio.create_task(serve(taken)))
        if after == "raises":
            raise LookupError

    run = tls_uvicorns.run(WatershedASGI(app))
    with Peer(tls_uvicorns.port, client_tls, clean=True) as peer:
        peer.send(head())
        started.get()
        peer.send(b"early bytes")
        gate.put(None)
        answer = peer.answer()
        assert (answer.status, answer["x-detached"]) == (101, "1")
        run.outcome()  # uvicorn has heard of the application's end, and closes nothing
        assert b"early bytes".startswith(served.get())
        assert served.get() == b"early bytes"
        peer.send(b"raw too")
        assert served.get() == b"raw too"
        assert peer.rest() == b"raw"


def test_a_detached_stream_is_not_closed_at_shutdown(
    certificate: tuple[Path, ssl.SSLContext], client_tls: ssl.SSLContext
) -> None:
    streams, over = Gate[DetachedStreams](), Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        streams.put(await scope["watershed"].accept(detached=True))
        reader, writer = await streams.wait()
        await over.wait()
        writer.write(b"still here")
        await reader.read()
        writer.close()

    with Uvicorn(WatershedASGI(app), ssl_certfile=certificate[0]) as server, Peer(server.port, client_tls) as peer:
        peer.open()
        streams.get()
        server.begin_stop()
        eventually(lambda: not server.server.server_state.connections)
        over.put(None)
        assert peer.sock.recv(100) == b"still here"
