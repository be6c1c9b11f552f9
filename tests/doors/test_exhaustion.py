"""A process that runs out of descriptors or threads refuses new requests, and keeps serving existing connections."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask.typing import ResponseReturnValue

import watershed_mw.werkzeug  # noqa: F401  # else the first refusal needs a descriptor to import it
from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Uvicorn, Werkzeug
from tests.support.waiting import Inbox, eventually
from tests.support.wsgi_apps import background, flask_app, get, upgrade
from tests.support.wsgi_servers import SERVERS, Kind, start
from watershed_mw import HandshakeError, ThreadConnection, WatershedASGI
from watershed_mw.proxy import WebSocketProxy
from watershed_mw.runtime import loop_thread

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on descriptors")


@contextlib.contextmanager
def descriptors(free: int) -> Iterator[None]:
    """Leave this process this many free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)
    fillers = [first]
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + 64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(free):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in fillers:
            os.close(number)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


NO_DESCRIPTOR = "got none (Too many open files)"


def told(caplog: pytest.LogCaptureFixture) -> list[bool]:
    """Whether each warning says that descriptors were missing; there is one for each refusal."""
    return [NO_DESCRIPTOR in line for line in warnings_in(caplog)]


# --- WSGI ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [False, True], ids=["connection", "detached"])
@pytest.mark.parametrize("free", [0, 1])
def test_a_hijack_without_descriptors_is_a_503(free: int, detached: bool, caplog: pytest.LogCaptureFixture) -> None:
    def view() -> ResponseReturnValue:
        with descriptors(free):
            upgrade().accept(detached=detached)
        return "never"

    with Werkzeug(flask_app(view, max_connections=1)) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):  # and no place of max_connections is lost
            with Peer(server.port) as peer:
                peer.send(head("/ws"))
                answer = peer.refusal()
                assert (answer.status, answer["retry-after"]) == (503, "1")
            # A descriptor that the server closes later would be free for the next request.
            eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of the request's socket")
        assert get(server.port).body == b"page"
        assert server.troubles == []
    assert told(caplog) == [True] * 3


@pytest.mark.parametrize("free", [0, 1, 4, 8])
def test_without_descriptors_for_the_event_loop_a_connection_is_unchanged(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uvloop would abort the process here."""
    monkeypatch.setattr(loop_thread, "_serving", None)
    raised = Inbox[OSError]()

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        try:
            with descriptors(free):
                connection.run_in_background()
        except OSError as error:
            raised.put(error)
        connection.send(connection.receive(LIMIT))
        connection.on("text", connection.send)
        connection.run_in_background()
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        assert raised.get().errno == 24
        for word in ("in the handler", "in the background"):
            peer.send(text(word))
            assert peer.text() == word


def test_without_threads_for_the_event_loop_a_connection_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_thread, "_serving", None)
    raised = Inbox[RuntimeError]()

    def refuse(_run: Any) -> None:
        raise RuntimeError("can't start new thread")

    def view() -> ResponseReturnValue:
        connection: ThreadConnection = upgrade().accept()
        before = len(os.listdir("/dev/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(loop_thread, "start_thread", refuse)
            try:
                connection.run_in_background()
            except RuntimeError as error:
                raised.put(error)
        assert len(os.listdir("/dev/fd")) == before
        connection.send(connection.receive(LIMIT))
        return ""

    with Werkzeug(flask_app(view)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        assert str(raised.get()) == "can't start new thread"
        peer.send(text("still here"))
        assert peer.text() == "still here"


def test_handlers_wait_for_a_free_thread_and_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_thread, "_serving", None)
    refused: list[str] = []
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("watershed-pool") and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Werkzeug(flask_app(background)) as server, Peer(server.port) as peer:
        peer.open("/ws")
        for word in ("one", "two", "three"):
            peer.send(text(word))
        assert [peer.text(), peer.text(), peer.text()] == ["one", "two", "three"]
        peer.send(close(4000))
        assert peer.close() == (4000, "")
    assert len(refused) == 3


def _count(server: Any) -> int:
    return len(os.listdir(f"/proc/{server.get('/pid').body.decode()}/fd"))


@pytest.mark.programs
@pytest.mark.skipif(sys.platform != "linux", reason="another process's descriptors are in /proc")
@pytest.mark.parametrize("kind", [kind for kind in SERVERS.values() if not kind.single], ids=lambda kind: kind.name)
def test_a_connection_takes_the_documented_descriptors(kind: Kind) -> None:
    """One in the background; a second one while its handler blocks, for the server's own socket."""
    if kind.name in ("werkzeug-processes", "gunicorn-preload"):
        pytest.skip("which process it is changes with each request")
    with start(kind) as server, contextlib.ExitStack() as stack:
        server.wait_until_it_serves()

        def opened(path: str) -> None:
            peer = stack.enter_context(server.peer())
            peer.open(path)
            peer.send(text("here"))
            assert peer.text() == "here"

        if kind.background:
            opened("/background")  # the event loop has its own
            before = _count(server)
            for _ in range(5):
                opened("/background")
            eventually(lambda: _count(server) <= before + 5, "one descriptor for each")
        before = _count(server)
        for _ in range(2):
            opened("/blocking")
        eventually(lambda: _count(server) <= before + 4, "two descriptors for each")


# --- uvicorn, and proxies --------------------------------------------------------------------------------


def test_a_raw_socket_without_descriptors_is_a_503(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with descriptors(0), pytest.raises(HandshakeError):
            await scope["watershed"].accept(detached=True)

    run = uvicorns.run(WatershedASGI(app))
    with Peer(uvicorns.port) as peer:
        peer.send(head("/"))
        answer = peer.refusal()
        assert (answer.status, answer["retry-after"]) == (503, "1")
    assert run.outcome() is None
    assert told(caplog) == [True]


def _proxy(limit: contextlib.ExitStack) -> WebSocketProxy:
    def to(_request: Any) -> str:
        limit.enter_context(descriptors(0))
        return "ws://127.0.0.1:9"

    return WebSocketProxy(to)


def test_without_descriptors_for_the_upstream_an_asgi_proxy_responds_503(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as limit, Peer(uvicorns.port) as peer:
        app: ASGIApp = _proxy(limit)
        run = uvicorns.run(app)
        peer.send(head("/"))
        answer = peer.answer()
        limit.close()
        assert answer.status == 503
        assert run.outcome() is None
    assert any(told(caplog))


def test_without_descriptors_for_the_upstream_a_wsgi_proxy_responds_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with contextlib.ExitStack() as limit, Werkzeug(_proxy(limit)) as server, Peer(server.port) as peer:
        peer.send(head("/"))
        answer = peer.answer()
        limit.close()
        assert answer.status == 503
    assert any(told(caplog))
