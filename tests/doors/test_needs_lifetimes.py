"""Frequent requests of users of other implementations: who is let in, and how connections end and live.

`@pytest.mark.need(N)` names the row of the list; tests elsewhere carry it too, and tests/test_coverage_of_needs.py
knows which rows must have one. These tests need a complete server with real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed as ClientConnectionClosed
from websockets.frames import Frame, Opcode

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.native_apps import NATIVE, accepting, echoing
from tests.support.peers import Peer, binary, close, dial, head, text
from tests.support.threaded_servers import Uvicorn, Werkzeug, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from tests.support.wsgi_apps import assert_quiet, flask_app, upgrade
from watershed_mw import AsyncConnection, ConnectionClosed, Limits, WatershedASGI, live_connections
from watershed_mw.uvicorn import options_of

MIB = 2**20


def refused(port: int, path: str = "/", **changes: Any) -> int:
    """The status of the server's refusal."""
    with Peer(port) as peer:
        peer.send(head(path, **changes))
        return peer.answer().status


# --- 8, 9: who is let in -------------------------------------------------------------------------------------


@pytest.mark.need(8)
def test_pages_of_other_sites_are_refused_unless_listed(doors: Uvicorn) -> None:
    entered = Inbox[None]()

    async def handler(connection: AsyncConnection) -> None:
        entered.put(None)

    run = doors.run(accepting(handler))
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example"):
        assert refused(doors.port, Origin=origin) == 403
        assert run.outcome() is None
    assert entered.empty
    for own in (f"http://127.0.0.1:{doors.port}", None):
        with Peer(doors.port) as peer:
            peer.open(Host=f"127.0.0.1:{doors.port}", Origin=own)
        entered.get()
        run.outcome()
    doors.run(accepting(handler, origins=["http://friend.example"]))
    with Peer(doors.port) as peer:
        peer.open(Origin="http://friend.example")
    entered.get()
    assert refused(doors.port, Origin="http://evil.example") == 403


@pytest.mark.need(9)
@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_a_refusal_is_an_http_response_with_a_body_and_no_101(doors: Uvicorn, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["watershed"].reject(status, b"no entry", [("X-Why", "because")])

    run = doors.run(WatershedASGI(app))
    with Peer(doors.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body, answer["x-why"]) == (status, b"no entry", "because")
    assert run.outcome() is None


# --- 13: the WSGI request ends cleanly -----------------------------------------------------------------------


@pytest.mark.need(13, 15)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("leave", [Peer.vanish, lambda peer: peer.send(close(1001))], ids=["RST", "Close"])
def test_a_flask_view_need_not_catch_the_end(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    debug: bool,
    leave: Callable[[Peer], None],
) -> None:
    def view() -> str:
        connection = upgrade().accept()
        while True:
            connection.send(connection.receive())

    with Werkzeug(flask_app(view, debug=debug)) as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            peer.send(text("hi"))
            assert peer.text() == "hi"
            leave(peer)
        assert server.access_log(1) == ["GET /ws 101"]
        assert_quiet(server, caplog)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


# --- 14, 15: after the end -----------------------------------------------------------------------------------


@pytest.mark.need(14)
def test_a_handler_that_only_sends_stops_when_its_client_leaves(
    doors: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    codes = Inbox[int]()

    async def handler(connection: AsyncConnection) -> None:
        try:
            while True:
                await connection.send("tick")
                await asyncio.sleep(0)
        except ConnectionClosed as error:
            codes.put(error.code)
            raise

    run = doors.run(accepting(handler))
    for leave, expected in ((Peer.vanish, VANISHED), (lambda peer: peer.send(close(4001)), (4001,))):
        with Peer(doors.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            leave(peer)
            assert codes.get() in expected
            assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.need(14)
@NATIVE
def test_a_handler_that_only_sends_stops_even_if_its_client_keeps_reading(uvicorns: Uvicorn, native: bool) -> None:
    """Nothing here ever waits for the client, which reads everything: send() itself must yield to the event loop."""
    codes = Inbox[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await flood(lambda: send({"type": "websocket.send", "text": "tick"}))

    async def handler(connection: AsyncConnection) -> None:
        await flood(lambda: connection.send("tick"))

    async def flood(send: Callable[[], Awaitable[None]]) -> None:
        try:
            while True:
                await send()
        except ConnectionClosed as error:
            codes.put(error.code)

    uvicorns.run(accepting(handler) if native else app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "tick"
        peer.send(close(4001))
        deadline = time.monotonic() + LIMIT
        while peer.sock.recv(2**18):
            assert time.monotonic() < deadline, "it sends on and on"
        assert codes.get() == 4001


# uvicorn's own class reports a vanished client as 1005.
VANISHED = (1005, 1006)


async def _iterate(connection: AsyncConnection) -> None:
    async for _ in connection:
        raise AssertionError("a message after the end")
    raise ConnectionClosed(connection.close_code or 0, connection.close_reason or "")  # iteration itself just ends


@pytest.mark.need(15)
@pytest.mark.parametrize("ended_by", ["client", "RST", "application", "violation"])
def test_after_every_end_every_call_raises_one_kind_of_exception(doors: Uvicorn, ended_by: str) -> None:
    seen = Inbox[list[BaseException]]()
    expected = {"client": (4001,), "RST": VANISHED, "application": (4002,), "violation": (1009,)}[ended_by]

    async def handler(connection: AsyncConnection) -> None:
        if ended_by == "application":
            connection.end("ours", code=4002)
        with contextlib.suppress(ConnectionClosed):
            await connection.receive()
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: connection.send("late"),
            lambda: connection.send(b"late"),
            connection.receive,
            lambda: connection.receive(0.01),
            lambda: _iterate(connection),
        ]
        errors: list[BaseException] = []
        for call in calls:
            try:
                await call()
            except BaseException as error:  # noqa: BLE001  # checked below
                errors.append(error)
        connection.end()  # harmless
        seen.put(errors)

    run = doors.run(accepting(handler, max_message_size=1000))
    with Peer(doors.port) as peer:
        peer.open()
        if ended_by == "client":
            peer.send(close(4001, "theirs"))
        elif ended_by == "RST":
            peer.vanish()
        elif ended_by == "violation":
            peer.send(binary(bytes(1001)))
        else:
            assert peer.close() == (4002, "ours")
            peer.send(close(4002, "ours"))
        errors = seen.get()
    assert [type(error) for error in errors] == [ConnectionClosed] * 5
    for error in errors:
        assert isinstance(error, OSError)
        assert isinstance(error, ConnectionClosed)
        assert error.code in expected
    assert run.outcome() is None


# --- 16, 17: keepalive ---------------------------------------------------------------------------------------


def pong(payload: bytes) -> bytes:
    return Frame(Opcode.PONG, payload).serialize(mask=True)


@pytest.mark.need(16)
def test_keepalive_is_on_by_default() -> None:
    with Uvicorn(echo) as server:
        options = options_of(server.server.config)
    assert (options["ping_interval"], options["ping_timeout"]) == (20.0, 20.0)
    assert (Limits().ping_interval, Limits().ping_timeout) == (20.0, 20.0)


@pytest.mark.need(16)
def test_keepalive_is_set_per_connection_and_measures_latency(uvicorns: Uvicorn) -> None:
    latencies = Inbox[float]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/quiet":
            connection = await scope["watershed"].accept(ping_interval=None)
        else:
            connection = await scope["watershed"].accept(ping_interval=0.05, ping_timeout=2 * LIMIT)
        async for message in connection:
            assert isinstance(message, str)
            if connection.latency is not None:
                latencies.put(connection.latency)
            await connection.send(message)

    uvicorns.run(WatershedASGI(app, ping_interval=10.0))
    with Peer(uvicorns.port) as quiet, Peer(uvicorns.port) as lively:
        quiet.open("/quiet")
        lively.open("/lively")
        for _ in range(4):
            frame = lively.frame()
            assert frame.opcode is Opcode.PING
            lively.send(pong(bytes(frame.data)))
        lively.send(text("and now?"))
        while (frame := lively.frame()).opcode is Opcode.PING:
            pass
        assert bytes(frame.data) == b"and now?"
        assert 0 <= latencies.get() < LIMIT
        quiet.send(text("?"))
        assert quiet.text() == "?", "a PING came before the reply"
    assert latencies.empty


@pytest.mark.slow
@pytest.mark.need(16)
@pytest.mark.parametrize("trickle", [b"x", text("a message")], ids=["one long message", "messages"])
def test_a_client_that_sends_is_alive_even_if_it_answers_no_ping(one_uvicorn: Uvicorn, trickle: bytes) -> None:
    ended = Gate[tuple[int, str]]()
    ping_timeout = 0.5

    async def handler(connection: AsyncConnection) -> None:
        connection.on("text", lambda message: None)
        ended.put(await connection.run())

    one_uvicorn.run(accepting(handler, ping_interval=0.05, ping_timeout=ping_timeout))
    with Peer(one_uvicorn.port) as peer:
        peer.open()
        if trickle == b"x":
            peer.send(b"\x82\xff" + (10 * MIB).to_bytes(8, "big") + bytes(4))
        begin, pings = time.monotonic(), 0
        peer.sock.settimeout(0.02)
        while time.monotonic() < begin + 3 * ping_timeout:
            peer.send(trickle)
            with contextlib.suppress(TimeoutError):
                assert peer.frame().opcode is Opcode.PING
                pings += 1
        assert pings > 1
        assert not ended.passed
        peer.sock.settimeout(LIMIT)  # and now it falls silent
        while (frame := peer.frame()).opcode is Opcode.PING:
            pass
        assert bytes(frame.data)[:2] == (1011).to_bytes(2, "big")
    assert ended.get()[0] == 1011


class IdleProxy:
    """Relays TCP for two connections, and drops each after a time without a byte, as nginx does after 60 s."""

    def __init__(self, port: int, patience: float) -> None:
        self._port = port
        self._patience = patience
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(LIMIT)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._port), LIMIT) as server:
            while ready := select.select([client, server], [], [], self._patience)[0]:
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
        self._listener.close()


@pytest.mark.slow
@pytest.mark.need(17)
def test_pings_keep_a_connection_open_through_a_proxy_that_drops_idle_ones(one_uvicorn: Uvicorn) -> None:
    gone = Gate[float]()
    patience = 0.8

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = scope["path"] == "/kept"
        connection = await scope["watershed"].accept(ping_interval=0.1 if kept else None)
        await echoing(connection)
        if not kept:
            gone.put(connection.duration)

    one_uvicorn.run(WatershedASGI(app))
    proxy = IdleProxy(one_uvicorn.port, patience)
    with contextlib.closing(proxy), dial(proxy.port, "/kept") as kept, dial(proxy.port, "/idle") as idle:
        begin = time.monotonic()
        assert gone.get() >= patience * 0.9
        with pytest.raises(ClientConnectionClosed):
            idle.recv(LIMIT)
        # The other one has been equally silent, except for the PINGs.
        eventually(lambda: time.monotonic() > begin + 2.5 * patience)
        kept.send("still there")
        assert kept.recv(LIMIT) == "still there"


# --- 28: live connections ------------------------------------------------------------------------------------


@pytest.mark.need(28)
def test_connections_are_listed_for_as_long_as_they_live(doors: Uvicorn) -> None:
    before = {one.id for one in live_connections()}
    doors.run(accepting(echoing))
    with Peer(doors.port) as peer, Peer(doors.port) as other:
        for one in (peer, other):
            one.open("/room")
            one.send(text("12345"))
            assert one.text() == "12345"
        live = [one for one in live_connections() if one.id not in before]
        assert [one.remote for one in live] == ["{}:{}".format(*one.sock.getsockname()) for one in (peer, other)]
        assert all(one.stats.messages_received == 1 and one.request["path"] == "/room" for one in live)
        peer.send(close())
        peer.rest()
        eventually(lambda: [one for one in live_connections() if one.id not in before] == live[1:])


# --- 30: receive, closing from elsewhere, reconnecting -------------------------------------------------------


@pytest.mark.need(30)
def test_receive_loses_nothing_in_any_edge_case(doors: Uvicorn) -> None:
    report = Gate[list[Any]]()

    async def handler(connection: AsyncConnection) -> None:
        seen: list[Any] = []
        for timeout in (0, 0.01):
            try:
                await connection.receive(timeout)
            except TimeoutError:
                seen.append("timeout")
        waiting = asyncio.ensure_future(connection.receive())
        await asyncio.sleep(0)
        try:
            await connection.receive(0.01)  # it stands in line behind the first
        except TimeoutError:
            seen.append("in line")
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await connection.send("go on")
        seen += [await connection.receive(timeout) for timeout in (None, LIMIT, None)]
        try:
            await connection.receive(LIMIT)
        except ConnectionClosed as closed:
            seen.append(closed.code)
        report.put(seen)

    doors.run(accepting(handler))
    with Peer(doors.port) as peer:
        peer.open()
        assert peer.text() == "go on"
        peer.send(text("1") + binary(b"2") + text("") + close(4000))
        assert peer.close()[0] == 4000
    assert report.get() == ["timeout", "timeout", "in line", "1", b"2", "", 4000]


@pytest.mark.need(30)
def test_another_thread_may_close_while_receive_waits(doors: Uvicorn) -> None:
    waiting, told = Gate[AsyncConnection](), Gate[tuple[int, str]]()

    async def handler(connection: AsyncConnection) -> None:
        asyncio.get_running_loop().call_soon(waiting.put, connection)
        try:
            await connection.receive()
        except ConnectionClosed as closed:
            told.put((closed.code, closed.reason))

    run = doors.run(accepting(handler))
    with Peer(doors.port) as peer:
        peer.open()
        connection = waiting.get()
        connection.send("last words")
        connection.end("from a thread", code=4003)
        assert peer.text() == "last words"
        assert peer.close() == (4003, "from a thread")
        peer.send(close(4003, "from a thread"))
        peer.end()
    assert told.get() == (4003, "from a thread")
    assert run.outcome() is None
    with pytest.raises(ConnectionClosed):
        connection.send("late")


@pytest.mark.need(30)
def test_a_client_may_reconnect_any_number_of_times(doors: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    run = doors.run(accepting(echoing))
    for number in range(30):
        with Peer(doors.port) as peer:
            peer.open()
            peer.send(text(str(number)))
            assert peer.text() == str(number)
            if number % 2:
                peer.vanish()
            else:
                peer.send(close())
                peer.close()
        assert run.outcome() is None
    assert errors_in(caplog.records) == []
