"""Rooms of a chat in a Flask application, behind a login: python examples/flask_rooms.py [port].

GET /login?name=ann sets a cookie; ws://.../rooms/{room} then lets in whoever has it. What one member sends, all members
of the room get; not one of them holds a thread.
"""

import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable

from flask import Flask, request, session
from flask.typing import ResponseReturnValue

from watershed_mw import AsyncConnection, ConnectionClosed
from watershed_mw.flask import Shed

app = Flask(__name__)
app.secret_key = "change me"
shed = Shed(app)
rooms: defaultdict[str, set[AsyncConnection]] = defaultdict(set)


def tell(room: str, text: str) -> None:
    for member in list(rooms[room]):
        try:
            member.send(text)  # not awaited: whoever reads slowly delays nobody else
        except ConnectionClosed:
            pass  # it is just leaving


@app.get("/login")
def login() -> str:
    session["name"] = request.args["name"]
    return "welcome"


@shed.route("/rooms/<room>", accept=False)
def chat(room: str) -> ResponseReturnValue | Callable[[AsyncConnection], Awaitable[None]]:
    name = session.get("name")
    if name is None:
        return "log in first: /login?name=...\n", 401

    async def talk(conn: AsyncConnection) -> None:
        rooms[room].add(conn)
        tell(room, f"{name} has come")
        try:
            async for message in conn:
                if isinstance(message, str):
                    tell(room, f"{name}: {message}")
        finally:
            rooms[room].discard(conn)
            tell(room, f"{name} has left")

    return talk


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
