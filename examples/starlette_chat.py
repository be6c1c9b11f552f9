"""Chat rooms in Starlette, behind a login: python examples/starlette_chat.py [port].

GET /login?name=ann sets a cookie; ws://.../rooms/{room} then lets the user in. Every message goes to
all members of the room.
"""

import sys
from collections import defaultdict

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from watershed_mw import AsyncConnection, ConnectionClosed
from watershed_mw.asgi import ASGIUpgrade
from watershed_mw.starlette import WatershedRoute

rooms: defaultdict[str, set[AsyncConnection]] = defaultdict(set)


def announce(room: str, text: str) -> None:
    for member in list(rooms[room]):
        try:
            member.send(text)  # not awaited, so a slow reader does not delay the others
        except ConnectionClosed:
            pass  # this member is disconnecting


async def login(request: Request) -> PlainTextResponse:
    request.session["name"] = request.query_params["name"]
    return PlainTextResponse("welcome")


async def chat(request: HTTPConnection, upgrade: ASGIUpgrade) -> None:
    name, room = request.session.get("name"), request.path_params["room"]
    if name is None:
        await upgrade.reject(401, b"log in first: /login?name=...\n")
        return
    conn = await upgrade.accept()
    rooms[room].add(conn)
    announce(room, f"{name} joined")
    try:
        async for message in conn:
            if isinstance(message, str):
                announce(room, f"{name}: {message}")
    finally:
        rooms[room].discard(conn)
        announce(room, f"{name} left")


app = Starlette(
    routes=[Route("/login", login), WatershedRoute("/rooms/{room}", chat, accept=False, max_message_size=4096)],
    middleware=[Middleware(SessionMiddleware, secret_key="only an example")],
)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
