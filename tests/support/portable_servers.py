"""ASGI servers that handle frames themselves, in threads: hypercorn's two workers, and uvicorn's own class."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

import anyio
import anyio.lowlevel
import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.config import Config

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.peers import dial
from tests.support.threaded_servers import Run, Uvicorn
from tests.support.waiting import Gate
from watershed_mw import WatershedASGI
from watershed_mw.asgi.portable import PortableConnection

Handler: TypeAlias = Callable[[PortableConnection], Awaitable[None]]


async def echo(conn: PortableConnection) -> None:
    async for message in conn:
        await conn.send(message)


class Server:
    """A server in a thread that handles frames itself.

    The application may be replaced between requests.
    """

    name: str
    port: int

    def run(self, app: ASGIApp) -> Run:
        raise NotImplementedError

    def soon(self, call: Callable[[], None]) -> None:
        """Call a function on the server's event loop."""
        raise NotImplementedError

    def count_tasks(self) -> int:
        """The number of tasks; called on the server's event loop."""
        return len(asyncio.all_tasks())

    def serve(self, handler: Handler, **options: Any) -> Run:
        """Serve an application that accepts, and passes the connection to `handler`."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            conn = await scope["watershed"].accept()
            assert isinstance(conn, PortableConnection)
            await handler(conn)

        return self.run(WatershedASGI(app, **options))

    def tasks(self) -> int:
        """The number of tasks on the server's event loop."""
        count = Gate[int]()
        self.soon(lambda: count.put(self.count_tasks()))
        return count.get()


class Hypercorn(Server):
    """hypercorn with one of its workers, "asyncio" or "trio"."""

    name = "hypercorn"

    def __init__(self, worker: str) -> None:
        self._app: ASGIApp | None = None
        self._worker = worker
        self._started = Gate[tuple[anyio.Event, Callable[[Callable[[], None]], object]]]()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._config = Config()
        self._config.bind = [f"fd://{listener.detach()}"]
        self._config.errorlog = None
        self._config.graceful_timeout = 0.1
        self._thread = threading.Thread(target=self._main, name=f"hypercorn-{self.port}", daemon=True)

    def _main(self) -> None:
        if self._worker == "trio":
            trio.run(self._serve)
        else:
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        stop = anyio.Event()
        app: Any = self._dispatch
        if self._worker == "trio":
            self._started.put((stop, trio.lowlevel.current_trio_token().run_sync_soon))
            await hypercorn.trio.serve(app, self._config, shutdown_trigger=stop.wait, mode="asgi")
        else:
            self._started.put((stop, asyncio.get_running_loop().call_soon_threadsafe))
            await hypercorn.asyncio.serve(app, self._config, shutdown_trigger=stop.wait, mode="asgi")

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                await send({"type": f"lifespan.{step}.complete"})
            return
        assert self._app is not None
        await self._app(scope, receive, send)

    def run(self, app: ASGIApp) -> Run:
        run = Run()
        self._app = run.wrap(app)
        return run

    def soon(self, call: Callable[[], None]) -> None:
        self._started.get()[1](call)

    def count_tasks(self) -> int:
        if self._worker == "trio":
            return trio.lowlevel.current_statistics().tasks_living
        return super().count_tasks()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.get()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.soon(self._started.get()[0].set)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "hypercorn still runs after it was told to stop"


class UvicornsOwn(Server):
    """uvicorn with its own WebSocket class."""

    name = "uvicorn with another WebSocket class"

    def __init__(self) -> None:
        self._uvicorn = Uvicorn(ws="websockets-sansio", http="h11")
        self.port = self._uvicorn.port
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, app: ASGIApp) -> Run:
        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            self._loop = asyncio.get_running_loop()
            await app(scope, receive, send)

        return self._uvicorn.run(noting)

    def soon(self, call: Callable[[], None]) -> None:
        if self._loop is None:  # known from the first request on
            run = self.serve(echo)
            with dial(self.port):
                pass
            run.outcome()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uvicorn.__exit__(kind, error, trace)


def knows_close_codes(server: Server) -> bool:
    """Whether the server passes on the peer's close code; hypercorn always reports 1006."""
    return not isinstance(server, Hypercorn)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that no event announces."""
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)
