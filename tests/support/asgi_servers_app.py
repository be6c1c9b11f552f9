"""The application that every server of the matrix runs: some plain ASGI and Starlette, some behind WatershedASGI.

It prints everything that it sees as a line `SAW {json}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support import LIMIT
from watershed_mw import AsyncConnection, ConnectionClosed, UnsupportedServerError, WatershedASGI
from watershed_mw.starlette import WatershedRoute

if TYPE_CHECKING:
    # Imported only by tests: in a server's process no other package may look like the server.
    from tests.support.asgi import Receive, Scope, Send

PROTOCOLS = ["chat.v2", "chat.v1"]


def saw(**facts: Any) -> None:
    # In one write, because another process of the server may print in between.
    print(f"SAW {json.dumps(facts, sort_keys=True)}\n", end="", flush=True)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    part = "" if scope["type"] == "lifespan" else scope["path"].removeprefix(scope.get("root_path", "")).split("/")[1]
    scope["channels"] = (receive, send)
    if part == "plain":
        await plain(scope, receive, send)
    elif part == "starlette":
        await site(scope, receive, send)
    else:
        await native(scope, receive, send)


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    if "state" in scope:
        scope["state"]["started"] = "yes"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    saw(lifespan="ended")
    await send({"type": "lifespan.shutdown.complete"})


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    body = json.dumps(scope.get("state")) if scope["path"] == "/state" else "an ordinary page"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


# --- an application that has never heard of this package -----------------------------------------------------

go_on = asyncio.Event()


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    path = scope["path"].rpartition("/")[2]
    if path == "deny":
        await send({"type": "websocket.http.response.start", "status": 402, "headers": [(b"x-app", b"yes")]})
        await send({"type": "websocket.http.response.body", "body": b"pay ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"first"})
        return
    protocol = next(iter(scope["subprotocols"]), None)
    await send({"type": "websocket.accept", "subprotocol": protocol, "headers": [(b"x-app", b"yes")]})
    if path == "close":
        await send({"type": "websocket.send", "text": "x" * 200_000})
        await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
    elif path == "scope":
        facts = {name: scope[name] for name in ("scheme", "client", "root_path", "path")}
        facts["state"] = dict(scope.get("state", {}))
        await send({"type": "websocket.send", "text": json.dumps(facts)})
    elif path == "process":
        await send({"type": "websocket.send", "text": str(os.getpid())})
    elif path == "stall":
        await go_on.wait()
    elif path == "go":
        go_on.set()
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    saw(path=scope["path"], code=message["code"], reason=message.get("reason"))


# --- the same in Starlette, and a route of ours beside it ----------------------------------------------------


async def unchanged(websocket: WebSocket) -> None:
    """A WebSocket endpoint in plain Starlette."""
    path = websocket.url.path
    if path.endswith("/deny"):
        await websocket.send_denial_response(PlainTextResponse("pay first", 402, headers={"x-app": "yes"}))
        return
    protocol = next(iter(websocket.scope["subprotocols"]), None)
    await websocket.accept(subprotocol=protocol, headers=[(b"x-app", b"yes")])
    if path.endswith("/close"):
        await websocket.send_text("x" * 200_000)
        await websocket.close(4001, "bye")
        return
    try:
        while True:
            if path.endswith("/bytes"):
                await websocket.send_bytes(await websocket.receive_bytes())
            else:
                await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as end:
        saw(path=path, code=end.code, reason=end.reason)


async def room(connection: AsyncConnection) -> None:
    """Greet with the room's name, then echo."""
    await connection.send(connection.request.path_params["name"])
    await told(connection, connection.request.url.path, echo)


site = Starlette(
    routes=[
        WatershedRoute("/starlette/rooms/{name}", room, protocols=PROTOCOLS),
        WebSocketRoute("/starlette/{rest}", unchanged),
    ]
)


# --- an application behind WatershedASGI ---------------------------------------------------------------------


async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await upgraded(scope, receive, send)
        return
    assert "watershed" not in scope
    assert scope["channels"] == (receive, send)
    await {"lifespan": lifespan, "http": page}[scope["type"]](scope, receive, send)


async def upgraded(scope: Scope, receive: Receive, send: Send) -> None:
    upgrade = scope["watershed"].through(receive, send)
    path = scope["path"].rpartition("/")[2]
    if path == "reject":
        await upgrade.reject(402, b"pay first", [("x-app", "yes")])
        return
    if path == "raise-before":
        raise LookupError("secret")
    if path == "detached":
        try:
            raw = await upgrade.accept(detached=True)
        except UnsupportedServerError as error:
            saw(unsupported=str(error))
            await upgrade.reject(501, b"no raw socket here")
            return
        assert isinstance(raw, socket.socket)
        with raw:
            raw.setblocking(True)
            raw.settimeout(LIMIT)
            raw.sendall(b"raw " + raw.recv(100))
        return
    if path == "headers":
        try:
            await upgrade.accept(headers=[("x-app", "yes")])
        except UnsupportedServerError as error:
            connection = await upgrade.accept()
            await connection.send(str(error))
        return
    if path == "settings":  # the server's own hold
        connection = await upgrade.accept()
    else:
        connection = await upgrade.accept(PROTOCOLS, max_message_size=100_000)
    await told(connection, scope["path"], _HANDLERS.get(path, echo))


async def told(connection: AsyncConnection, path: str, handler: Callable[[AsyncConnection], Any]) -> None:
    """Run a handler, and report its connection's end."""
    try:
        await handler(connection)
    finally:
        saw(path=path, code=connection.close_code, reason=connection.close_reason)


async def echo(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def leave(connection: AsyncConnection) -> None:
    """Raise the exception that the first message names, which does not derive from ``Exception``."""
    kinds = {kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, GeneratorExit)}
    raise kinds[str(await connection.receive())]


async def push(connection: AsyncConnection) -> None:
    connection.on("text", connection.send)
    connection.on("binary", connection.send)
    connection.on("end", lambda code, reason: saw(event="end", code=code, reason=reason))
    await connection.run()


async def frames(connection: AsyncConnection) -> None:
    """Report PINGs and PONGs."""
    connection.on("ping", lambda data: connection.send(f"ping {data.decode()}"))
    connection.on("pong", lambda data: connection.send(f"pong {data.decode()}"))
    await connection.ping(b"ours")
    await connection.run()


async def kept(connection: AsyncConnection) -> None:
    """Make every call that needs access to frames, and report each refusal."""
    for ask in (
        lambda: connection.ping(b"ours"),
        lambda: connection.on("ping", print),
        lambda: connection.on("pong", print),
        connection.destroy,
    ):
        try:
            ask()
        except UnsupportedServerError as error:
            await connection.send(str(error))


async def odd(connection: AsyncConnection) -> None:
    """Send an empty message and close with 1001; if the server cannot, report the error and close otherwise."""
    try:
        await connection.send("")
    except UnsupportedServerError as error:
        await connection.send(str(error))
    try:
        await connection.end("moved", code=1001)
    except UnsupportedServerError as error:
        await connection.send(str(error))
        await connection.end("moved", code=3001)


async def close(connection: AsyncConnection) -> None:
    await connection.send("x" * 200_000)
    await connection.end("bye", code=4001)


async def raises(connection: AsyncConnection) -> None:
    await connection.send("so far")
    raise LookupError("secret")


async def ticks(connection: AsyncConnection) -> None:
    """Only send, and never receive."""
    try:
        while True:
            await connection.send("tick")
    except ConnectionClosed:
        saw(ticks="ended")
        raise


_HANDLERS = {
    "push": push,
    "frames": frames,
    "kept": kept,
    "odd": odd,
    "close": close,
    "raise": raises,
    "leave": leave,
    "ticks": ticks,
}
native = WatershedASGI(wrapped)
