"""How often one echo changes file, and how many files of the package it touches: a measure of how easily it is read.

    WATERSHED_MW_PURE=1 python -m tests.tools.file_changes [--way]

Counts with ``sys.setprofile`` on the interpreted build, in the thread that does the work: a change is a call from one
of the package's files into another, or into one of them from outside. A coroutine that goes on is called by whoever
resumes it. A warm-up comes first, so that nothing is counted that happens once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

import watershed_mw
from watershed_mw import WatershedWSGI
from watershed_mw.client import connect
from watershed_mw.core.frames.codec import encode_frame
from watershed_mw.core.handshake.negotiation import accept_key

PACKAGE = str(Path(watershed_mw.__file__).parent) + os.sep
KEY = b"\x01\x02\x03\x04"
LIMIT = 10.0


@dataclass
class Counter:
    """The package's files that the profiled thread has run, in order."""

    way: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    _stack: list[str] = field(default_factory=list)
    _last: str = ""

    def profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        """The callback for :func:`sys.setprofile`."""
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE):
            return
        if event == "call":
            if name != (self._stack[-1] if self._stack else self._last):
                self.way.append(name)
                self.calls.append(frame.f_code.co_name)
            self._stack.append(name)
        elif event == "return" and self._stack:
            self._last = self._stack.pop()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the calls of this thread."""
        sys.setprofile(self.profile)
        try:
            yield
        finally:
            sys.setprofile(None)

    def line(self, what: str, way: bool) -> str:
        """The result, as a line of text."""
        short = [name.removeprefix(PACKAGE) for name in self.way]
        text = f"{what}: {len(short)} changes of file, {len(set(short))} files"
        calls = [f"{name}: {call}" for name, call in zip(short, self.calls, strict=True)]
        return "\n    ".join([text, *(calls if way else [])])


# --- the three echoes --------------------------------------------------------------------------------------------


def _on_loop(loop: asyncio.AbstractEventLoop, profile: Any) -> None:
    """Set the profile function of the thread that runs ``loop``."""
    done = threading.Event()

    def switch() -> None:
        sys.setprofile(profile)
        done.set()

    loop.call_soon_threadsafe(switch)
    done.wait(LIMIT)


def _echo_by_hand(sock: socket.socket, count: int) -> None:
    for number in range(count):
        text = b"message %d" % number
        sock.sendall(encode_frame(1, text, KEY))
        data = b""
        while len(data) < len(text) + 2:
            data += sock.recv(4096)


def _upgraded(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), LIMIT)
    sock.sendall(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    assert b" 101 " in head, head
    return sock


async def _asgi_echo(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


def asgi() -> Counter:
    """One echo of an ASGI application under uvicorn."""
    listener = socket.create_server(("127.0.0.1", 0))
    loops: list[asyncio.AbstractEventLoop] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await _asgi_echo(scope, receive, send)

    config = uvicorn.Config(
        app, ws="watershed_mw.uvicorn:WatershedProtocol", loop="asyncio", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    counter = Counter()
    with _upgraded(listener.getsockname()[1]) as sock:
        _echo_by_hand(sock, 3)
        _on_loop(loops[0], counter.profile)
        _echo_by_hand(sock, 1)
        _on_loop(loops[0], None)
    server.should_exit = True
    thread.join(LIMIT)
    return counter


def wsgi() -> Counter:
    """One echo of a WSGI application whose connection is in the background."""
    from werkzeug.serving import make_server

    from watershed_mw.runtime.loop_thread import background_loop

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    def app(environ: Any, start_response: Any) -> Any:
        upgrade = environ["watershed"]
        upgrade.accept().run_in_background(echo)
        return []

    server = make_server("127.0.0.1", 0, WatershedWSGI(app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    counter = Counter()
    with _upgraded(server.server_port) as sock:
        _echo_by_hand(sock, 3)
        loop = background_loop()[0]
        _on_loop(loop, counter.profile)
        _echo_by_hand(sock, 1)
        _on_loop(loop, None)
    server.shutdown()
    thread.join(LIMIT)
    return counter


def _serve(listener: socket.socket, connections: int) -> None:
    for _ in range(connections):
        _serve_one(listener.accept()[0])


def _serve_one(sock: socket.socket) -> None:
    with sock:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        key = head[head.lower().index(b"sec-websocket-key:") + 18 :].strip()[:24]
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
        )
        while data := sock.recv(4096):
            size = data[1] & 0x7F
            payload = bytes(byte ^ data[2 + index % 4] for index, byte in enumerate(data[6 : 6 + size]))
            sock.sendall(encode_frame(data[0] & 0xF, payload, None))


def client() -> tuple[Counter, Counter]:
    """``connect``, and one echo of the client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, 2), daemon=True)
        opening, echo = Counter(), Counter()

        async def run(listener: socket.socket) -> None:
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
            first = await connect(url, compression=False)  # what is imported and made once is not counted
            await first.end()
            await first.wait_closed()
            with opening.counting():
                connection = await connect(url, compression=False)
            for _ in range(3):
                await connection.send("warm")
                await connection.receive()
            with echo.counting():
                await connection.send("text")
                await connection.receive()
            connection.destroy()

        thread.start()
        asyncio.run(run(listener))
        thread.join(LIMIT)
    return opening, echo


def main() -> None:
    """Print the counts; with ``--way`` also the calls."""
    way = "--way" in sys.argv[1:]
    assert watershed_mw.implementation == "interpreted", "set WATERSHED_MW_PURE=1: compiled code cannot be followed"
    print(asgi().line("an echo under uvicorn (ASGI application)", way))
    print(wsgi().line("an echo in the background (WSGI application)", way))
    opening, echo = client()
    print(opening.line("client.connect", way))
    print(echo.line("an echo of the client", way))


if __name__ == "__main__":
    main()
