"""Executes every example and every Python snippet of README.md as a real process, and talks to it.

A file or a snippet that is not covered here fails a test.

Examples: `python examples/NAME.py [port]` prints its address, http:// or ws://, once it listens; port 0 takes
any.

README: each block that is marked as `python` is a whole program. It speaks of the port 8000 of this machine,
in those very digits, which are replaced by those of a free port; it runs as `main.py` in an empty directory.
An upstream's port is 9000, which becomes that of an echo server.
A block that calls something named `connect` is a client: it runs against an echo server, must end by itself
with exit code 0, print something and have sent at least one message. Any other block is a server: it must
listen on the port and send a text back, on the first path that it names in quotes ("/..."), or else on "/".
What is not a program is not marked as `python`: use `pycon`, `text` or `sh`.
"""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import websockets.exceptions
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Origin, Subprotocol

from tests.support import LIMIT, PROJECT
from tests.support.programs import Program, free_port

pytestmark = pytest.mark.programs

EXAMPLES = PROJECT / "examples"
ECHOES = ("asgi_echo.py", "wsgi_echo.py", "wsgi_plain.py", "django_echo.py", "http_server.py", "asyncio_server.py")
OTHERS = (
    "uvicorn_plain.py",
    "starlette_chat.py",
    "fastapi_rooms.py",
    "flask_rooms.py",
    "starlette_notebooks.py",
    "flask_notebooks.py",
    "jupyter_like_kernel.py",
    "jupyter_like_proxy.py",
    "client.py",
    "httpx_client.py",
    "raw_socket.py",
    "demo.py",
    "demo.html",
)
"""Each has a test of its own below."""


@contextlib.contextmanager
def dial(
    port: int,
    path: str = "/",
    protocols: Sequence[str] = (),
    origin: str | None = None,
    headers: dict[str, str] | None = None,
) -> Iterator[ClientConnection]:
    with connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=[Subprotocol(one) for one in protocols] or None,
        origin=Origin(origin) if origin else None,
        additional_headers=headers,
        proxy=None,
        open_timeout=LIMIT,
        close_timeout=LIMIT,
    ) as connection:
        yield connection


def assert_refused(status: int, *target: Any, **options: Any) -> None:
    """`dial` with these arguments must get an HTTP error."""
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal, dial(*target, **options):
        pass
    assert refusal.value.response.status_code == status


def flask_port(page: str) -> int:
    """The port of the demo's second server, as the page learns it."""
    with urlopen(f"{page}/doors", timeout=LIMIT) as answer:
        port: int = json.load(answer)["ports"]["wsgi"]
    return port


def assert_echo(connection: ClientConnection, *messages: str | bytes) -> None:
    for message in messages:
        connection.send(message)
        assert connection.recv(timeout=LIMIT) == message


@dataclass
class Echo:
    """A third-party echo server, and what it has received."""

    port: int
    messages: list[str | bytes] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)


@pytest.fixture
def echo() -> Iterator[Echo]:
    seen = Echo(port=0)

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            while True:
                seen.messages.append(message := connection.recv())
                connection.send(message)
        seen.codes.append(connection.close_code)

    def select(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return offered[0] if offered else None

    with serve(handle, "127.0.0.1", 0, select_subprotocol=select) as server:
        seen.port = server.socket.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield seen
        server.shutdown()
        thread.join(LIMIT)


def test_every_example_is_run() -> None:
    files = {path.name for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {*ECHOES, *OTHERS}


@pytest.mark.parametrize("name", ECHOES)
def test_echo_examples_echo(name: str) -> None:
    with Program(EXAMPLES / name, "0") as program:
        port = program.port()
        with dial(port, protocols=["unknown.v1", "echo.watershed"]) as connection:
            assert connection.subprotocol == "echo.watershed"
            assert_echo(connection, "Grüße, 水", b"\x00\xff", "", "a" * 70_000)
            connection.close(4001, "bye")
            assert (connection.close_code, connection.close_reason) == (4001, "bye")
        assert_refused(400, port, protocols=["unknown.v1"])
        assert_refused(403, port, origin="http://elsewhere.example")
        with dial(port) as connection:  # a refusal leaves the server alive
            assert_echo(connection, "still here")
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output


@pytest.mark.parametrize("name", [*ECHOES, "uvicorn_plain.py"])
def test_echo_examples_refuse_a_plain_request(name: str) -> None:
    with Program(EXAMPLES / name, "0") as program:
        with pytest.raises(HTTPError) as refusal:
            urlopen(f"http://127.0.0.1:{program.port()}/", timeout=LIMIT)
        with refusal.value as answer:
            assert 400 <= answer.code < 500
        assert "Traceback" not in program.output


def test_uvicorn_plain_example_echoes() -> None:
    with Program(EXAMPLES / "uvicorn_plain.py", "0") as program:
        with dial(program.port()) as connection:
            assert_echo(connection, "Grüße, 水", "", "a" * 70_000)
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output


@pytest.mark.parametrize("name", ["starlette_chat.py", "flask_rooms.py"])
def test_chat_examples_work_with_their_httpx_client(name: str) -> None:
    with Program(EXAMPLES / name, "0") as program:
        port = program.port()
        assert_refused(401, port, "/rooms/blue")
        cookies = {member: logged_in(port, member) for member in ("ann", "bob")}
        with dial(port, "/rooms/blue", headers=cookies["ann"]) as ann:
            assert ann.recv(LIMIT) == "ann joined"
            with dial(port, "/rooms/blue", headers=cookies["bob"]) as bob:
                assert [ann.recv(LIMIT), bob.recv(LIMIT)] == ["bob joined"] * 2
                bob.send("hello")
                assert [ann.recv(LIMIT), bob.recv(LIMIT)] == ["bob: hello"] * 2
                with dial(port, "/rooms/red", headers=cookies["ann"]) as elsewhere:
                    assert elsewhere.recv(LIMIT) == "ann joined"
            assert ann.recv(LIMIT) == "bob left"
        with Program(EXAMPLES / "httpx_client.py", str(port)) as client:
            assert client.wait() == 0
            assert client.output.splitlines() == ["ann joined", "ann: hello"]
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output


def logged_in(port: int, name: str) -> dict[str, str]:
    """The headers of a client that has logged in."""
    with urlopen(f"http://127.0.0.1:{port}/login?name={name}", timeout=LIMIT) as answer:
        return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


@pytest.mark.parametrize("name", ["starlette_notebooks.py", "flask_notebooks.py"])
def test_notebook_examples_lead_each_user_to_their_own_server(name: str) -> None:
    with Program(EXAMPLES / name, "0") as program:
        port = program.port()
        page = f"http://127.0.0.1:{port}"
        ann, bob, eve = (logged_in(port, user) for user in ("ann", "bob", "eve"))
        assert_refused(401, port, "/notebook/")
        assert_refused(404, port, "/notebook/", headers=eve)
        assert_refused(403, port, "/notebook/", headers=ann, origin="http://elsewhere.example")
        with (
            dial(port, "/notebook/", headers=ann, origin=page) as first,
            dial(port, "/notebook/work/a.ipynb", headers=ann) as second,
            dial(port, "/notebook/", headers=bob) as third,
        ):
            for connection, number, owner in ((first, 1, "ann"), (second, 2, "ann"), (third, 1, "bob")):
                connection.send("Grüße, 水")
                assert connection.recv(LIMIT) == f"{owner}[{number}]: Grüße, 水"
            first.close(4001, "bye")
            assert (first.close_code, first.close_reason) == (4001, "bye")
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output


def test_jupyter_like_examples_negotiate_a_subprotocol_end_to_end() -> None:
    module: dict[str, Any] = runpy.run_path(str(EXAMPLES / "jupyter_like_kernel.py"))
    pack, unpack, protocol = module["pack"], module["unpack"], module["PROTOCOL"]
    port_of_kernel = free_port()
    with (
        Program(EXAMPLES / "jupyter_like_kernel.py", str(port_of_kernel)) as kernel,
        Program(EXAMPLES / "jupyter_like_proxy.py", "0", str(port_of_kernel)) as proxy,
    ):
        port, path = proxy.port(), "/user/ann/api/kernels/1/channels"
        assert kernel.port() == port_of_kernel
        with dial(port, path, protocols=["kernel.v0", protocol]) as connection:
            assert connection.subprotocol == protocol
            for count in (1, 2):
                request = {"msg_type": "execute_request", "msg_id": str(count)}
                connection.send(pack("shell", request, {}, {}, {"code": "grüße"}))
                answer = connection.recv(LIMIT)
                result = {"execution_count": count, "data": {"text/plain": "GRÜSSE"}}
                assert unpack(answer) == ("iopub", [{"msg_type": "execute_result"}, request, {}, result])
        assert_refused(400, port, path, protocols=["kernel.v0"])
        with dial(port, path) as connection:
            connection.send("{}")
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                connection.recv(LIMIT)
            assert connection.close_code == 1003
        assert "Traceback" not in kernel.output + proxy.output


def test_flask_rooms_example_serves_its_page() -> None:
    with Program(EXAMPLES / "flask_rooms.py", "0") as program:
        with urlopen(f"http://127.0.0.1:{program.port()}/", timeout=LIMIT) as answer:
            page = answer.read().decode()
        assert "new WebSocket(" in page
        assert all(path in page for path in ("/login?name=", "/rooms/"))


def test_wsgi_plain_example_leaves_its_only_thread_free() -> None:
    with Program(EXAMPLES / "wsgi_plain.py", "0") as program:
        port = program.port()
        with dial(port) as first, dial(port) as second:
            assert_refused(404, port, "/attic")
            assert_echo(second, "two")
            assert_echo(first, "one")
            assert program.stop(signal.SIGTERM) == -signal.SIGTERM
            for connection in (first, second):
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    connection.recv(timeout=LIMIT)
                assert connection.close_code == 1001
        assert "Traceback" not in program.output


def test_fastapi_rooms_example_works() -> None:
    with Program(EXAMPLES / "fastapi_rooms.py", "0") as program:
        port = program.port()
        ann, bob = ({"Authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        assert_refused(401, port, "/rooms/1")
        assert_refused(403, port, "/rooms/1", headers={"Authorization": "Bearer 123"})
        assert_refused(403, port, "/rooms/blue", headers=ann)
        with dial(port, "/rooms/1", ["rooms.v1"], headers=ann) as first:
            assert first.subprotocol == "rooms.v1"
            assert first.recv(LIMIT) == "ann"
            with dial(port, "/rooms/1", headers=bob) as second:
                assert second.recv(LIMIT) == "ann, bob"
                second.send("ann")
                assert first.recv(LIMIT) == "bob greets you"
                with urlopen(Request(f"http://127.0.0.1:{port}/rooms/1", headers=ann), timeout=LIMIT) as answer:
                    assert json.load(answer) == ["ann", "bob"]
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output


def test_client_example_prints_the_reply(echo: Echo) -> None:
    with Program(EXAMPLES / "client.py", str(echo.port)) as program:
        assert program.wait() == 0
        assert "echo.watershed: 'Hello, watershed!'" in program.output


def test_client_example_talks_to_server_example() -> None:
    with Program(EXAMPLES / "asyncio_server.py", "0") as server:
        with Program(EXAMPLES / "client.py", str(server.port())) as client:
            assert client.wait() == 0
            assert "Hello, watershed!" in client.output
        server.wait_for_line(re.compile("closed with 1000"))


def test_client_example_reports_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program(EXAMPLES / "client.py", str(listener.getsockname()[1])) as program:
            listener.settimeout(LIMIT)
            server, _ = listener.accept()
            with server:
                server.settimeout(LIMIT)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += server.recv(65536)
                server.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                assert program.wait() == 1
        assert "no WebSocket: " in program.output
        assert "503" in program.output
        assert "Traceback" not in program.output


def test_raw_socket_example_relays(echo: Echo) -> None:
    with Program(EXAMPLES / "raw_socket.py", "0", str(echo.port)) as program:
        with dial(program.port()) as connection:
            assert_echo(connection, "Grüße, 水", b"\x00\xff" * 50_000, "")
            connection.close(4001, "bye")
        assert (connection.close_code, connection.close_reason) == (4001, "bye")
        program.stop(signal.SIGINT)
        assert "Traceback" not in program.output
    assert echo.codes == [4001]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_serves_its_page_and_shuts_down_cleanly(number: signal.Signals) -> None:
    with Program(EXAMPLES / "demo.py", "--port", "0") as demo:
        port = demo.port()
        page = f"http://127.0.0.1:{port}"
        with urlopen(page, timeout=LIMIT) as answer:
            assert answer.read() == (EXAMPLES / "demo.html").read_bytes()
        offer = ["unknown.v1", "json"]
        with (
            dial(port, "/echo", offer, origin=page) as asgi,
            dial(flask_port(page), "/echo", offer, origin=page) as wsgi,
        ):
            for connection in (asgi, wsgi):
                assert connection.subprotocol == "json"
                assert_echo(connection, "Grüße, 水", b"\x00\xff")
            assert demo.stop(number) == 0
            for connection in (asgi, wsgi):
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    connection.recv(timeout=LIMIT)
                # 1001: going away; 1012: the server restarts, as uvicorn has it
                assert connection.close_code in (1001, 1012)
        assert len(demo.output.splitlines()) == 1, demo.output
        assert not demo.group_is_alive()


def test_demo_accepts_only_its_own_page() -> None:
    with Program(EXAMPLES / "demo.py", "--port", "0") as demo:
        port = demo.port()
        for door in (port, flask_port(f"http://127.0.0.1:{port}")):
            assert_refused(403, door, "/echo", origin="http://127.0.0.1:1")


@pytest.mark.parametrize("by", ["server", "page"])
def test_demo_closes_with_the_requested_code(by: str) -> None:
    with Program(EXAMPLES / "demo.py", "--port", "0") as demo:
        port = demo.port()
        for door in (port, flask_port(f"http://127.0.0.1:{port}")):
            with dial(door, "/echo") as connection:
                if by == "server":
                    connection.send("/close 4002 bis später")
                    with pytest.raises(websockets.exceptions.ConnectionClosed):
                        connection.recv(timeout=LIMIT)
                else:
                    connection.close(4002, "bis später")
                assert (connection.close_code, connection.close_reason) == (4002, "bis später")


def test_demo_reports_a_port_in_use() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Program(EXAMPLES / "demo.py", "--port", str(taken.getsockname()[1])) as demo,
    ):
        assert demo.wait() == 1
        assert "Choose another one: --port 0" in demo.output
        assert "Traceback" not in demo.output


README = PROJECT / "README.md"
CLIENT = re.compile(r"\bconnect\(")
PATH = re.compile(r"[\"'](/[\w/-]*)[\"']")


def snippets() -> list[str]:
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_readme_has_all_its_snippets() -> None:
    shown = snippets()
    for what in ("WatershedASGI(", "WatershedWSGI(", ".accept(", "connect(", "WebSocketProxy("):
        assert any(what in snippet for snippet in shown), f"README.md has no Python block with {what}"
    assert len(shown) >= 5


def wait_for_listener(program: Program, port: int) -> None:
    deadline = time.monotonic() + LIMIT
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=LIMIT):
            return
        assert program.group_is_alive(), f"the server has ended:\n{program.output}"
        assert time.monotonic() < deadline, f"nothing listens on the snippet's port:\n{program.output}"
        time.sleep(0.02)  # there is nothing to wait on: the listener belongs to another process


@pytest.mark.parametrize("number", range(len(snippets())))
def test_readme_snippets_run(number: int, tmp_path: Path, echo: Echo) -> None:
    snippet = snippets()[number]
    assert "8000" in snippet, "a Python block of README.md is a whole program that names port 8000"
    client = CLIENT.search(snippet) is not None
    port = echo.port if client else free_port()
    script = tmp_path / "main.py"
    ports = {"8000": str(port), "9000": str(echo.port)}
    script.write_text(re.sub(r"\b[89]000\b", lambda match: ports[match[0]], snippet), encoding="utf-8")
    with Program(script, cwd=tmp_path) as program:
        if client:
            assert program.wait() == 0, program.output
            assert program.output.strip()
            assert echo.messages
            assert echo.codes in ([1000], [1001])
        else:
            wait_for_listener(program, port)
            path = found[1] if (found := PATH.search(snippet)) else "/"
            with dial(port, path) as connection:
                assert_echo(connection, "Grüße, 水")
        assert "Traceback" not in program.output
