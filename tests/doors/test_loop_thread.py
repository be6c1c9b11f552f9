"""The process's event loop: an exception on it or a stop ends nothing else, and a failed loop is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from flask.typing import ResponseReturnValue

from tests.support import LIMIT
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Werkzeug
from tests.support.waiting import Gate, Inbox, eventually
from tests.support.wsgi_apps import background, flask_app, get, upgrade
from watershed_mw import AsyncConnection, ConnectionClosed, ThreadConnection, live_connections
from watershed_mw.connection.threads import background as background_module
from watershed_mw.relay import Relay, RelayEnd, live_relays, relay
from watershed_mw.runtime import loop_thread
from watershed_mw.runtime.loop_thread import background_loop, run_on_background_loop


class _Breakable:
    """An event loop that fails, as if its descriptors had been closed."""

    fails = False

    def run_forever(self) -> None:
        super().run_forever()  # type: ignore[misc]
        if self.fails:
            raise OSError(9, "Bad file descriptor")


class BreakableAsyncio(_Breakable, asyncio.SelectorEventLoop):
    pass


class BreakableUvloop(_Breakable, uvloop.Loop):  # type: ignore[misc]
    pass


@pytest.fixture(params=[BreakableAsyncio, BreakableUvloop], ids=["asyncio", "uvloop"])
def breaking(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """An event loop of the process for this test only, which can be made to fail."""
    monkeypatch.setattr(loop_thread, "_new_loop", request.param)
    monkeypatch.setattr(loop_thread, "_serving", None)

    def break_it() -> None:
        loop: Any = background_loop()[0]
        serving = loop_thread._serving
        assert serving is not None
        loop.fails = True
        loop.call_soon_threadsafe(loop.stop)
        eventually(loop.is_closed, "the end of the loop")
        assert not serving.usable

    yield break_it
    break_it()


def in_a_coroutine() -> ResponseReturnValue:
    connection: ThreadConnection = upgrade().accept()

    async def echo(inner: AsyncConnection) -> None:
        async for message in inner:
            if message == "stop":
                asyncio.get_running_loop().stop()
            if message == "exit":
                asyncio.get_running_loop().call_soon(exit_in_a_callback)
            await inner.send(message)

    connection.run_in_background(echo)
    return ""


def exit_in_a_callback() -> None:
    raise SystemExit(3)


def in_either_way() -> ResponseReturnValue:
    from flask import request

    return in_a_coroutine() if "coroutine" in request.args else background()


def opened(server: Werkzeug, stack: contextlib.ExitStack, path: str) -> Peer:
    peer = stack.enter_context(Peer(server.port))
    peer.open(path)
    assert_echoes(peer, "hello")
    return peer


def assert_echoes(peer: Peer, word: str) -> None:
    peer.send(text(word))
    assert peer.text() == word


@pytest.mark.parametrize("word", ["stop", "exit"])
def test_a_handler_cannot_stop_the_loop(breaking: Callable[[], None], word: str) -> None:
    with Werkzeug(flask_app(in_either_way)) as server, contextlib.ExitStack() as stack:
        peers = [opened(server, stack, path) for path in ("/ws", "/ws?coroutine")]
        loop = background_loop()[0]
        for _ in range(3):
            assert_echoes(peers[1], word)
            for peer in peers:
                assert_echoes(peer, f"after {word}")
        assert background_loop()[0] is loop


def test_a_loop_that_fails_is_replaced(breaking: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """Its connections see the end, release their slots, and report it; later ones get another loop."""
    ends = Inbox[int]()

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        connection.on("end", lambda code, reason: ends.put(code))
        connection.on("text", connection.send)
        connection.run_in_background()
        return ""

    views = {"events": view, "coroutine": in_a_coroutine}

    def choose() -> ResponseReturnValue:
        from flask import request

        return views[request.args["way"]]()

    with Werkzeug(flask_app(choose, max_connections=2)) as server:
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                peers = [opened(server, stack, f"/ws?way={way}") for way in views]
                breaking()
                assert ends.get() == 1006
                for peer in peers:
                    peer.end()
            eventually(lambda: not live_connections())
        assert get(server.port).body == b"page"
    assert [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"] == [
        "the background event loop has failed, and its connections with it"
    ] * 2


def test_a_failing_loop_releases_waiting_threads(breaking: Callable[[], None]) -> None:
    connections = Inbox[ThreadConnection]()

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        connection.run_in_background()
        connections.put(connection)
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port, receive_buffer=4096) as peer:
        peer.open("/ws")
        connection = connections.get()
        ended = Gate[BaseException | None]()

        def send() -> None:
            try:
                while True:
                    connection.send(bytes(100_000))
            except ConnectionClosed as error:
                ended.put(error)

        threading.Thread(target=send, daemon=True).start()
        eventually(lambda: connection.stats.bytes_sent > 10_000_000 or loop_thread._awaited, "a sender that waits")
        breaking()
        assert isinstance(ended.get(), ConnectionClosed)
        with pytest.raises(ConnectionClosed):
            connection.send("too late")
        connection.start_close()
        assert connection.closed


@pytest.mark.parametrize("turns", range(4))
def test_a_connection_moving_to_a_failing_loop_ends(breaking: Callable[[], None], turns: int) -> None:
    """At any stage of the move: the peer sees the end, the application is told, and no socket is left over."""
    ends = Inbox[int]()

    def view() -> ResponseReturnValue:
        loop: Any = background_loop()[0]
        busy, go_on = threading.Event(), threading.Event()

        def stop_in(turns: int) -> None:
            if turns:
                loop.call_soon(stop_in, turns - 1)
            else:
                loop.fails = True
                loop.stop()

        def wait() -> None:
            busy.set()
            go_on.wait(LIMIT)

        loop.call_soon_threadsafe(wait)
        assert busy.wait(LIMIT)
        connection: ThreadConnection = upgrade().accept()
        connection.on("end", lambda code, reason: ends.put(code))
        connection.run_in_background()
        loop.call_soon_threadsafe(stop_in, turns)
        go_on.set()
        eventually(loop.is_closed, "the end of the loop")
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        peer.end()
        assert ends.get() == 1006
    gc.collect()  # which warns about unclosed sockets
    background_loop()


def test_a_connection_that_arrives_while_a_failed_loop_closes_ends(
    breaking: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread asked for the loop before the failure, and hands over the connection after all others have ended."""
    ends = Inbox[int]()
    closing, handed_over = threading.Event(), threading.Event()

    def a_loop_that_fails_at_once() -> tuple[Any, loop_thread.Workers]:
        loop: Any
        loop, workers = background_loop()
        close = loop.close

        def close_late() -> None:
            closing.set()
            handed_over.wait(LIMIT)
            close()

        loop.close = close_late
        loop.fails = True
        loop.call_soon_threadsafe(loop.stop)
        assert closing.wait(LIMIT)
        return loop, workers

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        connection.on("end", lambda code, reason: ends.put(code))
        with monkeypatch.context() as patch:
            patch.setattr(background_module, "background_loop", a_loop_that_fails_at_once)
            connection.run_in_background()
        handed_over.set()
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        peer.end()
        assert ends.get() == 1006
    gc.collect()
    background_loop()


def test_a_relay_on_a_failing_loop_ends(breaking: Callable[[], None]) -> None:
    import socket

    (client, ours), (server, theirs) = socket.socketpair(), socket.socketpair()
    with client, server:
        client.settimeout(LIMIT)
        server.settimeout(LIMIT)
        relayed: Relay = relay(ours, theirs)
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        breaking()
        assert relayed.wait(LIMIT).end is RelayEnd.BROKEN_OFF
        assert client.recv(100) == server.recv(100) == b""
        assert live_relays() == []


def test_without_a_loop_connections_are_refused(
    breaking: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With 503, instead of a 101 and nothing more; once a loop is available they are served again."""

    def refuse() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    with Werkzeug(flask_app(background)) as server, contextlib.ExitStack() as stack:
        opened(server, stack, "/ws")
        with monkeypatch.context() as patch:
            breaking()
            patch.setattr(loop_thread, "_new_loop", refuse)
            for _ in range(2):
                with Peer(server.port) as peer:
                    peer.send(head("/ws"))
                    answer = peer.refusal()
                    assert (answer.status, answer["retry-after"]) == (503, "1")
            assert get(server.port).body == b"page"
        peer = opened(server, stack, "/ws")
        peer.send(close(4000))
        assert peer.close() == (4000, "")
    lines = [record.getMessage() for record in caplog.records if "Too many open files" in record.getMessage()]
    assert ["got none (Too many open files)" in line for line in lines] == [True] * 2


def test_an_exception_on_the_loop_is_raised_in_the_waiting_thread(breaking: Callable[[], None]) -> None:
    """For example a proxy's hook that calls sys.exit(); the loop continues."""

    async def leave() -> None:
        raise SystemExit(3)

    async def stay() -> str:
        return "here"

    with pytest.raises(SystemExit):
        run_on_background_loop(leave())
    assert run_on_background_loop(stay()) == "here"
