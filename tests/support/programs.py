"""Programs as real processes, and free ports.

A program is only trusted to print its address. Every wait has a limit, and nothing outlives its `with` block: each
program has a process group of its own, which is killed as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.support import LIMIT, PROJECT

T = TypeVar("T")


marked = True
"""Whether the test that runs is marked as one that starts programs; without pytest nothing needs a mark."""

ADDRESS = re.compile(r"\b(?:http|ws)://127\.0\.0\.1:(\d+)")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, below the kernel's range of ephemeral ports."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Program:
    """A program running in a process group of its own, with its output (both streams) collected line by line.

    `command` is the argument list; `sys.executable` is put in front when it starts with a `.py` file.
    Leaving the `with` block kills whatever of the group is still alive.
    """

    def __init__(self, *command: str | Path, cwd: Path | None = None) -> None:
        assert marked, "expected a test that starts a program to be marked: @pytest.mark.programs"
        arguments = [str(part) for part in command]
        if arguments[0].endswith(".py"):
            arguments.insert(0, sys.executable)
        self.command = " ".join(arguments)
        # The children must find the package in the tree under test, installed or not, and must not hold back
        # a line.
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        self._process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._output: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._output.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """Everything that the program has printed so far."""
        with self._news:
            return "".join(self._output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_line(self, pattern: re.Pattern[str], timeout: float = LIMIT) -> re.Match[str]:
        """The first match of `pattern` in the output; AssertionError if the program ends without one."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                if match := pattern.search("".join(self._output)):
                    return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(
                        f"{self.command!r} {'ended' if self._ended else f'had {timeout} s'} without printing"
                        f" /{pattern.pattern}/; it printed:\n{''.join(self._output)}"
                    )
                self._news.wait(left)

    def port(self, timeout: float = LIMIT) -> int:
        """The port of the first address (http:// or ws://, on 127.0.0.1) that the program prints."""
        return int(self.wait_for_line(ADDRESS, timeout)[1])

    def wait(self, timeout: float = LIMIT) -> int:
        """The exit code, after the program has ended by itself and its output has been read completely."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command!r} still runs after {timeout} s; it printed:\n{self.output}") from None
        self._reader.join(timeout)
        return code

    def outlives(self, seconds: float) -> bool:
        """Whether the program still runs after `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = LIMIT) -> int:
        """Send a signal to the program only and return the exit code, negative after death by a signal."""
        self._process.send_signal(number)
        return self.wait(timeout)

    def group_is_alive(self) -> bool:
        """Whether any process of the program's group is still alive: the program itself, or a child it left behind."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        if self._process.stdout is not None:
            self._process.stdout.close()


def listens(port: int) -> bool:
    """Whether a server listens on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT):
        return True
    return False
