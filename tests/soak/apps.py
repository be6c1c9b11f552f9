"""What the soaked servers serve: echoes behind each door, proxies, and a page that says what the process holds.

``FAULT`` in the environment plants one fault of a kind that the soak must find (see test_soak.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from watershed_mw import AsyncConnection, ConnectionClosed, WatershedASGI, WatershedConnection, WatershedWSGI
from watershed_mw.proxy import WebSocketProxy

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]

FAULT = os.environ.get("FAULT", "")
UPSTREAM = os.environ.get("UPSTREAM", "ws://127.0.0.1:9")
OPTIONS: dict[str, Any] = {"origins": "*"}
# A message that asks for the server's Close instead of an echo.
END = "end now"
_kept: list[Any] = []
_echoed = itertools.count(1)


def holdings(tasks: int) -> bytes:
    """Everything that this process holds and that only it can count, after collecting garbage."""
    gc.collect()
    if sys.platform == "linux":
        # What is free goes back to the kernel, so that the resident set is what is held.
        ctypes.CDLL(None).malloc_trim(0)
    connections = sum(isinstance(thing, WatershedConnection) for thing in gc.get_objects())
    return json.dumps({"pid": os.getpid(), "tasks": tasks, "connections": connections}).encode()


def fault(message: str | bytes) -> str | bytes | None:
    """The reply to a message: the message itself, unless a fault is injected."""
    number = next(_echoed)
    if FAULT == "memory":
        _kept.append(bytearray(20_000))
    elif FAULT == "descriptor" and number % 50 == 0:
        _kept.append(os.open(os.devnull, os.O_RDONLY))
    elif FAULT == "thread" and number % 50 == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif FAULT == "task" and number % 50 == 0:
        _kept.append(asyncio.ensure_future(asyncio.sleep(3600)))
    elif FAULT == "lost" and number % 500 == 0:
        return None
    elif FAULT == "changed" and number % 500 == 0:
        return message[:-1] or b"something else"
    return message


def keep(connection: Any) -> None:
    """Keep an ended connection alive, if that is the injected fault."""
    if FAULT == "connection":
        _kept.append(connection)


# --- ASGI --------------------------------------------------------------------------------------------------------


async def _page(send: Send) -> None:
    body = holdings(len(asyncio.all_tasks()))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """An echo with ASGI messages."""
    if scope["type"] != "websocket":
        return await (_page(send) if scope["type"] == "http" else _lifespan(receive, send))
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        text = event.get("text")
        if text == END:
            await send({"type": "websocket.close", "code": 4001})
            return None
        message = fault(event["bytes"] if text is None else text)
        if message is not None:
            await send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
    return None


async def _native(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        return await (_page(send) if scope["type"] == "http" else _lifespan(receive, send))
    await echo(await scope["watershed"].accept())
    return None


async def echo(connection: AsyncConnection) -> None:
    """An echo on a connection."""
    keep(connection)
    async for message in connection:
        if message == END:
            await connection.end(code=4001)
            return
        if (answer := fault(message)) is not None:
            await connection.send(answer)


native = WatershedASGI(_native, **OPTIONS)
_proxy = WebSocketProxy(UPSTREAM, origins="*")


async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
    """A proxy to the upstream."""
    if scope["type"] != "websocket":
        return await (_page(send) if scope["type"] == "http" else _lifespan(receive, send))
    await _proxy(scope, receive, send)
    return None


# --- WSGI --------------------------------------------------------------------------------------------------------


def _views(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    upgrade = environ.get("watershed")
    if upgrade is None:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [holdings(0)]
    connection = upgrade.accept()
    keep(connection)
    if environ["PATH_INFO"] == "/async":
        connection.run_in_background(echo)
    elif environ["PATH_INFO"] == "/background":

        def handle(message: str | bytes) -> None:
            if message == END:
                connection.end(code=4001)
            elif (answer := fault(message)) is not None:
                connection.send(answer)

        connection.on("text", handle)
        connection.on("binary", handle)
        connection.run_in_background()
    else:
        try:
            for message in connection:
                if message == END:
                    connection.end(code=4001)
                    break
                if (answer := fault(message)) is not None:
                    connection.send(answer)
        except ConnectionClosed:
            pass
    return []


wsgi = WatershedWSGI(_views, **OPTIONS)


def proxied_wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A proxy to the upstream."""
    if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
        answer: Iterable[bytes] = _proxy(environ, start_response)
        return answer
    start_response("200 OK", [("Content-Type", "application/json")])
    return [holdings(0)]


def _serve(kind: str) -> None:
    """Run a server that has no command of its own, or whose command does not support port 0."""
    say = partial(print, "listening on http://127.0.0.1:", sep="", flush=True)
    if kind == "werkzeug":
        server = import_module("werkzeug.serving").make_server("127.0.0.1", 0, wsgi, threaded=True)
        say(server.port)
        server.serve_forever()
    elif kind == "waitress":
        server = import_module("waitress").create_server(wsgi, host="127.0.0.1", port=0, threads=16)
        say(server.effective_port)
        server.run()
    else:
        server = import_module("cheroot.wsgi").Server(("127.0.0.1", 0), wsgi, numthreads=16)
        server.prepare()
        say(server.bind_addr[1])
        server.serve()


if __name__ == "__main__":
    _serve(sys.argv[1])
