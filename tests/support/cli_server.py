"""Peers of the command line: a server that misbehaves on demand, and helpers that run the command."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.support import LIMIT, PROJECT
from tests.support.asgi import Receive, Scope, Send

PROGRAM = (sys.executable, "-m", "watershed_mw")
HOSTILE = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202egpj.exe\u2069\r\x7f end"
HARMLESS = "\\x1b]0;owned\\x07\\x1b[2J \\x9b31m \\u202egpj.exe\\u2069\\r\\x7f end"


def connect(
    where: int | str, *arguments: str, path: str = "/", stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `watershed-mw connect` in a pipe, without the pause at the end, which has a test of its own."""
    url = f"ws://127.0.0.1:{where}{path}" if isinstance(where, int) else where
    command = [*PROGRAM, "connect", url, "--wait", "0", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=PROJECT, timeout=LIMIT)


class Server:
    """An application whose paths misbehave in different ways; it records what clients send and how they leave."""

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
