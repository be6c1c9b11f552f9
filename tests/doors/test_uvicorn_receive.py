"""``receive`` under the uvicorn class: called by several tasks at once, and called again after the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, ClassVar

import pytest

from tests.support import SOON
from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.peers import Peer, close, dial, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw.options import ConnectionOptions
from watershed_mw.uvicorn import WatershedProtocol

DISCONNECT = {"type": "websocket.disconnect", "code": 1000, "reason": ""}


class Hasty(WatershedProtocol):
    """A shutdown that gives applications little time."""

    options: ClassVar[ConnectionOptions] = {"close_timeout": 0.2}


# --- several tasks -----------------------------------------------------------------------------------------


def test_concurrent_receivers_get_one_message_each_in_order(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        left_behind = asyncio.ensure_future(receive())
        await asyncio.wait([left_behind, asyncio.create_task(asyncio.sleep(0))], return_when=asyncio.FIRST_COMPLETED)
        cancelled = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        cancelled.cancel()
        await send({"type": "websocket.send", "text": "ready"})
        third = await receive()
        await send({"type": "websocket.send", "text": (await left_behind)["text"] + third["text"]})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "ready"
        peer.send(text("a") + text("b"))
        assert peer.text() == "ab"
    assert run.outcome() is None


def test_every_receiver_gets_the_disconnect_at_the_end(uvicorns: Uvicorn) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        tasks = [asyncio.ensure_future(receive()) for _ in range(3)]
        await asyncio.sleep(0)
        await send({"type": "websocket.send", "text": "ready"})
        events.put(await asyncio.gather(*tasks))

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "ready"
        peer.send(close())
        peer.close()
    assert events.get() == [DISCONNECT] * 3
    assert run.outcome() is None


# --- after the end -----------------------------------------------------------------------------------------


async def _end_by_client(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


async def _end_by_application(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close"})


async def _refuse(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close"})


async def _deny(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"no"})


ENDS = pytest.mark.parametrize("end", [_end_by_client, _end_by_application, _refuse, _deny])


def _come_and_go(port: int) -> None:
    with contextlib.suppress(Exception), dial(port):
        pass


@ENDS
def test_receive_after_the_disconnect_waits_until_cancelled(uvicorns: Uvicorn, end: Any) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await end(receive, send)
        events.put((await receive())["type"])
        tasks = [asyncio.ensure_future(receive()) for _ in range(2)]
        done, pending = await asyncio.wait(tasks, timeout=0.05)
        events.put((len(done), len(pending)))
        for task in pending:
            task.cancel()
        events.put([type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)])

    run = uvicorns.run(app)
    _come_and_go(uvicorns.port)
    assert events.get() == "websocket.disconnect"
    assert events.get() == (0, 2)
    assert events.get() == [asyncio.CancelledError] * 2
    assert run.outcome() is None


@pytest.mark.slow
@ENDS
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_application_that_ignores_the_disconnect_does_not_affect_others(
    loop: str, caplog: pytest.LogCaptureFixture, end: Any
) -> None:
    """Other connections continue, and the server stops in time, although the client left long ago."""
    asked = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/other":
            await accept(receive, send)
            return
        await receive()
        await end(receive, send)
        while True:
            if (await receive())["type"] == "websocket.disconnect" and not asked.passed:
                asked.put(None)

    with Uvicorn(app, loop=loop, ws=Hasty) as server:
        _come_and_go(server.port)
        asked.get()
        with dial(server.port, "/other"):
            pass
        eventually(lambda: not _streams(server), "the client's stream has ended")
        server.begin_stop()
        server.wait_stopped(SOON)
    assert errors_in(caplog.records) == []
    assert "has not returned 0.2 seconds after the shutdown began: cancelled" in caplog.text


def _streams(server: Uvicorn) -> list[Any]:
    return [known for known in server.server.server_state.connections if not known._lost]  # type: ignore[union-attr]


def test_an_application_still_running_after_its_client_left_is_cancelled_at_shutdown() -> None:
    """Whatever it does meanwhile."""
    left = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await receive()
        left.put(None)
        await asyncio.get_running_loop().create_future()

    with Uvicorn(app, ws=Hasty) as server:
        _come_and_go(server.port)
        left.get()
        eventually(lambda: not _streams(server), "the client's stream has ended")
        server.begin_stop()
        server.wait_stopped(SOON)


@ENDS
@pytest.mark.parametrize("kind", ["websocket.send", "websocket.close"])
def test_sending_in_a_loop_after_the_end_lets_other_tasks_run(uvicorns: Uvicorn, end: Any, kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def again_and_again() -> None:
            while True:
                with contextlib.suppress(OSError):
                    await send({"type": kind, "text": "too late"})

        await receive()
        await end(receive, send)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        sending = asyncio.create_task(again_and_again())
        for _ in range(20):
            await asyncio.sleep(0)
        sending.cancel()

    run = uvicorns.run(app)
    _come_and_go(uvicorns.port)
    assert run.outcome() is None
