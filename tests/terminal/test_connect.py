"""``connect``, in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support import LIMIT, PROJECT
from tests.support.cli_server import HARMLESS, PROGRAM, Server, connect
from tests.support.pages import blocks
from tests.support.waiting import eventually

pytestmark = pytest.mark.programs

# What a terminal would have obeyed of it, among what else it was sent.
_OBEYED = re.compile("owned\x07|\x1b]0|\x1b\\[2J|[\x80-\x9f\u202e\u2069\x7f]")


# --- in a pipe -----------------------------------------------------------------------------------------------


def test_lines_of_stdin_are_messages_and_replies_are_lines_of_stdout(echo: int) -> None:
    lines = "one\n\n\x1b[31mred\nkäse\n".encode()
    done = connect(echo, stdin=lines + b"bad\xff\nnever\n")
    assert (done.returncode, done.stdout) == (1, lines)
    assert done.stderr.decode() == (
        "watershed-mw: expected UTF-8 (--binary sends any bytes) in line 5 of stdin, got b'bad\\xff'\n"
    )


def test_the_end_of_stdin_waits_for_replies_and_verbose_prints_more(server: tuple[Server, int]) -> None:
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


def test_the_documented_pipes_work_as_described(echo: int, tmp_path: Path) -> None:
    """A reader that exits early ends the connection in an orderly way."""
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


def test_the_exit_status_depends_on_the_end(server: tuple[Server, int]) -> None:
    _, port = server
    refused = f"expected status 101 (Switching Protocols), got 403 Forbidden from http://127.0.0.1:{port}/refused"
    too_big = "message too large: at most 10 bytes (max_message_size), got 11 or more"
    expected = {
        "/close/4000": (1, f"closed with 4000 (application) {HARMLESS}\n"),
        "/large": (1, f"closed with 1009 (too big) {too_big}\n"),
        "/refused": (1, f"watershed-mw: {refused}: no entry\\n{HARMLESS}\n"),
    }
    with ThreadPoolExecutor() as pool:  # most of the time is the interpreter's start
        ended = list(pool.map(lambda path: connect(port, "--wait", "inf", "--max-size", "10", path=path), expected))
    assert [(done.returncode, done.stderr.decode()) for done in ended] == list(expected.values())
    assert {done.stdout for done in ended} == {b""}


def test_reconnect_continues_with_the_next_line_until_a_signal(server: tuple[Server, int]) -> None:
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


# --- on a terminal -------------------------------------------------------------------------------------------


# What a shell does for its children, so that Ctrl-C means something whoever reads; not between fork and exec here, as
# there are threads.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program whose three streams are a pseudo-terminal; its output is collected."""

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
        """Everything that was sent to the terminal."""
        with self._news:
            return self._seen.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """The same without control sequences."""
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


def test_the_prompt_sends_shows_and_remembers_lines(echo: int, tmp_path: Path) -> None:
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
            ("/close 1006", "expected a close code from 1000 to 1003"),
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


def test_a_hostile_server_cannot_control_the_terminal(server: tuple[Server, int], tmp_path: Path) -> None:
    application, port = server
    url = f"ws://127.0.0.1:{port}/hostile"
    with Terminal("connect", url, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait_for(f"< {HARMLESS}")
        terminal.wait_for("< one\n  < two")
        terminal.wait_for("  00f0  f0 f1")
        terminal.wait_for("  ... and 1 more bytes")
        terminal.wait_for("< PING ")
        terminal.press("bye\r")
        terminal.wait_for(f"closed with 4000 (application) {HARMLESS}")
        assert terminal.wait() == 1
        assert not _OBEYED.search(terminal.raw)
    # stdin is no terminal here, and stdout is
    with Terminal("connect", url, "--wait", "inf", stdin=subprocess.DEVNULL) as terminal:
        terminal.wait_for(HARMLESS)
        terminal.wait_for("  ... and 1 more bytes")
        terminal.press("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert not _OBEYED.search(terminal.raw)
    assert application.ends[1:] == [(1000, "")]


def test_a_signal_ends_the_prompt_and_restores_the_terminal(echo: int, tmp_path: Path) -> None:
    with Terminal("connect", f"ws://127.0.0.1:{echo}/", "--user", "ann", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait_for("password of ann: ")
        terminal.press("secret\r")
        terminal.wait_for("commands\n>")
        terminal.signal(signal.SIGTERM)
        terminal.wait_for("closed with 1000 (normal)")
        assert terminal.wait() == 128 + signal.SIGTERM
        assert "secret" not in terminal.raw
        assert terminal.raw.count("\x1b[?2004h") == terminal.raw.count("\x1b[?2004l")  # bracketed paste, on and off
