"""Connections that outlive their view: `run_in_background`."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask.typing import ResponseReturnValue

from tests.support import LIMIT
from tests.support.peers import Peer, binary, close, dial, head, ping, text
from tests.support.threaded_servers import Werkzeug
from tests.support.waiting import Gate, Inbox, eventually
from tests.support.wsgi_apps import assert_quiet, background, echo, flask_app, get, upgrade
from watershed_mw import AsyncConnection, live_connections

MIB = 2**20


def test_a_single_threaded_server_serves_pages_beside_connections(caplog: pytest.LogCaptureFixture) -> None:
    with Werkzeug(flask_app(background), threaded=False) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.port, "/ws")) for _ in range(10)]
        for number, client in enumerate(clients):
            assert get(server.port).body == b"page"
            client.send(f"{number}")
            assert client.recv(LIMIT) == f"{number}"
        for client in clients:
            client.send(b"z" * MIB)
            assert client.recv(LIMIT) == b"z" * MIB
            client.close(4000)
            assert client.close_code == 4000
        assert sorted(server.access_log(20)) == ["GET /page 200"] * 10 + ["GET /ws 101"] * 10
        assert_quiet(server, caplog)


def test_background_connections_free_the_worker_thread() -> None:
    def workers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "process_request_thread" in thread.name}

    with Werkzeug(flask_app(background)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.port, "/ws")) for _ in range(30)]
        for client in clients:
            client.send("hi")
            assert client.recv(LIMIT) == "hi"
        server.access_log(30)
        eventually(lambda: not workers(), "the end of werkzeug's threads")
        count = threading.active_count()
        clients += [stack.enter_context(dial(server.port, "/ws")) for _ in range(30)]
        for client in clients:
            client.send("again")
            assert client.recv(LIMIT) == "again"
        eventually(lambda: not workers(), "the end of werkzeug's threads")
        # Each of the test's clients has a thread; the pool for handlers is bounded.
        assert threading.active_count() <= count + 30 + 32


def test_events_arrive_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    events = Inbox[tuple[Any, ...]]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        for name in ("text", "binary", "ping", "pong", "connection_reset", "error", "end"):
            connection.on(name, lambda *args, name=name: events.put((name, *args)))
        connection.run_in_background()
        connection.ping(b"from the view")
        return ""

    with Werkzeug(flask_app(view)) as server:
        with Peer(server.port) as peer:
            peer.open("/ws")
            assert bytes(peer.frame().data) == b"from the view"
            peer.send(text("t") + binary(b"b") + ping(b"p") + close(4000, "bye"))
            assert bytes(peer.frame().data) == b"p"
            assert peer.close() == (4000, "bye")
            peer.end()
        for expected in (("text", "t"), ("binary", b"b"), ("ping", b"p"), ("end", 4000, "bye")):
            assert events.get() == expected
        with Peer(server.port) as peer:
            peer.open("/ws")
            assert bytes(peer.frame().data) == b"from the view"  # which has nothing more to say from here on
            peer.vanish()
        assert [events.get(), events.get()] == [("connection_reset",), ("end", 1006, "")]
        assert_quiet(server, caplog)


def test_handlers_that_block_do_not_block_other_connections() -> None:
    gate, blocked = Gate[None](), Inbox[str]()

    def view() -> ResponseReturnValue:
        connection = upgrade().accept()

        def handle(message: str) -> None:
            if message == "block":
                blocked.put(message)
                gate.get()
            connection.send(message)

        connection.on("text", handle)
        connection.run_in_background()
        return ""

    with Werkzeug(flask_app(view)) as server, dial(server.port, "/ws") as one, dial(server.port, "/ws") as other:
        one.send("block")
        one.send("after")
        blocked.get()
        other.send("free")
        assert other.recv(LIMIT) == "free"
        gate.put(None)
        assert [one.recv(LIMIT), one.recv(LIMIT)] == ["block", "after"]


def test_a_handler_that_raises_in_the_background_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    def view() -> ResponseReturnValue:
        connection = upgrade().accept()
        connection.on("text", lambda message: 1 / 0)
        connection.run_in_background()
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        peer.send(text("divide"))
        assert peer.close()[0] == 1011
        peer.send(close(1011))
        peer.end()
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("view", [echo, background], ids=["blocking", "background"])
def test_a_forked_child_leaves_its_parents_connections_alone(
    view: Callable[[], ResponseReturnValue],
) -> None:
    """At its end the child runs the interpreter's exit code, but must not end the connections that it has inherited."""
    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        peer.send(text("before"))
        assert peer.text() == "before"
        seen = multiprocessing.get_context("fork").SimpleQueue()
        child = multiprocessing.get_context("fork").Process(target=lambda: seen.put(len(live_connections())))
        child.start()
        child.join(LIMIT)
        assert (child.exitcode, seen.get()) == (0, 0)
        peer.send(text("after"))
        assert peer.text() == "after"


@pytest.mark.parametrize("early", [True, False])
def test_handlers_registered_first_in_a_coroutine_see_an_immediate_end(early: bool) -> None:
    ends = Inbox[int]()

    async def handler(connection: AsyncConnection) -> None:
        connection.on("end", lambda code, reason: ends.put(code))
        await connection.wait_closed()

    def view() -> ResponseReturnValue:
        upgrade().accept().run_in_background(handler)
        return ""

    with Werkzeug(flask_app(view)) as server:
        for code in range(4000, 4100):
            with Peer(server.port) as peer:
                peer.open_with(head("/ws") + (close(code) if early else b""))
                if not early:
                    peer.send(close(code))
                assert peer.close()[0] == code
            assert ends.get() == code


@pytest.mark.parametrize("arguments", ["none", "one"])
def test_a_coroutine_function_that_fails_closes_with_1011(caplog: pytest.LogCaptureFixture, arguments: str) -> None:
    async def takes_nothing() -> None:
        raise AssertionError("called without its connection")

    async def fails(connection: AsyncConnection) -> None:
        raise LookupError(await connection.receive())

    def view() -> ResponseReturnValue:
        handler: Any = takes_nothing if arguments == "none" else fails
        upgrade().accept().run_in_background(handler)
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open_with(head("/ws") + text("on purpose"))
        assert peer.close()[0] == 1011
        peer.send(close(1011))
        peer.end()
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is (TypeError if arguments == "none" else LookupError)


def test_an_exception_after_run_in_background_does_not_affect_the_connection() -> None:
    def view() -> ResponseReturnValue:
        background()
        raise LookupError("after the hand-over")

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        server.access_log(1)
        peer.send(text("alive"))
        assert peer.text() == "alive"


@pytest.mark.need(27)
@pytest.mark.parametrize("view", [echo, background], ids=["blocking", "background"])
def test_max_connections_counts_open_connections_wherever_they_run(
    caplog: pytest.LogCaptureFixture, view: Callable[[], ResponseReturnValue]
) -> None:
    with Werkzeug(flask_app(view, max_connections=2)) as server:
        with dial(server.port, "/ws") as first, dial(server.port, "/ws") as second:
            with Peer(server.port) as third:
                third.send(head("/ws"))
                answer = third.refusal()
                assert (answer.status, answer["retry-after"]) == (503, "1")
                assert answer.body.startswith(b"expected at most 2 connections at once (max_connections)")
            for client in (first, second):
                client.send("still served")
                assert client.recv(LIMIT) == "still served"
        for _ in range(3):  # every end of a connection releases its slot

            def opened() -> bool:
                with Peer(server.port) as peer:
                    peer.send(head("/ws"))
                    if peer.answer().status != 101:
                        return False
                    peer.vanish()
                    return True

            eventually(opened, "a place for one more connection")
        assert_quiet(server, caplog)
