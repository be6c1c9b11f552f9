"""The application that every server of the matrix runs: half of it plain ASGI, half behind WatershedASGI.

What it sees, it prints as a line `SAW {json}`.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from watershed_mw import AsyncConnection, ConnectionClosed, UnsupportedServerError, WatershedASGI

from .support import Receive, Scope, Send


def saw(**facts: Any) -> None:
    print("SAW", json.dumps(facts, sort_keys=True), flush=True)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "http":
        assert "watershed" not in scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"an ordinary page"})
    elif scope["path"].removeprefix(scope.get("root_path", "")).startswith("/plain/"):
        await plain(scope, receive, send)
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


# --- an application that has never heard of this package -----------------------------------------------------


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
    if path == "scope":
        facts = {name: scope[name] for name in ("scheme", "client", "root_path", "path")}
        facts["state"] = dict(scope.get("state", {}))
        await send({"type": "websocket.send", "text": json.dumps(facts)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    saw(code=message["code"], reason=message.get("reason"))


# --- an application behind WatershedASGI ---------------------------------------------------------------------


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
            raw.settimeout(5)
            raw.sendall(b"raw " + raw.recv(100))
        return
    if path == "headers":
        try:
            await upgrade.accept(headers=[("x-app", "yes")])
        except UnsupportedServerError as error:
            saw(unsupported=str(error))
            await upgrade.accept()
        return
    if path == "settings":  # the server's own hold
        connection = await upgrade.accept()
    else:
        connection = await upgrade.accept(["chat.v2", "chat.v1"], max_message_size=100_000)
    try:
        await _HANDLERS.get(path, echo)(connection)
    finally:
        saw(path=path, code=connection.close_code, reason=connection.close_reason)


async def echo(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def push(connection: AsyncConnection) -> None:
    connection.on("text", connection.send)
    connection.on("binary", connection.send)
    connection.on("end", lambda code, reason: saw(end=code))
    await connection.run()


async def frames(connection: AsyncConnection) -> None:
    """Tell of PINGs and PONGs, where the server lets them through."""
    try:
        connection.on("ping", lambda data: connection.send(f"ping {data.decode()}"))
        connection.on("pong", lambda data: connection.send(f"pong {data.decode()}"))
        await connection.ping(b"ours")
    except UnsupportedServerError as error:
        await connection.send(str(error))
    connection.on("text", connection.send)
    await connection.run()


async def close(connection: AsyncConnection) -> None:
    await connection.send("x" * 200_000)
    await connection.end("bye", code=4001)


async def raises(connection: AsyncConnection) -> None:
    await connection.send("so far")
    raise LookupError("secret")


async def ticks(connection: AsyncConnection) -> None:
    """Only send; nobody here ever receives."""
    try:
        while True:
            await connection.send("tick")
    except ConnectionClosed:
        saw(ticks="ended")
        raise


_HANDLERS = {"push": push, "frames": frames, "close": close, "raise": raises, "ticks": ticks}
native = WatershedASGI(upgraded)
