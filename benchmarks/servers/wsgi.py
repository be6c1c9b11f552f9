"""Flask echoes behind a WSGI server: this package's three kinds of handler, and flask-sock's."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock  # type: ignore[import-untyped]  # has no types

from watershed_mw import AsyncConnection, ThreadConnection
from watershed_mw.flask import Shed

blocking, background, asynchronous, flask_sock = (
    Flask(name) for name in ("blocking", "background", "asynchronous", "flask_sock")
)


@Shed(blocking).route("/")
def in_the_request(conn: ThreadConnection) -> None:
    for message in conn:
        conn.send(message)


@Shed(background).route("/")
def in_the_background(conn: ThreadConnection) -> None:
    conn.on("text", conn.send)
    conn.on("binary", conn.send)
    conn.run_in_background()


@Shed(asynchronous).route("/")
async def as_a_coroutine(conn: AsyncConnection) -> None:
    async for message in conn:
        await conn.send(message)


@Sock(flask_sock).route("/")  # type: ignore[untyped-decorator]  # has no types
def theirs(socket: Any) -> None:
    while True:
        socket.send(socket.receive())
