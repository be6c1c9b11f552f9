"""A notebook server per user behind one login, in Starlette: python examples/starlette_notebooks.py [port].

GET /login?name=ann sets a cookie (also for bob, and for eve, who has no server); ws://.../notebook/ then leads to that
user's server. The proxy relays bytes without parsing messages.
"""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from watershed_mw import HandshakeError, Watershed
from watershed_mw.proxy import ProxyRequest, WebSocketProxy

notebooks: dict[str, str] = {}  # the URL of each user's server
shed = Watershed()


async def start_notebook(owner: str) -> asyncio.Server:
    """Start a user's server, which numbers the cells that it receives."""
    numbers = itertools.count(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            conn = shed.accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer))
        except (HandshakeError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()
            return
        async for cell in conn:
            await conn.send(f"{owner}[{next(numbers)}]: {cell!s}")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    notebooks[owner] = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return server


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with await start_notebook("ann"), await start_notebook("bob"):
        yield


async def login(request: Request) -> PlainTextResponse:
    request.session["name"] = request.query_params["name"]
    return PlainTextResponse("welcome")


def upstream_of(request: ProxyRequest) -> str | None:
    assert request.scope is not None
    name = request.scope["session"].get("name")
    if name is None:
        raise HandshakeError("log in first: /login?name=...", status=401)
    return notebooks.get(name)  # None becomes a 404


app = Starlette(
    # The session cookie is not meant for the upstream.
    routes=[Route("/login", login), Mount("/notebook", WebSocketProxy(upstream_of, drop_headers=["cookie"]))],
    middleware=[Middleware(SessionMiddleware, secret_key="only an example")],
    lifespan=lifespan,
)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
