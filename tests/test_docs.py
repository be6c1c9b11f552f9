"""The pages of docs/, executed: every Python block is served and used, every command line is parsed.

Two proxies are real ones, with the documented configuration.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import logging
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocket
from uvicorn.main import main as uvicorn_cli
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection

import watershed_mw
from tests.support import LIMIT, PROJECT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.loops import LoopThread
from tests.support.pages import PYTHON, Block, blocks, commands, named, tables
from tests.support.peers import Peer, close, dial, head, ping, text
from tests.support.programs import Program, free_port, listens
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn
from tests.support.waiting import eventually
from watershed_mw import WatershedASGI
from watershed_mw.options import Options, Settings

# --- Python blocks -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(block: Block, **settings: Any) -> Iterator[int]:
    """The block's `app` under uvicorn with `WatershedProtocol`."""
    with Uvicorn(block.module().app, lifespan="auto", **settings) as server:
        yield server.port


def said(port: int, path: str, **options: Any) -> str:
    """The first message on a connection."""
    with dial(port, path, **options) as client:
        return str(client.recv(LIMIT))


def refusal(port: int, path: str, **fields: str) -> tuple[int, str]:
    with Peer(port) as peer:
        peer.send(head(path, **fields))
        answer = peer.refusal()
        return answer.status, answer.body.decode()


def page(port: int, path: str, **fields: str) -> tuple[str, list[str]]:
    with Peer(port) as peer:
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{more}\r\n".encode())
        answer = peer.answer()
        assert answer.status == 200, answer
        return answer.body.decode(), answer.all("set-cookie")


def echoes(port: int, path: str) -> None:
    with dial(port, path) as client:
        client.send("hi")
        assert client.recv(LIMIT) == "hi"


def plain(block: Block) -> None:
    with served(block) as port:
        echoes(port, "/echo")


def subclass(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Uvicorn(plain_app(), ws=block.module().Sockets) as server, Peer(server.port) as peer:
        peer.open("/echo?shown=yes")
        eventually(lambda: any("/echo?shown=yes" in line for line in caplog.messages))
        peer.send(text("x") * 2000)  # the allowance grows by 200 a second: no machine is so slow that it suffices
        frame = peer.frame()
        while frame.opcode is Opcode.TEXT:
            frame = peer.frame()
        assert bytes(frame.data)[:2] == (1008).to_bytes(2, "big")


def plain_app() -> Any:
    return named("plain").module().app


def worker(block: Block, place: Path) -> None:
    (place / "main.py").write_text(named("plain").code)
    (place / "worker.py").write_text(block.code)
    port = free_port()
    gunicorn = Path(sys.executable).with_name("gunicorn")
    command = ("main:app", "-k", "worker.Worker", "-w", "1", "-b", f"127.0.0.1:{port}")
    with Program(gunicorn, *command, cwd=place) as program:
        eventually(lambda: listens(port))
        echoes(port, "/echo")
        program.wait_for_line(re.compile(r"\[closed 1000\] [\d.]+ s"))  # a line of our class alone


def routes(block: Block) -> None:
    with served(block) as port:
        assert page(port, "/")[0] == "an ordinary page"
        echoes(port, "/echo")
        assert said(port, "/rooms/lobby", protocols=["chat.v1"]) == "welcome to lobby, you speak chat.v1"


def session(block: Block) -> None:
    with served(block) as port:
        assert refusal(port, "/chat") == (401, "log in first\n")
        _, [cookie] = page(port, "/login")
        with Peer(port) as peer:
            peer.open("/chat", Cookie=cookie.partition(";")[0])
            assert peer.text() == "hello ann"


def upgrade_of(block: Block) -> None:
    with served(block) as port:
        with dial(port, "/new", protocols=["chat.v1"], origin="https://app.example.com") as client:
            client.send("hi")
            assert client.recv(LIMIT) == "hi"
        echoes(port, "/old")
        assert refusal(port, "/old", Origin="https://elsewhere.example")[0] == 403


def events(block: Block) -> None:
    with served(block) as port, Peer(port) as peer:
        peer.open()
        peer.send(text("hi") + ping(b"p"))
        came = {bytes(peer.frame().data), bytes(peer.frame().data), bytes(peer.frame().data)}
        assert came == {b"HI", b"p", b"you sent a PING with b'p'"}
        peer.send(b"\x82\x80\0\0\0\0")
        assert peer.close() == (1003, "text only")


def broadcast(block: Block) -> None:
    with served(block) as port, dial(port, "/chat") as one, dial(port, "/chat") as two:
        one.send("to all")
        assert (one.recv(LIMIT), two.recv(LIMIT)) == ("to all", "to all")


def clock(block: Block) -> None:
    with served(block) as port:
        assert float(said(port, "/clock")) >= 0


def accepted(block: Block) -> None:
    with served(block) as port:
        echoes(port, "/echo")
        assert said(port, "/rooms/lobby", protocols=["chat.v1"]) == "welcome to lobby, you speak chat.v1"


def security(block: Block) -> None:
    with served(block) as port:
        assert refusal(port, "/chat")[0] == 401
        assert refusal(port, "/chat", Authorization="Bearer x") == (401, '{"detail":"this token is not valid"}')
        ann = {"Authorization": "Bearer ann's token"}
        assert refusal(port, "/admin", **ann)[0] == 403
        for path, fields in (("/chat", ann), ("/admin", {**ann, "X_Admin": "yes"})):
            with Peer(port) as peer:
                peer.open(path, **fields)
                assert peer.text() == "hello ann"


def upgrade(block: Block) -> None:
    with served(block) as port:
        assert refusal(port, "/rooms/attic") == (404, "no such room\n")
        with Peer(port) as peer:
            assert peer.open("/rooms/lobby")["x-room"] == "lobby"
            assert peer.text() == "come in"


def router(block: Block) -> None:
    with served(block) as port:
        assert refusal(port, "/api/rooms/lobby") == (403, '{"detail":"the key is wrong"}')
        assert said(port, "/api/rooms/lobby?key=open+sesame") == "this is lobby"


def in_process(block: Block) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette's, of the HTTP client underneath
        module = block.module()
    module.test_strangers_are_refused()
    module.test_ann_is_greeted()


def portable(block: Block) -> None:
    with served(block) as port:
        assert said(port, "/") == "PINGs work"
    with served(block, ws="websockets-sansio") as port:
        expected = "no PINGs here: expected a server that exposes its frames (needed to send a PING)"
        assert said(port, "/").startswith(expected)


def trio(block: Block, place: Path) -> None:
    (place / "main.py").write_text(block.code)
    port = free_port()
    hypercorn = Path(sys.executable).with_name("hypercorn")
    with Program(hypercorn, "main:app", "--worker-class", "trio", "--bind", f"127.0.0.1:{port}", cwd=place) as program:
        program.wait_for_line(re.compile("Running on"))
        with dial(port, "/") as client:
            assert [client.recv(LIMIT) for _ in range(3)] == ["3", "2", "1"]


def limits(block: Block) -> None:
    with served(block) as port, Peer(port) as peer:
        echoes(port, "/echo")
        peer.open("/echo")
        peer.send(b"\x82\xff" + (64 * 1024 + 1).to_bytes(8, "big") + bytes(4))
        assert peer.close()[0] == 1009
        with Peer(port) as fast:
            fast.open("/echo")
            fast.send(text("x") * 51)
            while (frame := fast.frame()).opcode is Opcode.TEXT:
                pass
            assert bytes(frame.data)[:2] == (1008).to_bytes(2, "big")


def drain(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    with Uvicorn(block.module().app) as server, Peer(server.port) as peer:
        peer.open("/chat")
        peer.send(text("hi"))
        assert peer.text() == "hi"
        server.begin_stop()
        assert peer.close() == (1012, "the server restarts")
        peer.send(close(1012))
        peer.end()
        peer.sock.close()
        server.wait_stopped()
    assert "saved at 1012" in capsys.readouterr().out


def status(block: Block) -> None:
    with served(block) as port, dial(port, "/echo") as client:
        client.send("four")
        assert client.recv(LIMIT) == "four"
        [line] = json.loads(page(port, "/connections")[0])
        assert line["messages"] == [1, 1]
        with Peer(port) as peer:
            peer.send(f"DELETE /connections/{line['id']} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert peer.answer().status == 200
        with pytest.raises(ConnectionClosed):
            client.recv(LIMIT)
        assert (client.close_code, client.close_reason) == (4000, "ended by the operator")


def conversation(block: Block) -> None:
    with served(block) as port:
        shouts(port)


def shouts(port: int) -> None:
    with dial(port, "/") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "HELLO"
        client.send("bye")
        with pytest.raises(ConnectionClosed):
            client.recv(LIMIT)
        assert (client.close_code, client.close_reason) == (4001, "see you")


def theirs(block: Block, place: Path) -> None:
    port = free_port()
    (place / "main.py").write_text(block.code.replace("8000", str(port)))
    with Program(place / "main.py"):
        eventually(lambda: listens(port))
        shouts(port)


TESTS: dict[str, Callable[..., None]] = {
    test.__name__: test
    for test in (
        *(plain, subclass, worker, routes, session, upgrade_of, events, broadcast, clock, accepted, security, upgrade),
        *(router, in_process, portable, trio, limits, drain, status, conversation, theirs),
    )
}
# Those of tests/test_docs_wsgi.py and tests/test_docs_clients.py.
ELSEWHERE = ("wsgi.md", "flask.md", "moving-wsgi.md", "clients.md", "proxy.md")
# Those whose server is a program of its own.
PROGRAMS = ("worker", "trio", "theirs")
ASGI_PYTHON = [block for block in PYTHON if block.page.name not in ELSEWHERE]


@pytest.mark.parametrize(
    "block",
    [pytest.param(one, marks=[pytest.mark.programs] if one.name in PROGRAMS else []) for one in ASGI_PYTHON],
    ids=str,
)
def test_python_blocks_run(
    block: Block, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block.name in TESTS, f"{block} names no test of TESTS: put <!-- test: name --> in front of it"
    test = TESTS[block.name]
    given = {"block": block, "place": tmp_path, "caplog": caplog, "capsys": capsys}
    test(**{name: given[name] for name in inspect.signature(test).parameters})


def test_every_block_test_has_its_block() -> None:
    assert set(TESTS) == {block.name for block in ASGI_PYTHON}


@pytest.mark.programs
def test_documented_log_lines_match_a_server(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(named("plain").code)
    [shown] = [block.code for block in blocks() if block.page.name == "uvicorn.md" and block.language == "text"]
    uvicorn = Path(sys.executable).with_name("uvicorn")
    one_line = ("main:app", "--ws", UVICORN_CLASS)
    assert ("uvicorn", [*one_line]) in commands()
    with Program(uvicorn, *one_line, "--port", "0", cwd=tmp_path) as program:
        with dial(program.port(), "/echo?token=secret") as client:
            client.send("12345678901")
            assert client.recv(LIMIT) == "12345678901"
        program.wait_for_line(re.compile(r"\[closed .*\n"))
        with Peer(program.port()) as peer:
            peer.send(head("/echo?token=secret", Sec_WebSocket_Version="8"))
            assert peer.refusal().status == 426
        program.wait_for_line(re.compile(r"refused with .*\n"))
        printed = [one for one in program.output.splitlines() if "WebSocket" in one]
    assert [re.sub(r"\d+", "N", one) for one in printed] == [re.sub(r"\d+", "N", one) for one in shown.splitlines()]
    assert "secret" not in program.output


@pytest.mark.programs
@pytest.mark.timeout(300)
def test_python_blocks_are_typed(tmp_path: Path) -> None:
    for block in PYTHON:
        (tmp_path / f"{block.page.stem.replace('-', '_')}_{block.line}.py").write_text(block.code)
    # A user's own code may leave more open than ours. The comments for mypy in the package, which it reads along with
    # the blocks, are for the strict settings of `make check`.
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--disallow-untyped-defs",
        "--allow-untyped-calls",
        "--allow-untyped-decorators",
        "--no-warn-unused-ignores",
    ]
    command += ["--ignore-missing-imports", "--allow-subclassing-any", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=8 * LIMIT, check=False)
    assert done.returncode == 0, done.stdout


# --- tables of code ------------------------------------------------------------------------------------------


def cell(code: str, name: str) -> Callable[[Any], Any]:
    """The code of a table cell as a coroutine function of `name`, which returns the value of an expression."""
    code = code.strip("`")
    body = code if ": " in code and code.startswith("async for") else f"return {code}"
    space: dict[str, Any] = {}
    source = f"async def run({name}):\n{textwrap.indent(body, '    ')}\n"
    exec("import asyncio, json, watershed_mw, websockets\nfrom starlette.responses import Response\n" + source, space)
    run: Callable[[Any], Any] = space["run"]
    return run


def observed(port: int, code: str) -> tuple[Any, ...]:
    """What a client sees: status and body of a refusal, or subprotocol, headers, messages and the end."""
    try:
        with dial(port, "/?a=b", protocols=["chat.v1"] if "chat.v1" in code else ()) as client:
            return client.subprotocol, client.response and client.response.headers.get("x-a"), *_talk(client, code)
    except InvalidStatus as refused:
        return refused.response.status_code, bytes(refused.response.body or b"")


def _talk(client: ClientConnection, code: str) -> Iterator[Any]:
    with contextlib.suppress(ConnectionClosed):
        client.send('{"a": 1}')
    if "wait_closed" in code:
        client.close()
    while True:
        try:
            yield client.recv(LIMIT)
        except ConnectionClosed:
            break
    # The end of a handler that leaves its connection open is the same with all, a Close with 1000.
    yield client.close_code
    yield client.close_reason


def _as_seen(value: Any) -> Any:
    # The two sides are two connections, from two ports.
    return re.sub(r":\d+$", ":port", value) if isinstance(value, str) else value


def _compare(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    assert left[0] == right[0]
    assert _as_seen(left[1]) == _as_seen(right[1])


def _on_asgi(code: str, name: str, app: Callable[[Callable[[Any], Any]], ASGIApp]) -> tuple[Any, Any]:
    values: list[Any] = []

    async def run(subject: Any) -> None:
        values.append(await cell(code, name)(subject))

    with Uvicorn(app(run)) as server:
        seen = observed(server.port, code)
    # An awaitable's value counts for nothing: both await for its effect.
    return seen, values[0] if values and isinstance(values[0], (str, dict)) else None


def _starlette(run: Callable[[Any], Any], *, accept: bool = True) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        if accept:
            await websocket.accept()
        else:
            scope["extensions"] = {"websocket.http.response": {}}
        await run(websocket)

    return app


def _ours(run: Callable[[Any], Any], *, accept: bool = True) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        asked = scope["watershed"].through(websocket.receive, websocket.send, websocket)
        await run(await asked.accept() if accept else asked)

    return WatershedASGI(app)


@pytest.mark.parametrize("row", tables("compare")["starlette"], ids=lambda row: row[1])
def test_both_columns_do_the_same_on_an_open_connection(row: list[str]) -> None:
    left, right = row
    _compare(_on_asgi(left, "websocket", _starlette), _on_asgi(right, "conn", _ours))


@pytest.mark.parametrize("row", tables("compare")["answer"], ids=lambda row: row[1])
def test_both_columns_answer_alike(row: list[str]) -> None:
    left, right = row
    theirs = _on_asgi(left, "websocket", lambda run: _starlette(run, accept=False))
    ours = _on_asgi(right, "upgrade", lambda run: _ours(run, accept=False))
    if theirs[0][0] == 403:  # a refusal without a body of its own may say why
        assert ours[0][0] == 403
    else:
        _compare(theirs, ours)


@pytest.mark.parametrize("row", tables("compare")["websockets"], ids=lambda row: row[1])
def test_both_columns_do_the_same_with_websockets(row: list[str]) -> None:
    left, right = row
    values: list[Any] = []

    async def handler(websocket: ServerConnection) -> None:
        values.append(await cell(left, "websocket")(websocket))

    async def begin() -> Any:
        return await serve(handler, "127.0.0.1", 0, close_timeout=LIMIT)

    async def end(server: Any) -> None:
        server.close()
        await server.wait_closed()

    thread = LoopThread()
    try:
        server = thread.call(begin())
        seen = observed(server.sockets[0].getsockname()[1], left)
        thread.call(end(server))
    finally:
        thread.close()
    _compare((seen, values[0] if isinstance(values[0], str) else None), _on_asgi(right, "conn", _ours))


_UNITS = {"": 1, "s": 1, "frames": 1, "KiB": 2**10, "MiB": 2**20}


def _number(shown: str) -> float | None:
    """`16 MiB` as a number; None for words."""
    found = re.fullmatch(r"([\d,]+) ?(\w*)", shown)
    return int(found[1].replace(",", "")) * _UNITS[found[2]] if found else None


def test_the_settings_table_has_the_names_and_defaults_of_all_three() -> None:
    flags = {flag: option for option in uvicorn_cli.params for flag in option.opts}
    their_options = inspect.signature(serve).parameters
    settings = Settings.of({})
    for uvicorns, websocketss, ours, shown in tables("names")["options"]:
        name = ours.strip("`")
        assert name in Options.__optional_keys__
        default = settings.max_connections if name == "max_connections" else getattr(settings.limits, name, None)
        if _number(shown) is not None or default is not None:
            assert _number(shown) == default, name
        if uvicorns:
            option = flags[uvicorns.strip("`")]
            # Moving from uvicorn's classes to ours changes no default.
            assert option.default == default or name in ("compression", "max_connections"), uvicorns
        if websocketss:
            found = re.fullmatch(r"`(\w+)(?:=\"(\w+)\")?`(?: \((.*)\))?", websocketss)
            assert found is not None, websocketss
            expected = found[2] or (found[3] and _number(found[3]))
            assert their_options[found[1]].default == expected, websocketss


def test_names_in_tables_exist() -> None:
    for left, right in tables("names")["exceptions"]:
        for name in re.findall(r"`([\w.]*[A-Z]\w+)`", right):
            assert hasattr(watershed_mw, name) or name == "TimeoutError", name
        for dotted in re.findall(r"`((?:starlette|websockets)\.[\w.]+)`", left):
            module, _, name = dotted.rpartition(".")
            assert hasattr(importlib.import_module(module), name), dotted
