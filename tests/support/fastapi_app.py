"""The FastAPI application of the browser test, as a program: it serves its page and prints its address.

Started as `python tests/support/fastapi_app.py`; it ends at SIGTERM. The page sets a session cookie before it opens a
WebSocket, and what the WebSocket echoes of it shows that the browser brought it along.
"""

from __future__ import annotations

import socket
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse

from watershed_mw import AsyncConnection, WatershedASGI
from watershed_mw.fastapi import Accepted

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>WebSockets under FastAPI</title><link rel="icon" href="data:,">
<h1>Hello</h1></html>
"""

app = FastAPI()
app.add_middleware(WatershedASGI)
app.add_middleware(SessionMiddleware, secret_key="of a test")

Connection = Annotated[AsyncConnection, Depends(Accepted(["echo.v2", "echo.v1"]))]


def user(request: HTTPConnection) -> str:
    """Visitors who have loaded the page; only they may connect."""
    name: str | None = request.session.get("name")
    if name is None:
        raise HTTPException(401, "visit the page first")
    return name


@app.get("/")
async def page(request: Request) -> HTMLResponse:
    request.session["name"] = "ann"
    return HTMLResponse(PAGE)


@app.websocket("/echo")
async def echo(name: Annotated[str, Depends(user)], conn: Connection) -> None:
    """Greet, then echo until told to close or to fail."""
    await conn.send(f"hello {name}")
    async for message in conn:
        if message == "!close":
            await conn.end("as you wish", code=4321)
        elif message == "!raise":
            raise LookupError("a secret of the server's")
        else:
            await conn.send(message)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, ws="watershed_mw.uvicorn:WatershedProtocol", log_level="warning")
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
