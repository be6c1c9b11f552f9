"""``watershed-mw`` as people and shell scripts run it: real processes, pipes, and pseudo-terminals.

Two servers stand on the other side: the command ``echo``, and an application that misbehaves on demand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeAlias

import click
import pytest
import trustme

from tests.conftest import RunPython
from tests.support import LIMIT, PROJECT
from tests.support.asgi import Receive, Scope, Send
from tests.support.pages import blocks
from tests.support.peers import Peer, close, head, text
from tests.support.programs import Program
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import eventually
from watershed_mw import WatershedASGI, __version__
from watershed_mw.cli.commands import cli, run
from watershed_mw.cli.heads import bounded
from watershed_mw.cli.output import describe_end, dump, escape, shown, status_of
from watershed_mw.cli.parameters import Address

PROGRAM = (sys.executable, "-m", "watershed_mw")
HOSTILE = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202egpj.exe\u2069\r\x7f end"
HARMLESS = "\\x1b]0;owned\\x07\\x1b[2J \\x9b31m \\u202egpj.exe\\u2069\\r\\x7f end"


# What a terminal would have obeyed of it, among what else it was sent.
_OBEYED = re.compile("owned\x07|\x1b]0|\x1b\\[2J|[\x80-\x9f\u202e\u2069\x7f]")


def connect(
    where: int | str, *arguments: str, path: str = "/", stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """`watershed-mw connect` in a pipe, without the pause at the end that another test is about."""
    url = f"ws://127.0.0.1:{where}{path}" if isinstance(where, int) else where
    command = [*PROGRAM, "connect", url, "--wait", "0", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=PROJECT, timeout=LIMIT)


@pytest.fixture(autouse=True)
def loggers_of_uvicorn() -> Iterator[None]:
    """Commands that run in this process give uvicorn's loggers a handler on a stderr that the test closes."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of `watershed-mw echo`, which in the end is told to stop."""
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--protocol", "chat.v1", "--verbose") as program:
        yield program.port()
        assert program.stop(signal.SIGINT) == 0
        assert "Traceback" not in program.output


class Server:
    """An application whose paths are what a peer may do; what clients sent and how they left is kept."""

    def __init__(self) -> None:
        self.ends: list[tuple[int | None, str | None]] = []
        self.silence = 0.0
        self.opened = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = scope["watershed"].through(receive, send)
        path = scope["path"]
        if path == "/refused":
            await upgrade.reject(403, f"no entry\n{HOSTILE}".encode())
            return
        connection = await upgrade.accept()
        self.opened += 1
        if path.startswith("/close/"):
            await connection.end(HOSTILE if path.endswith("4000") else "bye", code=int(path.removeprefix("/close/")))
        elif path == "/large":
            await connection.send("x" * 11)
        elif path == "/hostile":
            await connection.send(HOSTILE)
            await connection.send("one\n< two")
            await connection.send(bytes(range(256)) + b"x")
            await connection.ping(HOSTILE.encode())
        began = time.monotonic()
        async for message in connection:
            began = time.monotonic()
            await connection.send(message)
            if message == "first":
                await connection.end("", code=1012)
            elif message == "bye":
                await connection.end(HOSTILE, code=4000)
        self.silence = time.monotonic() - began
        self.ends.append((connection.close_code, connection.close_reason))


@pytest.fixture
def server() -> Iterator[tuple[Server, int]]:
    application = Server()
    with Uvicorn(WatershedASGI(application, origins="*", protocols=["chat.v1"])) as running:
        yield application, running.port


# --- in a pipe ---------------------------------------------------------------------------------------------------


def test_lines_of_stdin_are_messages_and_replies_are_lines_of_stdout(echo: int) -> None:
    lines = "one\n\n\x1b[31mred\nkäse\n".encode()
    done = connect(echo, stdin=lines + b"bad\xff\nnever\n")
    assert (done.returncode, done.stdout) == (1, lines)
    assert done.stderr.decode() == (
        "watershed-mw: expected UTF-8 (--binary sends any bytes) in line 5 of stdin, got b'bad\\xff'\n"
    )


def test_the_end_of_stdin_waits_for_replies_and_verbose_tells_more(server: tuple[Server, int]) -> None:
    application, port = server
    done = connect(port, "--wait", "0.2", "--verbose", "--protocol", "chat.v1", stdin=b"hi\n")
    assert (done.returncode, done.stdout) == (0, b"hi\n")
    assert application.ends == [(1000, "")]
    assert application.silence >= 0.19
    told = done.stderr.decode()
    for part in (
        "101 Switching Protocols",
        "sec-websocket-protocol: chat.v1",
        "closed with 1000 (normal)",
        "1 messages",
    ):
        assert part in told
    assert "\x1b" not in told  # colours are for terminals


def test_the_pipes_of_the_page_do_what_it_says(echo: int, tmp_path: Path) -> None:
    """Among them a reader that has seen enough, which ends it in good order."""
    [block] = [block for block in blocks() if block.name == "pipes"]
    (tmp_path / "picture.png").write_bytes(data := os.urandom(200_000))

    def shell(line: str) -> subprocess.CompletedProcess[bytes]:
        script = line.replace("watershed-mw ", shlex.join(PROGRAM) + " ").replace(":8765", f":{echo}")
        return subprocess.run(
            ["bash", "-c", f"{script}; echo ${{PIPESTATUS[@]}} >&2"],
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            timeout=LIMIT,
        )

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(shell, block.code.splitlines()))
    assert [one.stdout for one in done] == [b"one\ntwo\n", b"y\ny\n", b"", b"00ff\n"]
    assert [one.stderr for one in done] == [b"0 0\n", b"141 0 0\n", b"0\n", b"0 0\n"]
    assert (tmp_path / "copy.png").read_bytes() == data


def test_the_exit_status_tells_how_it_ended(server: tuple[Server, int]) -> None:
    _, port = server
    refused = f"expected status 101 (Switching Protocols), got 403 Forbidden from http://127.0.0.1:{port}/refused"
    too_big = "expected a message of at most 10 bytes (max_message_size), got 11 or more"
    expected = {
        "/close/4000": (1, f"closed with 4000 (application) {HARMLESS}\n"),
        "/large": (1, f"closed with 1009 (too big) {too_big}\n"),
        "/refused": (1, f"watershed-mw: {refused}: no entry\\n{HARMLESS}\n"),
    }
    with ThreadPoolExecutor() as pool:  # most of the time is the interpreter's start
        ended = list(pool.map(lambda path: connect(port, "--wait", "inf", "--max-size", "10", path=path), expected))
    assert [(done.returncode, done.stderr.decode()) for done in ended] == list(expected.values())
    assert {done.stdout for done in ended} == {b""}


def test_reconnect_goes_on_with_the_next_line_until_a_signal(server: tuple[Server, int]) -> None:
    application, port = server
    command = [*PROGRAM, "connect", f"ws://127.0.0.1:{port}/", "--reconnect"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        for line in (b"first\n", b"second\n"):
            program.stdin.write(line)
            program.stdin.flush()
            assert program.stdout.readline() == line  # flushed, while stdin is still open
            if line == b"first\n":
                assert program.stderr.readline() == b"closed with 1012 (service restart)\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(LIMIT) == 128 + signal.SIGINT
        assert program.stderr.read() == b""
    eventually(lambda: application.ends == [(1012, ""), (1000, "")], str(application.ends))


# --- on a terminal -----------------------------------------------------------------------------------------------


# What a shell does for its children, so that Ctrl-C means something whoever reads; not between fork and exec here, as
# there are threads.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program whose three streams are a pseudo-terminal; what appears on it is collected."""

    def __init__(self, *command: str, stdin: Any = None, **environment: str) -> None:
        self._master, slave = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORTERM")}
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _TAKE_TERMINAL, *PROGRAM, *command],
            stdin=slave if stdin is None else stdin,
            stdout=slave,
            stderr=slave,
            cwd=PROJECT,
            # A real terminal says where its cursor is when it is asked.
            env=kept | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment,
            start_new_session=True,
        )
        os.close(slave)
        self._seen = b""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(self._master, 4096):
                with self._news:
                    self._seen += data
                    self._news.notify_all()

    @property
    def raw(self) -> str:
        """All that the terminal was sent."""
        with self._news:
            return self._seen.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """The same without what moves and colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.raw)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT
        with self._news:
            while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self._seen.decode("utf-8", "replace")):
                assert self._news.wait(deadline - time.monotonic()), f"{text!r} never came, but {self._seen!r}"

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        status = self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        os.close(self._master)


def test_a_conversation_at_the_prompt_and_its_history(echo: int, tmp_path: Path) -> None:
    state, url = str(tmp_path / "state"), f"ws://ann:secret@127.0.0.1:{echo}/"
    (tmp_path / "a file").write_bytes(b"from a file")
    with Terminal("connect", url, XDG_STATE_HOME=state) as terminal:
        terminal.wait_for(f"connected to ws://127.0.0.1:{echo}/")
        for typed, answer in (
            ("hello", "< hello"),
            ("//slash", "< /slash"),
            ("/binary 00 41 ff", "< BINARY, 3 bytes\n  0000  00 41 ff"),
            (f"/binary @'{tmp_path}/a file'", "< BINARY, 11 bytes"),
            (f"/text @'{tmp_path}/a file'", "< from a file"),
            ("/ping là", "< PONG 'là' after "),
            ("/nonsense", "expected one of /text, /binary, /ping, /close, /help"),
            ("/binary xyz", "non-hexadecimal number"),
            ("/text @/nowhere", "No such file"),
            ("/close 1006", "expected a close code that may be sent"),
            ("/help", "Ctrl-D, Ctrl-C"),
            ("/close 4001 see you", "closed with 4001 (application) see you"),
        ):
            terminal.press(typed + "\r")
            terminal.wait_for(answer)
        assert terminal.wait() == 1
        assert "\x1b[36m< hello" in terminal.raw
        assert "secret" not in terminal.text
    history = Path(state, "watershed-mw", "history")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with (
        Terminal("connect", url, XDG_STATE_HOME=state, NO_COLOR="1") as first,
        Terminal("connect", url, XDG_STATE_HOME=state, NO_COLOR="1") as second,
    ):
        # Twelve lines back, and Ctrl-D; Ctrl-C.
        for terminal, line, leave in ((first, "\x1b[A" * 12, "\x04"), (second, "hello", "half a line\x03")):
            terminal.wait_for("commands\n>")
            terminal.press(line + "\r")
            terminal.wait_for("< hello\n>")
            terminal.press(leave)
            terminal.wait_for("closed with 1000 (normal)")
            assert terminal.wait() == 0
            assert not re.search(r"\x1b\[(\d+;)*3\d", terminal.raw)


def test_a_hostile_server_does_not_get_at_the_terminal(server: tuple[Server, int], tmp_path: Path) -> None:
    application, port = server
    url = f"ws://127.0.0.1:{port}/hostile"
    with Terminal("connect", url, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait_for(f"< {HARMLESS}")
        terminal.wait_for("< one\n  < two")
        terminal.wait_for("  00f0  f0 f1")
        terminal.wait_for("  ... and 1 bytes more")
        terminal.wait_for("< PING ")
        terminal.press("bye\r")
        terminal.wait_for(f"closed with 4000 (application) {HARMLESS}")
        assert terminal.wait() == 1
        assert not _OBEYED.search(terminal.raw)
    # stdin is no terminal here, and stdout is
    with Terminal("connect", url, "--wait", "inf", stdin=subprocess.DEVNULL) as terminal:
        terminal.wait_for(HARMLESS)
        terminal.wait_for("  ... and 1 bytes more")
        terminal.press("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert not _OBEYED.search(terminal.raw)
    assert application.ends[1:] == [(1000, "")]


def test_the_prompt_ends_with_a_signal_and_gives_the_terminal_back(echo: int, tmp_path: Path) -> None:
    with Terminal("connect", f"ws://127.0.0.1:{echo}/", "--user", "ann", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait_for("password of ann: ")
        terminal.press("secret\r")
        terminal.wait_for("commands\n>")
        terminal.signal(signal.SIGTERM)
        terminal.wait_for("closed with 1000 (normal)")
        assert terminal.wait() == 128 + signal.SIGTERM
        assert "secret" not in terminal.raw
        assert terminal.raw.count("\x1b[?2004h") == terminal.raw.count("\x1b[?2004l")  # bracketed paste, on and off


# --- echo, and what serving commands share -----------------------------------------------------------------------


def test_echo_ends_in_good_order_while_somebody_is_connected() -> None:
    allowed = ("--allow-origin", "https://elsewhere.example")
    with Program(*PROGRAM, "echo", "--listen", "localhost:0", *allowed) as program, Peer(program.port()) as peer:
        peer.open("/", Origin="https://elsewhere.example")
        os.kill(program.pid, signal.SIGTERM)
        assert peer.close() == (1012, "the server restarts")
        peer.send(close(1012))
        peer.end()
        peer.sock.close()
        assert program.wait() == 0
        assert re.fullmatch(r"(ws://(127\.0\.0\.1|\[::1\]):\d+/\n)+", program.output)


def test_echo_tells_http_what_it_is(echo: int) -> None:
    with Peer(echo) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = peer.answer()
        assert (answer.status, answer.body) == (426, b"This is a WebSocket server that echoes.\n")


def test_tls_and_whom_to_trust(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--tls-cert", tmp_path / "server.pem") as program:
        port = program.wait_for_line(re.compile(r"^wss://127\.0\.0\.1:(\d+)/$", re.MULTILINE))[1]
        url = f"wss://127.0.0.1:{port}/"
        with ThreadPoolExecutor() as pool:
            trusting, trustful = pool.map(
                lambda trust: connect(url, *trust, stdin=b"hi\n"),
                (("--cacert", str(tmp_path / "ca.pem")), ("--insecure",)),
            )
    assert (trusting.returncode, trusting.stdout, trusting.stderr) == (0, b"hi\n", b"")
    assert (trustful.returncode, trustful.stdout, trustful.stderr) == (0, b"hi\n", b"")


def test_an_address_without_a_host_is_all_addresses_by_ipv4_and_ipv6() -> None:
    sockets = Address("", 0).listen()
    try:
        hosts = {one.getsockname()[0] for one in sockets}
        assert hosts in ({"0.0.0.0", "::"}, {"0.0.0.0"})
        assert len({one.getsockname()[1] for one in sockets}) == 1
        with socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1])):
            pass
    finally:
        for one in sockets:
            one.close()


class Proxy:
    """What stands for the ASGI application of the proxy."""

    def __init__(self, upstream: str, **options: Any) -> None:
        if "//" not in upstream:
            raise ValueError(f"expected a URL, got {upstream!r}")
        self.given = {"upstream": upstream, **options}


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `watershed-mw proxy` would serve, and where."""
    served: list[Any] = []
    module = ModuleType("watershed_mw.proxy")
    module.WebSocketProxy = Proxy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "watershed_mw.proxy", module)
    monkeypatch.setattr("watershed_mw.cli.proxy.serve", lambda *given: served.append(given))
    return served


def test_options_of_the_proxy(proxied: list[Any]) -> None:
    assert run(["proxy", "--listen", ":8080", "--to", "ws://127.0.0.1:9000"]) == 0
    everything = (
        "proxy --listen [::1]:0 --to wss://b.example/x --no-keep-host --strip-prefix /chat --header X-A:1 -H 'X-B: 2' "
        "--open-timeout 1 --idle-timeout 2.5 --max-duration 60 --max-bytes 1000 --origin https://a.example "
        "--origin *.b.example --insecure --verbose"
    )
    assert run(shlex.split(everything)) == 0
    (guarded, *where), (guarded_too, *elsewhere) = proxied
    first, second = guarded._app, guarded_too._app
    assert where == [("", 8080), None, None, False]
    assert first.given == {
        "upstream": "ws://127.0.0.1:9000", "keep_host": True, "strip_prefix": "", "headers": [], "open_timeout": 10.0,
        "idle_timeout": 3600.0, "max_duration": None, "max_bytes": None, "ssl": None,
    }  # fmt: skip
    assert elsewhere == [("::1", 0), None, None, True]
    context = second.given.pop("ssl")
    assert not context.check_hostname
    assert second.given == {
        "upstream": "wss://b.example/x", "keep_host": False, "strip_prefix": "/chat",
        "headers": [("X-A", "1"), ("X-B", "2")], "open_timeout": 1.0, "idle_timeout": 2.5, "max_duration": 60.0,
        "max_bytes": 1000, "origins": ["https://a.example", "*.b.example"],
    }  # fmt: skip


# Header fields of a request, and the status of its answer.
Pages: TypeAlias = list[tuple[dict[str, Any], int]]

PAGES: Pages = [
    ({}, 101),
    ({"Host": "localhost:1"}, 101),
    ({"Host": "app.localhost"}, 101),
    ({"Host": "[::1]:8080"}, 101),
    ({"Host": "192.0.2.1"}, 101),
    ({"Host": "own.example"}, 101),
    ({"Host": "a.below.example:80"}, 101),
    ({"Host": "own.example", "Origin": "http://own.example"}, 101),
    ({"Origin": "https://page.example"}, 101),
    # A page whose name points here (DNS rebinding).
    ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
    # A page that asks this machine by its own name.
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Host": "a evil"}, 400),
    ({"Host": "a@localhost"}, 400),
]
OPTIONS = ("--allow-host", "own.example", "--allow-host", "*.below.example", "--allow-origin", "https://page.example")


def answers_to(port: int, pages: Pages) -> Pages:
    answers: Pages = []
    for changes, _ in pages:
        with Peer(port) as peer:
            peer.send(head(**changes))
            answers.append((changes, peer.answer().status))
    return answers


def test_pages_of_other_sites_stay_outside(echo: int) -> None:
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", *OPTIONS) as program:
        port = program.port()
        pages: Pages = [*PAGES, ({"Origin": "http://localhost:3000"}, 101), ({"Origin": "https://[::1]"}, 101)]
        assert answers_to(port, pages) == pages
    with Program(*PROGRAM, "proxy", "--listen", "127.0.0.1:0", "--to", f"ws://127.0.0.1:{echo}", *OPTIONS) as program:
        port = program.port()
        # The server behind it judges as well, and knows neither name.
        hosts: Pages = [(changes, status) for changes, status in PAGES if status != 101]
        hosts += [({"Origin": "http://localhost:3000"}, 403), ({"Host": "localhost:2"}, 101)]
        assert answers_to(port, hosts) == hosts
        with Peer(port) as peer:
            peer.send(head(Host="own.example"))
            assert b"--allow-host" in peer.answer().body, "the answer of the echo behind it"


def test_every_page_may_come_in_where_that_is_asked_for() -> None:
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--allow-host", "*", "--allow-origin", "*") as program:
        pages: Pages = [
            ({"Host": "any.example", "Origin": "http://other.example"}, 101),
            ({"Origin": "null"}, 101),
            ({"Host": "a evil"}, 400),
        ]
        assert answers_to(program.port(), pages) == pages


# --- heads -------------------------------------------------------------------------------------------------------

HEADS = {
    "fields": head(X_A="y")[:-2] + b"X-B: z\r\n" * 250,
    "value": head()[:-2] + b"X-A: " + b"y" * 2**16,
    "target": b"GET /" + b"y" * 2**16,
    "many": b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(67)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_an_end_is_cut_off(echo: int, kind: str) -> None:
    with Peer(echo) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(HEADS[kind])
        assert peer.rest()[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b""), "an end, and no wait"


@pytest.fixture(params=["h11", "httptools"])
def bounded_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uvicorn]:
    """A server in this process with the bounds, and less time."""
    monkeypatch.setattr("watershed_mw.cli.heads._SECONDS", 0.5)
    name = "H11Protocol" if request.param == "h11" else "HttpToolsProtocol"
    http = getattr(import_module(f"uvicorn.protocols.http.{request.param}_impl"), name)
    with Uvicorn(WatershedASGI(Server(), origins="*"), http=bounded(http)) as running:
        yield running


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", head()[:-1]], ids=["nothing", "some", "most"])
def test_a_head_that_takes_too_long_is_cut_off(bounded_server: Uvicorn, sent: bytes) -> None:
    with Peer(bounded_server.port) as peer, Peer(bounded_server.port) as other:
        other.open()
        peer.send(sent)
        began = time.monotonic()
        answer = peer.rest()
        assert 0.2 < time.monotonic() - began < LIMIT / 2
        assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""
        # Whoever has a WebSocket has all the time in the world.
        other.send(text("still here"))
        assert other.text() == "still here"


def test_heads_in_pieces_and_what_comes_behind_them(bounded_server: Uvicorn) -> None:
    request = head()
    for cut in (1, len(request) - 3, len(request) - 2, len(request) - 1, len(request)):
        with Peer(bounded_server.port) as peer:
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.send(request[:cut])
            peer.open_with(request[cut:] + (text("x" * 100_000) if cut < len(request) else b""))
            if cut < len(request):
                assert peer.text() == "x" * 100_000


def test_a_large_head_that_ends_is_taken(bounded_server: Uvicorn) -> None:
    with Peer(bounded_server.port) as peer:
        peer.open(Cookie="c" * 60_000)
    with Peer(bounded_server.port) as peer:
        peer.send(head(Cookie="c" * 70_000))
        assert peer.rest()[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")


def test_proxy_stands_in_front_of_a_server(echo: int) -> None:
    command = ("proxy", "--listen", "127.0.0.1:0", "--to", f"ws://127.0.0.1:{echo}", "--verbose")
    with Program(*PROGRAM, *command) as program:
        port = program.port()
        done = connect(port, "--protocol", "chat.v1", stdin="Grüße\n".encode())
        assert (done.returncode, done.stdout.decode()) == (0, "Grüße\n"), done.stderr
        with Peer(port) as peer:
            peer.open()
            os.kill(program.pid, signal.SIGTERM)
            assert peer.close() == (1012, "the server restarts")
            peer.send(close(1012))
            peer.end()
            peer.sock.close()
            assert program.wait() == 0
        assert "Traceback" not in program.output


# --- usage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["connect"], "Missing argument 'URL'"),
        (["connect", "host:80"], "expected a URL such as wss://host/path, got 'host:80'"),
        (["connect", "ws://x/", "--header", "no colon"], "expected 'Name: value', got 'no colon'"),
        (["connect", "ws://x/", "--header", "A: b\x1b[2J"], "expected 'Name: value', got 'A: b\\x1b[2J'"),
        (["connect", "ws://x/", "--header", "Upgrade: x"], "expected header fields besides those"),
        (["connect", "ws://x/", "--protocol", "a b"], "expected subprotocol names"),
        (["connect", "ws://x/", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["connect", "ws://x/", "--proxy", "nowhere"], "expected a proxy's URL"),
        (["connect", "ws://x/", "--binary", "--hex"], "expected --binary or --hex, got both"),
        (["connect", "ws://x/", "--insecure", "--cacert", __file__], "expected --insecure or --cacert, got both"),
        (["connect", "ws://x/", "--cacert", __file__], "expected certificates in PEM form"),
        (["echo", "--listen", "8765"], "expected [HOST]:PORT"),
        (["echo", "--listen", "::1:8765"], "expected [HOST]:PORT"),
        (["echo", "--listen", ":65536"], "expected [HOST]:PORT"),
        (["echo", "--tls-key", __file__], "expected --tls-cert with --tls-key"),
        (["echo", "--tls-cert", __file__], "expected a certificate and its key in PEM form"),
        (["proxy", "--listen", ":0"], "Missing option '--to'"),
        (["proxy", "--to", "ws://x/"], "Missing option '--listen'"),
        (["echo", "--allow-host", "http://x"], "expected a host name such as app.example"),
        (["echo", "--allow-origin", "x y"], "expected an origin such as"),
        (["proxy", "--listen", ":0", "--to", "ws://x/", "--allow-host", "a:80"], "expected a host name"),
        (["proxy"], "Missing option '--"),
        (["proxy", "--listen", ":0", "--to", "nowhere"], "expected a URL, got 'nowhere'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    arguments: Sequence[str], told: str, proxied: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("watershed-mw: ")
    assert captured.err.endswith(" --help)\n")
    assert captured.err.count("\n") == 1
    assert told in captured.err


def test_an_address_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run(["echo", "--listen", where]) == 1
    assert capsys.readouterr().err == f"watershed-mw: cannot listen on {where}: Address already in use\n"


def test_a_proxy_in_the_environment_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "foo://x")
    done = connect("ws://127.0.0.1:9/")
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "expected a proxy's URL" in line


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"watershed-mw {__version__} (")
    for command in ([], ["connect"], ["echo"], ["proxy"]):
        assert run([*command, "--help"]) == 0
        assert "watershed-mw " + " ".join(command) in capsys.readouterr().out
    assert run([]) == 0


def test_without_its_libraries_it_says_what_to_install(run_python: RunPython) -> None:
    for missing, command, told in (
        ("click", "echo", "expected the package click: pip install 'watershed-mw[cli]'"),
        ("httpx", "connect", "expected the package httpx: pip install 'watershed-mw[cli]'"),
        ("uvicorn", "echo", "expected the package uvicorn: pip install 'watershed-mw[cli,uvicorn]'"),
    ):
        said = run_python(
            "import sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name == {missing!r}: raise ModuleNotFoundError(name, name=name)\n"
            "sys.meta_path.insert(0, Hide())\n"
            f"sys.argv = ['watershed-mw', {command!r}, *['ws://x/'] * ({command!r} == 'connect')]\n"
            "sys.stderr = sys.stdout\n"
            "import watershed_mw.cli\n"
            "try: watershed_mw.cli.main()\n"
            "except SystemExit as end: print(end)\n"
        )
        assert told in said


def test_every_option_has_help() -> None:
    for command in cli.commands.values():
        assert all(option.help for option in command.params if isinstance(option, click.Option))


# --- what is shown -----------------------------------------------------------------------------------------------


def test_text_is_escaped_where_a_terminal_would_obey() -> None:
    assert escape(HOSTILE) == HARMLESS
    assert escape("a\nb\u2028") == "a\\nb\\u2028"
    plain = "käse\t日本\u3000\u00a0 👩\u200d👩 \u06cc\u200c\u062e"
    assert escape(plain) == plain
    assert shown("x" * 100_001).endswith("\n  ... and 1 characters more")
    assert all(
        escape(chr(code)).isprintable() for code in (*range(9), *range(10, 32), *range(127, 160), 0x202A, 0xD800)
    )


def test_a_dump_is_cut() -> None:
    lines = list(dump(bytes(1000)))
    assert (len(lines), lines[-1]) == (17, "  ... and 744 bytes more")
    assert list(dump(b"")) == []


def test_close_codes_have_names() -> None:
    assert {code for code in range(1000, 5000) if not status_of(code)} == {1000, 1001, 1005}
    assert describe_end(1006, "") == "closed with 1006 (abnormal)"
    assert describe_end(1012, "a\x1b") == "closed with 1012 (service restart) a\\x1b"
    assert describe_end(3000, "") == "closed with 3000 (application)"
