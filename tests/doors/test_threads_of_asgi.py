"""ASGI's ``send`` and ``receive``, and a connection's methods, called in other threads and awaited on other loops.

Channels' synchronous consumers do so: asgiref calls ``send`` in a worker's thread, and awaits its result.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import WebsocketConsumer
from django.conf import settings

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.peers import dial
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn
from tests.support.waiting import Gate
from watershed_mw import AsyncConnection, ConnectionClosed, WatershedASGI

if not settings.configured:
    settings.configure()  # channels asks for its layers there

MIB = 2**20
COUNT = 200
DOORS = pytest.mark.parametrize("ws", [UVICORN_CLASS, "websockets-sansio"])
# In a worker thread of the server's loop, where asgiref finds that loop; and in a thread without one.
THREADS: list[Callable[[Callable[[], Any]], Any]] = [
    lambda work: sync_to_async(work, thread_sensitive=False)(),
    asyncio.to_thread,
]
threads = pytest.mark.parametrize("in_thread", THREADS, ids=["worker", "thread of its own"])


class Flooding(WebsocketConsumer):  # type: ignore[misc]
    """Sends as fast as it can."""

    sent = 0

    def connect(self) -> None:
        self.accept()

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        for _ in range(COUNT):
            self.send(bytes_data=bytes(MIB))
            type(self).sent += 1
        self.close()


class Plain(SyncConsumer):  # type: ignore[misc]
    """The same, one level below."""

    sent = 0

    def websocket_connect(self, event: Any) -> None:
        self.send({"type": "websocket.accept"})

    def websocket_receive(self, event: Any) -> None:
        for _ in range(COUNT):
            self.send({"type": "websocket.send", "bytes": bytes(MIB)})
            type(self).sent += 1
        self.send({"type": "websocket.close"})

    def websocket_disconnect(self, event: Any) -> None:
        raise StopConsumer


@pytest.mark.slow
@pytest.mark.parametrize("consumer", [Flooding, Plain])
def test_channels_synchronous_consumers_wait_for_their_client(uvicorns: Uvicorn, consumer: Any) -> None:
    consumer.sent = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = uvicorns.run(consumer.as_asgi())
        with dial(uvicorns.port, max_queue=1) as client:
            client.send("begin")
            first = client.recv(LIMIT)
            assert first == bytes(MIB)
            assert consumer.sent < COUNT  # the rest waits for this client
            for _ in range(COUNT - 1):
                assert client.recv(LIMIT) == first
    assert run.outcome() is None
    assert consumer.sent == COUNT


def test_send_and_receive_are_recognised_as_coroutine_functions(uvicorns: Uvicorn) -> None:
    known = Gate[list[bool]]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asks: list[Callable[[Any], bool]] = [asyncio.iscoroutinefunction, iscoroutinefunction]
        if sys.version_info >= (3, 12):  # before, inspect cannot be told of one
            asks.append(inspect.iscoroutinefunction)
        known.put([ask(channel) for ask in asks for channel in (receive, send)])
        await accept(receive, send)

    run = uvicorns.run(app)
    with dial(uvicorns.port):
        pass
    assert all(known.get())
    assert run.outcome() is None


@threads
def test_asgi_send_and_receive_work_in_another_thread(uvicorns: Uvicorn, in_thread: Any) -> None:
    """Everything from the accept to the end, in order, with the errors of each."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def work() -> None:
            blocking_send, blocking_receive = async_to_sync(send), async_to_sync(receive)
            assert blocking_receive()["type"] == "websocket.connect"
            blocking_send({"type": "websocket.accept"})
            for _ in range(10):
                blocking_send({"type": "websocket.send", "text": blocking_receive()["text"]})
            with pytest.raises(RuntimeError, match=r"websocket\.send"):
                blocking_send({"type": "websocket.accept"})
            with pytest.raises(TypeError, match="expected str"):
                blocking_send({"type": "websocket.send", "bytes": 5})
            blocking_send({"type": "websocket.send", "text": "done"})
            assert blocking_receive()["type"] == "websocket.disconnect"
            with pytest.raises(ConnectionClosed):
                blocking_send({"type": "websocket.send", "text": "too late"})

        await in_thread(work)

    run = uvicorns.run(app)
    with dial(uvicorns.port) as client:
        for number in range(10):
            client.send(str(number))
            assert client.recv(LIMIT) == str(number)
        assert client.recv(LIMIT) == "done"
    assert run.outcome() is None


def test_send_in_another_thread_acts_when_it_is_awaited(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        loop = asyncio.get_running_loop()

        def work() -> None:
            first, second = (send({"type": "websocket.send", "text": one}) for one in ("first", "second"))
            for sending in (second, first):
                asyncio.run_coroutine_threadsafe(sending, loop).result(LIMIT)  # type: ignore[arg-type]

        await asyncio.to_thread(work)

    run = uvicorns.run(app)
    with dial(uvicorns.port) as client:
        assert [client.recv(LIMIT), client.recv(LIMIT)] == ["second", "first"]
    assert run.outcome() is None


@pytest.mark.slow
@DOORS
@threads
def test_a_connections_methods_work_in_another_thread(ws: str, in_thread: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn: AsyncConnection = await scope["watershed"].accept()
        loop = asyncio.get_running_loop()

        def work() -> None:
            conn.send("at once")  # never awaited
            for number in range(10):
                async_to_sync(_echo)(conn)
                asyncio.run_coroutine_threadsafe(conn.send(f"more {number}"), loop).result(LIMIT)  # type: ignore[arg-type]
            asyncio.run_coroutine_threadsafe(conn.end("enough", code=4000), loop).result(LIMIT)  # type: ignore[arg-type]
            with pytest.raises(ConnectionClosed):
                async_to_sync(_echo)(conn)
            with pytest.raises(ConnectionClosed):
                conn.send("too late")

        await in_thread(work)

    with Uvicorn(ws=ws) as server:
        run = server.run(WatershedASGI(app))
        with dial(server.port) as client:
            assert client.recv(LIMIT) == "at once"
            for number in range(10):
                client.send(str(number))
                assert client.recv(LIMIT) == str(number)
                assert client.recv(LIMIT) == f"more {number}"
            with pytest.raises(Exception, match="4000"):
                client.recv(LIMIT)
        assert run.outcome() is None


async def _echo(conn: AsyncConnection) -> None:
    await conn.send(await conn.receive())


@pytest.mark.slow
@DOORS
def test_a_thread_that_awaits_its_sends_waits_for_the_peer(ws: str) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn: AsyncConnection = await scope["watershed"].accept()

        def flood() -> None:
            nonlocal sent
            for _ in range(COUNT):
                async_to_sync(_send)(conn, bytes(MIB))
                sent += 1

        await asyncio.to_thread(flood)

    with Uvicorn(ws=ws) as server:
        run = server.run(WatershedASGI(app))
        with dial(server.port, max_queue=1) as client:
            assert client.recv(LIMIT) == bytes(MIB)
            assert sent < COUNT
            for _ in range(COUNT - 1):
                assert client.recv(LIMIT) == bytes(MIB)
        assert run.outcome() is None


async def _send(conn: AsyncConnection, data: bytes) -> None:
    await conn.send(data)


def test_a_send_after_the_end_raises_where_it_is_awaited(uvicorns: Uvicorn) -> None:
    """The connection ends between the call in the thread and its execution on the loop."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn: AsyncConnection = await scope["watershed"].accept()
        sendings: list[Any] = []
        # The loop is kept busy here, so that the thread's call runs after the end.
        thread = threading.Thread(target=lambda: sendings.append(conn.send("too late")))
        thread.start()
        thread.join()
        conn.destroy()
        with pytest.raises(ConnectionClosed):
            await sendings[0]

    run = uvicorns.run(WatershedASGI(app))
    with pytest.raises(Exception, match="close frame"), dial(uvicorns.port) as client:
        client.recv(LIMIT)
    assert run.outcome() is None
