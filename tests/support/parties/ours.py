"""Our own parties: a server behind each door, and a client of each flavour.

doors: the raw socket (threads and asyncio), the uvicorn class under an application that knows nothing of us,
the ASGI middleware under that class, and the WSGI middleware under werkzeug. Servers use events, clients
pull, so that both styles meet every peer. Trusts only the package's public API.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import uvicorn
from flask import Flask, request
from flask.typing import ResponseReturnValue
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from werkzeug.serving import make_server

from tests.support import LIMIT
from tests.support.loops import LoopThread
from tests.support.parties import PROTOCOLS, Ending, Endings, Feature, Message, Refused, parse_close
from watershed_mw import (
    AsyncConnection,
    ConnectionClosed,
    HandshakeError,
    ThreadConnection,
    Watershed,
    WatershedASGI,
    WatershedWSGI,
)

UVICORN_CLASS = "watershed_mw.uvicorn:WatershedProtocol"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FEATURES = frozenset({Feature.ANY_CODE, Feature.COMPRESSION, Feature.PING, Feature.ABORT, Feature.REFUSAL})


def follow(connection: AsyncConnection | ThreadConnection) -> Callable[[tuple[int, str]], Ending]:
    """Make a connection echo and obey commands; return a function that turns the result of `run()` into an Ending."""
    resets: list[bool] = []

    def obey(text: str) -> None:
        if text.startswith("!close "):
            code, reason = parse_close(text)
            connection.end(reason, code=code)
        elif text == "!abort":
            connection.destroy()
        elif text.startswith("!ping "):
            connection.ping(text.removeprefix("!ping ").encode())
        else:
            connection.send(text)

    connection.on("text", obey)
    connection.on("binary", connection.send)
    connection.on("pong", lambda data: connection.send(f"pong {data.decode()}"))
    connection.on("connection_reset", lambda: resets.append(True))
    return lambda end: Ending(*end, reset=bool(resets))


def path_of(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode("ascii")


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Read an HTTP head from a blocking socket; return the head and the bytes after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError(f"the peer closed the connection within the head: {data!r}")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


class RawThreadServer:
    """`Watershed.accept` on blocking sockets, with a thread for each connection."""

    name = "raw-threads"
    features = FEATURES

    def __init__(self) -> None:
        self._shed = Watershed(protocols=PROTOCOLS)
        self._endings = Endings()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the listener was shut down: the tests are over
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            head, rest = read_head(sock)
            path = path_of(head)
            if path.startswith("/forbidden"):
                sock.sendall(FORBIDDEN)
                return
            try:
                connection = self._shed.accept(head, sock, head=rest)
            except HandshakeError:
                return
            ending = follow(connection)
            self._endings.put(path, ending(connection.run()))

    def ending(self, path: str) -> Ending:
        return self._endings.get(path)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._acceptor, *self._threads]:
            thread.join(LIMIT)


class RawAsyncServer:
    """`Watershed.accept` on the streams of `asyncio.start_server`."""

    name = "raw-asyncio"
    features = FEATURES

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._shed = Watershed(protocols=PROTOCOLS)
        self._endings = Endings()
        self._server = loop.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = path_of(head)
        if path.startswith("/forbidden"):
            writer.write(FORBIDDEN)
            writer.close()
            return
        try:
            connection = self._shed.accept(head, (reader, writer))
        except HandshakeError:
            writer.close()
            return
        ending = follow(connection)
        self._endings.put(path, ending(await connection.run()))

    def ending(self, path: str) -> Ending:
        return self._endings.get(path)

    def close(self) -> None:
        async def close() -> None:
            self._server.close()

        self._loop.call(close())


class _UvicornServer:
    """A Starlette application under uvicorn with `WatershedProtocol`."""

    def __init__(self, loop: LoopThread, endpoint: Callable[[WebSocket], Awaitable[None]], *, middleware: bool) -> None:
        self._loop = loop
        self.endings = Endings()
        app = Starlette(routes=[WebSocketRoute("/{path:path}", endpoint)])
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            WatershedASGI(app, protocols=PROTOCOLS) if middleware else app,
            ws=UVICORN_CLASS,
            lifespan="off",
            log_level="warning",
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(sockets=[listener]), loop.loop)

    def ending(self, path: str) -> Ending:
        return self.endings.get(path)

    def close(self) -> None:
        self._server.should_exit = True
        self._serving.result(LIMIT)


class UvicornServer(_UvicornServer):
    """Starlette's own WebSocket; the application does not know about `WatershedProtocol`."""

    name = "uvicorn"
    features = frozenset({Feature.ANY_CODE, Feature.COMPRESSION})

    def __init__(self, loop: LoopThread) -> None:
        super().__init__(loop, self._endpoint, middleware=False)

    async def _endpoint(self, websocket: WebSocket) -> None:
        path = websocket.url.path
        if path.startswith("/forbidden"):
            await websocket.close()
            return
        chosen = next((one for one in websocket.scope["subprotocols"] if one in PROTOCOLS), None)
        await websocket.accept(subprotocol=chosen)
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                # 1006 is ASGI's word for a connection that ended without a closing handshake.
                code = event["code"]
                self.endings.put(path, Ending(code, event.get("reason") or "", reset=code == 1006))
                return
            await self._obey(websocket, event.get("text"), event.get("bytes"))

    @staticmethod
    async def _obey(websocket: WebSocket, text: str | None, data: bytes | None) -> None:
        try:
            if text is None:
                assert data is not None
                await websocket.send_bytes(data)
            elif text.startswith("!close "):
                await websocket.close(*parse_close(text))
            else:
                await websocket.send_text(text)
        except WebSocketDisconnect:
            return  # the peer was faster; the next event says so


class AsgiServer(_UvicornServer):
    """`WatershedASGI` around Starlette: the endpoint gets the native connection from the scope."""

    name = "asgi"
    features = FEATURES

    def __init__(self, loop: LoopThread) -> None:
        super().__init__(loop, self._endpoint, middleware=True)

    async def _endpoint(self, websocket: WebSocket) -> None:
        upgrade = websocket.scope["watershed"]
        path = websocket.url.path
        if path.startswith("/forbidden"):
            await upgrade.reject(403)
            return
        connection: AsyncConnection = await upgrade.accept()
        ending = follow(connection)
        self.endings.put(path, ending(await connection.run()))


class WsgiServer:
    """`WatershedWSGI` around Flask, on werkzeug's threaded server.

    The view either blocks in `run()` or leaves the connection to the process's loop thread and returns.
    """

    features = FEATURES

    def __init__(self, *, background: bool) -> None:
        self.name = "wsgi-background" if background else "wsgi"
        self._background = background
        self._endings = Endings()
        app = Flask(__name__)
        app.add_url_rule("/<path:path>", view_func=self._view, websocket=True)
        app.wsgi_app = WatershedWSGI(app.wsgi_app, protocols=PROTOCOLS)  # type: ignore[method-assign]
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"ws://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def _view(self, path: str) -> ResponseReturnValue:
        upgrade = request.environ["watershed"]
        if path.startswith("forbidden"):
            rejection: ResponseReturnValue = upgrade.reject(403)
            return rejection
        connection: ThreadConnection = upgrade.accept()
        ending = follow(connection)
        asked = request.path
        if self._background:
            connection.on("end", lambda code, reason: self._endings.put(asked, ending((code, reason))))
            connection.run_in_background()
        else:
            self._endings.put(asked, ending(connection.run()))
        return ""

    def ending(self, path: str) -> Ending:
        return self._endings.get(path)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(LIMIT)
        self._server.server_close()


class ThreadSession:
    """Pulls messages, and records events (PONG, reset) meanwhile."""

    def __init__(self, connection: ThreadConnection, *, compressed: bool) -> None:
        self._connection = connection
        self.protocol = connection.protocol
        self.compressed = compressed
        self._pongs: list[bytes] = []
        self._resets: list[bool] = []
        connection.on("pong", self._pongs.append)
        connection.on("connection_reset", lambda: self._resets.append(True))

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None:
        raise NotImplementedError("we send whole messages")

    def receive(self) -> Message:
        return self._connection.receive(timeout=LIMIT)

    def ping(self, data: bytes) -> bytes:
        self._connection.ping(data)
        # A pulling client reads while it waits for a message: the echo of this one comes after the PONG.
        self._connection.send("after the ping")
        assert self.receive() == "after the ping"
        assert self._connection.latency is not None
        assert 0 < self._connection.latency < LIMIT
        return self._pongs.pop()

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        assert code is not None
        self._connection.end(reason, code=code)

    def abort(self) -> None:
        self._connection.destroy()

    def ending(self) -> Ending:
        try:
            message = self.receive()
        except ConnectionClosed as closed:
            return Ending(closed.code, closed.reason, reset=bool(self._resets))
        raise AssertionError(f"a message instead of the end: {message!r:.80}")


class ThreadClient:
    """`Watershed.connect` on a blocking socket."""

    name = "our-threads"
    features = FEATURES

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> ThreadSession:
        shed = Watershed(compression=compression)
        key = shed.generate_key()
        asked = shed.request_head(url, key, protocols=protocols or None)
        parts = urlsplit(url)
        sock = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=LIMIT)
        sock.sendall(asked)
        head, rest = read_head(sock)
        try:
            connection = shed.connect(head, sock, head=rest, key=key, request=asked)
        except HandshakeError:
            sock.close()
            raise Refused(int(head.split(b" ", 2)[1])) from None
        return ThreadSession(connection, compressed=b"permessage-deflate" in head.lower())


class AsyncSession:
    """`Watershed.connect` on an event loop in a thread of its own."""

    def __init__(self, loop: LoopThread, connection: AsyncConnection, *, compressed: bool) -> None:
        self._loop = loop
        self._connection = connection
        self.protocol = connection.protocol
        self.compressed = compressed
        self._pongs: list[bytes] = []
        self._resets: list[bool] = []
        connection.on("pong", self._pongs.append)
        connection.on("connection_reset", lambda: self._resets.append(True))

    def send(self, message: Message) -> None:
        async def send() -> None:
            await self._connection.send(message)

        self._loop.call(send())

    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None:
        raise NotImplementedError("we send whole messages")

    def receive(self) -> Message:
        async def receive() -> Message:
            return await self._connection.receive(timeout=LIMIT)

        return self._loop.call(receive(), LIMIT + 1)

    def ping(self, data: bytes) -> bytes:
        async def ping() -> None:
            await self._connection.ping(data)

        self._loop.call(ping())
        self.send("after the ping")
        assert self.receive() == "after the ping"
        assert self._connection.latency is not None
        assert 0 < self._connection.latency < LIMIT
        return self._pongs.pop()

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        assert code is not None
        number = code

        async def close() -> None:
            await self._connection.end(reason, code=number)

        self._loop.call(close())

    def abort(self) -> None:
        async def abort() -> None:
            self._connection.destroy()

        self._loop.call(abort())

    def ending(self) -> Ending:
        try:
            message = self.receive()
        except ConnectionClosed as closed:
            return Ending(closed.code, closed.reason, reset=bool(self._resets))
        raise AssertionError(f"a message instead of the end: {message!r:.80}")


class AsyncClient:
    """`Watershed.connect` on the streams of `asyncio.open_connection`."""

    name = "our-asyncio"
    features = FEATURES

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> AsyncSession:
        connection, compressed = self._loop.call(self._open(url, protocols, compression))
        return AsyncSession(self._loop, connection, compressed=compressed)

    @staticmethod
    async def _open(url: str, protocols: Sequence[str], compression: bool) -> tuple[AsyncConnection, bool]:
        shed = Watershed(compression=compression)
        key = shed.generate_key()
        asked = shed.request_head(url, key, protocols=protocols or None)
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            connection = shed.connect(head, (reader, writer), key=key, request=asked)
        except HandshakeError:
            writer.close()
            raise Refused(int(head.split(b" ", 2)[1])) from None
        return connection, b"permessage-deflate" in head.lower()
