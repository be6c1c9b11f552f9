"""The pages on clients and on proxy mode, executed: every Python block of clients.md and proxy.md, and their tables.

Clients in the blocks use port 8000, proxies an upstream on port 8888; both are replaced by ports of servers that run
here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
import websockets.asyncio.client

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send
from tests.support.pages import Block, blocks, tables
from tests.support.peers import Peer, dial, head
from tests.support.threaded_servers import Uvicorn, Werkzeug
from tests.support.waiting import eventually
from watershed_mw import WatershedASGI
from watershed_mw.client import Backoff, connect, worth_retrying
from watershed_mw.options import Settings
from watershed_mw.proxy import WebSocketProxy

PAGES = ("clients.md", "proxy.md")
PYTHON = [block for block in blocks() if block.language == "python" and block.page.name in PAGES]


class Seen:
    """An echo server that records its requests. It returns a cookie at /chat, closes at /ends and refuses /secret."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.ends = iter([(1012, "again"), (4000, "again"), (4001, "no more")])
        self.server = Uvicorn(WatershedASGI(self.app, protocols=["chat.v1"], origins="*"))

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"name=ann")]})
            await send({"type": "http.response.body"})
            return
        self.scopes.append(scope)
        upgrade = scope["watershed"].through(receive, send)
        if scope["path"] == "/secret":
            await upgrade.reject(401, b"log in first")
            return
        conn = await upgrade.accept()
        if scope["path"] == "/ends":
            code, reason = next(self.ends)
            await conn.send(f"message {code}")
            await conn.end(reason, code=code)
        if scope["path"] == "/chat":
            await conn.send(self.field("cookie"))
        async for message in conn:
            await conn.send(message)

    @property
    def port(self) -> int:
        return self.server.port

    def field(self, name: str) -> str:
        """A header field of the last request."""
        return str(dict(self.scopes[-1]["headers"]).get(name.encode(), b""), "latin-1")

    @property
    def target(self) -> str:
        """The target of the last request."""
        scope = self.scopes[-1]
        query = scope["query_string"].decode()
        return str(scope["raw_path"], "ascii") + (f"?{query}" if query else "")


@pytest.fixture(scope="module")
def running() -> Iterator[Seen]:
    seen = Seen()
    with seen.server:
        yield seen


@pytest.fixture
def seen(running: Seen) -> Seen:
    running.scopes.clear()
    return running


def module(block: Block, seen: Seen) -> ModuleType:
    """The block, executed with the port of the server that runs here."""
    return dataclasses.replace(block, code=re.sub(r"\b(8000|8888)\b", str(seen.port), block.code)).module()


# --- clients.md --------------------------------------------------------------------------------------------------


def with_asyncio(block: Block, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    module(block, seen)
    assert capsys.readouterr().out == "chat.v1 hello\n"


with_threads = from_a_response = with_asyncio


def errors(block: Block, seen: Seen) -> None:
    first_message = module(block, seen).first_message
    url = f"ws://127.0.0.1:{seen.port}"
    assert first_message(f"{url}/chat") == "got ''"
    assert first_message(f"{url}/secret") == "refused with 401: log in first"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert first_message(f"ws://127.0.0.1:{port}/").startswith("cannot connect: [Errno")
    with Uvicorn(WatershedASGI(_leave)) as server:
        assert first_message(f"ws://127.0.0.1:{server.port}/") == "closed with 4001 no more"


async def _leave(scope: Scope, receive: Receive, send: Send) -> None:
    conn = await scope["watershed"].through(receive, send).accept()
    await conn.end("no more", code=4001)


def ways(block: Block, seen: Seen) -> None:
    assert len(module(block, seen).ways) == 4


def reconnecting(block: Block, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    follow = module(block, seen).follow
    asyncio.run(asyncio.wait_for(follow(f"ws://127.0.0.1:{seen.port}/ends"), LIMIT))
    assert capsys.readouterr().out.split("\n")[:-1] == ["message 1012", "message 4000", "message 4001"]


def by_httpx(block: Block, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    module(block, seen)
    assert capsys.readouterr().out == "name=ann\n"


# --- proxy.md ----------------------------------------------------------------------------------------------------


def echoes(port: int, path: str, **options: Any) -> None:
    with dial(port, path, **options) as client:
        client.send("hi")
        assert client.recv(LIMIT) == "hi"


def refusal(port: int, path: str, **fields: str) -> tuple[int, str]:
    with Peer(port) as peer:
        peer.send(head(path, **fields))
        answer = peer.refusal()
        return answer.status, answer.body.decode()


def cookie_of(url: str) -> str:
    return httpx.get(url).headers["set-cookie"].partition(";")[0]


def mounted_in_starlette(block: Block, seen: Seen) -> None:
    with Uvicorn(module(block, seen).app) as server:
        echoes(server.port, "/notebook/api/kernels", protocols=["chat.v1"])
        assert seen.target == "/api/kernels"
        assert refusal(server.port, "/notebook/secret") == (401, "log in first")
        assert httpx.get(f"http://127.0.0.1:{server.port}/notebook/").status_code == 426


def mounted_in_flask(block: Block, seen: Seen) -> None:
    with Werkzeug(module(block, seen).app) as server:
        echoes(server.port, "/notebook/api/kernels", protocols=["chat.v1"])
        assert seen.target == "/api/kernels"
        assert refusal(server.port, "/notebook/secret") == (401, "log in first")
        assert httpx.get(f"http://127.0.0.1:{server.port}/notebook/").status_code == 426
        assert server.troubles == []


def behind_starlette(block: Block, seen: Seen) -> None:
    with Uvicorn(module(block, seen).app) as server:
        page = f"http://127.0.0.1:{server.port}"
        assert refusal(server.port, "/notebook/a") == (401, "log in first\n")
        assert refusal(server.port, "/notebook/a", Cookie=cookie_of(f"{page}/login?name=eve"))[0] == 404
        cookie = cookie_of(f"{page}/login?name=ann")
        assert refusal(server.port, "/notebook/a", Cookie=cookie, Origin="http://elsewhere.example")[0] == 403
        fields = {"Cookie": cookie, "X-User": "root"}
        echoes(server.port, "/notebook/a", additional_headers=fields, origin=page)
        assert (seen.target, seen.field("x-user"), seen.field("cookie")) == ("/a", "ann", "")


def behind_fastapi(block: Block, seen: Seen) -> None:
    with Uvicorn(module(block, seen).app) as server:
        assert refusal(server.port, "/notebook/a") == (401, '{"detail":"this token is not valid"}')
        fields = {"Authorization": "Bearer ann's token"}
        assert refusal(server.port, "/notebook/a", **fields, Origin="http://elsewhere.example")[0] == 403
        echoes(server.port, "/notebook/a", additional_headers=fields)
        assert (seen.target, seen.field("authorization")) == ("/a", "")


def behind_flask(block: Block, seen: Seen) -> None:
    with Werkzeug(module(block, seen).app) as server:
        page = f"http://127.0.0.1:{server.port}"
        assert refusal(server.port, "/notebook/a") == (401, "log in first\n")
        assert refusal(server.port, "/notebook/a", Cookie=cookie_of(f"{page}/login/eve"))[0] == 404
        cookie = cookie_of(f"{page}/login/ann")
        assert refusal(server.port, "/notebook/a", Cookie=cookie, Origin="http://elsewhere.example")[0] == 403
        assert refusal(server.port, "/notebook/secret", Cookie=cookie) == (401, "log in first")
        echoes(server.port, "/notebook/a", additional_headers={"Cookie": cookie, "X-User": "root"}, origin=page)
        assert (seen.target, seen.field("x-user"), seen.field("cookie")) == ("/a", "ann", "")
        assert server.troubles == []


def relayed(block: Block, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    with module(block, seen).server(0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            echoes(server.server_port, "/")
            # Six bytes of header and mask, two of a Close's code.
            eventually(lambda: "both ends 16 8\n" in capsys.readouterr().out, "the relay's result")
        finally:
            server.shutdown()
            thread.join(LIMIT)


TESTS: dict[str, Callable[..., None]] = {
    "with_threads": with_threads,
    "from_a_response": from_a_response,
    **{
        test.__name__: test
        for test in (
            *(with_asyncio, errors, ways, reconnecting, by_httpx, mounted_in_starlette, mounted_in_flask),
            *(behind_starlette, behind_fastapi, behind_flask, relayed),
        )
    },
}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(block: Block, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert block.name in TESTS, f"{block} names no test of TESTS: put <!-- test: name --> in front of it"
    test = TESTS[block.name]
    known = {"block": block, "seen": seen, "capsys": capsys}
    test(**{name: known[name] for name in inspect.signature(test).parameters})


def test_every_block_test_has_its_block() -> None:
    assert {block.name for block in PYTHON} == set(TESTS)


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", tables("compare")["proxy_paths"], ids=lambda row: f"{row[0]} {row[1]}")
def test_paths_match_the_table(row: list[str], seen: Seen) -> None:
    upstream, prefix, target = (cell.strip("`") for cell in row)
    proxy = WebSocketProxy(upstream.replace("HOST", f"127.0.0.1:{seen.port}"), strip_prefix=eval(prefix))
    with Uvicorn(proxy, root_path="/notebook") as server:
        # uvicorn puts its root_path in front of what the client asks for.
        echoes(server.port, "/a%20b?x=1")
    assert seen.target == target


@pytest.mark.parametrize("row", tables("compare")["client"], ids=lambda row: row[1])
def test_both_columns_send_the_same_request(row: list[str], seen: Seen) -> None:
    """The server's view of websockets' connect and of ours."""
    url = f"ws://127.0.0.1:{seen.port}/echo"
    left, right = (cell.strip("`") for cell in row)
    asyncio.run(asyncio.wait_for(_both(left, right, url), LIMIT))
    theirs, ours = ({name.decode(): value for name, value in scope["headers"]} for scope in seen.scopes)
    named = {"sec-websocket-protocol", "x-a", "origin", "authorization"}
    if "compression" in left:
        named.add("sec-websocket-extensions")
    if "user_agent" in left:
        named.add("user-agent")
    assert {name: theirs.get(name) for name in named} == {name: ours.get(name) for name in named}
    assert seen.scopes[0]["path"] == seen.scopes[1]["path"]


async def _both(left: str, right: str, url: str) -> None:
    async with eval(left, {"connect": websockets.asyncio.client.connect, "url": url}) as theirs:
        await theirs.send("hi")
        assert await theirs.recv() == "hi"
    async with eval(right, {"connect": connect, "url": url}) as ours:
        await ours.send("hi")
        assert await ours.receive() == "hi"
        assert ours.protocol == theirs.subprotocol


def _number(shown: str) -> float | None:
    """`16 MiB` as a number, None for `none`."""
    if shown == "none":
        return None
    number, _, unit = shown.partition(" ")
    return float(number.replace(",", "")) * {"": 1, "s": 1, "MiB": 2**20}[unit]


def test_the_options_table_matches_connect() -> None:
    parameters = inspect.signature(connect).parameters
    rows = {name: shown for cell, shown, _ in tables("names")["connect"] for name in re.findall(r"`(\w+)`", cell)}
    assert set(rows) == set(parameters) - {"url", "options"}
    for name in ("open_timeout", "max_redirects"):
        assert _number(rows[name]) == parameters[name].default
    assert parameters["proxy"].default is True
    assert parameters["retry"].default is worth_retrying
    assert (Backoff().initial, Backoff().factor, Backoff().maximum) == (1, 2, 60)


def test_the_limits_table_matches_the_proxy() -> None:
    parameters = inspect.signature(WebSocketProxy).parameters
    for cell, shown, _ in tables("names")["proxy"]:
        assert parameters[cell.strip("`")].default == _number(shown), cell
    assert parameters["max_message_size"].default == Settings.of({}).limits.max_message_size


def test_documented_log_lines_match_the_proxy(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    [shown] = [block.code for block in blocks() if block.page.name == "proxy.md" and block.language == "text"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    ports = {"/notebook/a": seen.port, "/notebook/b": nobody}
    caplog.set_level(logging.INFO, "watershed_mw.proxy")
    proxy = WebSocketProxy(lambda request: f"ws://127.0.0.1:{ports[request.path]}", strip_prefix="/notebook")
    with Uvicorn(proxy) as server:
        echoes(server.port, "/notebook/a?token=secret")
        assert refusal(server.port, "/notebook/b")[0] == 502
    lines = [message for name, _, message in caplog.record_tuples if name == "watershed_mw.proxy"]
    for port, example in ((seen.port, "8888"), (nobody, "8889")):
        lines = [line.replace(str(port), example) for line in lines]
    assert set(shown.splitlines()) <= set(lines)
    assert not any("secret" in line for line in lines)


def test_an_application_header_replaces_the_clients(seen: Seen) -> None:
    with Uvicorn(WebSocketProxy(f"ws://127.0.0.1:{seen.port}", headers={"X-User": "ann"}, keep_host=False)) as server:
        fields = {"X-User": "root", "TE": "trailers", "X-Forwarded-Host": "claimed", "Forwarded": "for=claimed"}
        fields |= {"X_User": "root", "X_Forwarded_Host": "claimed"}  # which a WSGI server calls by the same names
        echoes(server.port, "/", additional_headers=fields)
    assert (seen.field("x-user"), seen.field("te")) == ("ann", "")
    assert (seen.field("x_user"), seen.field("x_forwarded_host")) == ("", "")
    assert seen.field("host") == f"127.0.0.1:{seen.port}"
    assert seen.field("x-forwarded-host") == f"127.0.0.1:{server.port}"
    assert seen.field("forwarded").startswith("for=claimed, for=127.0.0.1;")
