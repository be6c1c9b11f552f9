"""The same Flask echo for each contestant, for gunicorn."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock  # type: ignore[import-untyped]

from watershed_mw import AsyncConnection, ThreadConnection
from watershed_mw.flask import Shed

flask_sock = Flask(__name__)
sock = Sock(flask_sock)

ours = Flask(__name__)
shed = Shed(ours, compression=False)


@sock.route("/blocking")  # type: ignore[untyped-decorator]
def theirs(socket: Any) -> None:
    while True:
        socket.send(socket.receive())


@shed.route("/blocking")
def blocking(connection: ThreadConnection) -> None:
    for message in connection:
        connection.send(message)


@shed.route("/background")
def background(connection: ThreadConnection) -> None:
    connection.on("text", connection.send)
    connection.run_in_background()


@shed.route("/async")
async def asynchronous(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)
