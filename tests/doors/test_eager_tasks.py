"""Event loops whose tasks start immediately (``asyncio.eager_task_factory``): ASGI, and the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.peers import dial
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn, errors_in
from watershed_mw import AsyncConnection, WatershedASGI
from watershed_mw.client import connect

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is of Python 3.12")

DOORS = pytest.mark.parametrize("ws", [UVICORN_CLASS, "websockets-sansio"])


@contextlib.contextmanager
def eager(app: Any, **settings: Any) -> Iterator[Uvicorn]:
    """A uvicorn whose event loop has the factory."""
    begun = threading.Event()

    async def with_factory(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        await send({"type": "lifespan.startup.complete"})
        begun.set()
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await (with_factory if scope["type"] == "lifespan" else app)(scope, receive, send)

    with Uvicorn(either, lifespan="on", **settings) as server:
        assert begun.wait(LIMIT)
        yield server


def exchange(port: int) -> None:
    """Messages one at a time, and many at once."""
    with dial(port) as client:
        for message in ("Hello", b"bytes", "x" * 70_000):
            client.send(message)
            assert client.recv(LIMIT) == message
        for number in range(100):
            client.send(str(number))
        for number in range(100):
            assert client.recv(LIMIT) == str(number)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_asgi_messages_work_with_eager_tasks(loop: str, http: str, caplog: pytest.LogCaptureFixture) -> None:
    with eager(echo, loop=loop, http=http) as server:
        exchange(server.port)
        with dial(server.port) as client:
            client.send("still open when the server stops")
            assert client.recv(LIMIT)
    assert errors_in(caplog.records) == []


def test_an_application_may_refuse_or_return_immediately() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/accept":
            await accept(receive, send)
        elif scope["path"] == "/refuse":
            await send({"type": "websocket.close"})

    with eager(app) as server:
        with dial(server.port, "/accept"):
            pass
        for path, status in (("/refuse", 403), ("/", 500)):
            with pytest.raises(Exception, match=str(status)), dial(server.port, path):
                pass


@DOORS
def test_pulled_messages_work_with_eager_tasks(ws: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn = await scope["watershed"].accept()
        async for message in conn:
            await conn.send(message)

    with eager(WatershedASGI(app), ws=ws) as server:
        exchange(server.port)


@DOORS
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "later"])
def test_coroutine_handlers_work_with_eager_tasks(ws: str, wait: bool) -> None:
    """Handlers that never wait, and handlers that do: in order, one at a time."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn: AsyncConnection = await scope["watershed"].accept()

        async def handle(message: str | bytes) -> None:
            if wait:
                await asyncio.sleep(0)
            await conn.send(message)

        conn.on("text", handle)
        conn.on("binary", handle)
        await conn.run()

    with eager(WatershedASGI(app), ws=ws) as server:
        exchange(server.port)


@DOORS
def test_the_asyncio_client_works_with_eager_tasks(ws: str) -> None:
    async def talk(port: int) -> list[str | bytes]:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        got: list[str | bytes] = []
        async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as conn:
            receiving = asyncio.create_task(conn.receive())
            await asyncio.gather(*(asyncio.create_task(_send(conn, str(number))) for number in range(3)))
            got.append(await receiving)
            got += [await conn.receive(), await conn.receive()]
        async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as conn:

            async def handle(message: str) -> None:
                got.append(message)
                if message == "2":
                    await conn.end()

            conn.on("text", handle)
            for number in range(3):
                conn.send(str(number))
            await conn.run()
        return got

    with eager(echo, ws=ws) as server:
        assert asyncio.run(asyncio.wait_for(talk(server.port), LIMIT)) == ["0", "1", "2"] * 2


async def _send(conn: AsyncConnection, message: str) -> None:
    await conn.send(message)


def test_eager_tasks_work_as_uvicorn_configures_them() -> None:
    """With a loop factory, as the command line's ``--loop module:factory`` does."""
    made = asyncio.new_event_loop()
    made.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]

    class Config(uvicorn.Config):
        def get_loop_factory(self) -> Any:
            return lambda: made

    server = uvicorn.Server(Config(echo, port=0, ws=UVICORN_CLASS, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        exchange(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(LIMIT)
