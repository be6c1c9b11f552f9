"""Chat rooms in Flask, behind a login, with a page: python examples/flask_rooms.py [port].

GET /login?name=ann sets a cookie; ws://.../rooms/{room} then lets the user in. Every message goes to
all members of the room. Connections occupy no thread.
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
PAGE = """<!doctype html><meta charset="utf-8"><title>rooms</title>
<form id="form"><input id="text" placeholder="your name" autofocus autocomplete="off"></form><ul id="talk"></ul>
<script>
  let socket
  form.onsubmit = async event => {
    event.preventDefault()
    const words = text.value
    text.value = text.placeholder = ""
    if (socket) return socket.send(words)
    await fetch("/login?name=" + encodeURIComponent(words))
    socket = new WebSocket(`${location.origin.replace("http", "ws")}/rooms/${location.hash.slice(1) || "lobby"}`)
    const say = words => talk.appendChild(document.createElement("li")).textContent = words
    socket.onmessage = event => say(event.data)
    socket.onclose = event => say(`closed with ${event.code} ${event.reason}`)
  }
</script>
"""

rooms: defaultdict[str, set[AsyncConnection]] = defaultdict(set)


def announce(room: str, text: str) -> None:
    for member in list(rooms[room]):
        try:
            member.send(text)  # not awaited, so a slow reader does not delay the others
        except ConnectionClosed:
            pass  # this member is disconnecting


@app.get("/")
def page() -> str:
    return PAGE


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
        announce(room, f"{name} joined")
        try:
            async for message in conn:
                if isinstance(message, str):
                    announce(room, f"{name}: {message}")
        finally:
            rooms[room].discard(conn)
            announce(room, f"{name} left")

    return talk


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
