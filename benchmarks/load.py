"""The load generator `load.c`, called from Python.

It is compiled on first use and runs in a process of its own, pinned to the core that the caller names, which is the one
without a server. All measuring happens there; this module only builds payloads and reads results.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(__file__).with_name("load.c")
BUILD = ROOT / "build" / "benchmarks"
CFLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra"]
# A browser's offer; and one that lets the client send the same compressed bytes repeatedly.
BROWSER_OFFER = "permessage-deflate; client_max_window_bits"
OFFER = "permessage-deflate; client_no_context_takeover"


class LoadError(Exception):
    """The load generator failed; the message is its own."""


@dataclass(frozen=True)
class Echo:
    """The result of one run of messages.

    `p50` and `p99` are microseconds from sending a message to its echo. With several in flight they are from sending
    the window to its last echo, with a broadcast to its last reception. `cpu` is the server's microseconds per message,
    NaN if the caller gave no way to read them.
    """

    messages: int
    seconds: float
    p50: float
    p99: float
    cpu: float = math.nan


# --- the program ---------------------------------------------------------------------------------------------------


def build() -> Path:
    """Compile the load generator if it is older than its source; without OpenSSL's headers it does not support TLS."""
    program = BUILD / "load"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        compiled = Path(scratch, "load")
        command = ["cc", *CFLAGS, "-o", str(compiled), str(SOURCE)]
        if subprocess.run([*command, "-lssl", "-lcrypto"], capture_output=True).returncode:
            subprocess.run([*command, "-DWITHOUT_TLS"], check=True)
        compiled.replace(program)
    return program


@contextmanager
def running(mode: str, core: int, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run the program, with pipes to it; it exits by itself if a server does not respond."""
    arguments = [f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in options.items()]
    command = ["taskset", "-c", str(core), str(build()), mode, *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise LoadError(process.stderr.read().strip() or f"the load generator ended with {process.wait()}")
    return line


# --- payloads ------------------------------------------------------------------------------------------------------


def document(size: int) -> bytes:
    """Typical JSON text, cut to `size` bytes; 4 KiB of it deflate to about a quarter."""
    names = ("ada", "grace", "edsger", "barbara", "donald", "frances", "tony", "leslie")
    events = ("created", "updated", "shipped", "cancelled", "returned")
    text, number = "", 0
    while len(text) < size:
        number += 7919
        record = {
            "id": number,
            "user": names[number % 8],
            "event": events[number % 5],
            "at": f"2024-{number % 12 + 1:02}-{number % 28 + 1:02}T{number % 24:02}:{number % 60:02}:{number % 59:02}Z",
            "price": number % 9973 / 100,
            "tags": [events[number % 3], names[number % 7]],
            "read": number % 2 == 0,
        }
        text += ("," if text else "[") + json.dumps(record, separators=(",", ":"))
    return text[:size].encode()


@cache
def payload(size: int, *, text: bool, window_bits: int | None = None) -> Path:
    """Write a frame's payload to a file: a message of `size` bytes, deflated if `window_bits` is given."""
    data = document(size) if text else (bytes(range(256)) * (size // 256 + 1))[:size]
    if window_bits is not None:
        deflater = zlib.compressobj(wbits=-window_bits)
        data = (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"payload-{'text' if text else 'binary'}-{size}-{window_bits or 'plain'}"
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)
    return path


# --- the modes -----------------------------------------------------------------------------------------------------


def echo(
    port: int,
    path: str = "/",
    *,
    connections: int,
    window: int,
    size: int,
    text: bool = False,
    deflate: bool = False,
    tls: bool = False,
    seconds: float = 1.0,
    core: int,
    around: Callable[[], float] | None = None,
) -> Echo:
    """Keep `window` messages of `size` bytes in flight on each connection for `seconds`, after a warm-up.

    `around` returns the seconds of CPU that the server has used so far. It is called after the warm-up and after the
    run, each time when the last message has returned and nothing is in flight.
    """
    what = payload(size, text=text, window_bits=15 if deflate else None)
    options = {"connections": connections, "window": window, "size": size, "text": text, "tls": tls}
    offer = OFFER if deflate else ""
    with running("echo", core, port=port, path=path, payload=what, offer=offer, seconds=seconds, **options) as process:
        return measured(process, around)


def broadcast(
    port: int,
    path: str,
    *,
    connections: int,
    rounds: int,
    size: int,
    core: int,
    around: Callable[[], float] | None = None,
) -> Echo:
    """Let one client send messages that all connections, its own included, receive; `messages` counts each once."""
    options = {"connections": connections, "rounds": rounds, "size": size, "payload": payload(size, text=True)}
    with running("broadcast", core, port=port, path=path, text=True, **options) as process:
        return measured(process, around)


def measured(process: subprocess.Popen[str], around: Callable[[], float] | None) -> Echo:
    assert process.stdin is not None
    line_of(process)  # the warm-up is over
    before = around() if around else math.nan
    process.stdin.write("go\n")
    line = line_of(process)
    used = around() - before if around else math.nan
    result = Echo(**json.loads(line))
    return Echo(result.messages, result.seconds, result.p50, result.p99, used / result.messages * 1e6)


def opening(port: int, path: str, *, seconds: float, core: int, churn: bool = False, tls: bool = False) -> float:
    """Opening handshakes per second of one client that opens connections one after another.

    With `churn`, an echoed message of 32 bytes and the closing handshake follow each of them.
    """
    options = {"port": port, "path": path, "seconds": seconds, "tls": tls, "text": True, "size": 32}
    with running("churn" if churn else "open", core, payload=payload(32, text=True), **options) as process:
        result = json.loads(line_of(process))
    return float(result["handshakes"] / result["seconds"])


@contextmanager
def idle(
    port: int, path: str, *, connections: int, deflate: bool = False, messages: int = 0, core: int
) -> Iterator[None]:
    """Hold `connections` connections open, each after `messages` echoed messages.

    Their requests have a browser's header fields. The messages are 4 KiB of text, which some servers keep in memory.
    Deflated messages use the smallest window, so they are valid whatever window the server asks for.
    """
    size = 4096
    what = payload(size, text=True, window_bits=9 if deflate else None)
    options = {"connections": connections, "messages": messages, "size": size, "text": True}
    offer = BROWSER_OFFER if deflate else ""
    with running("idle", core, port=port, path=path, payload=what, offer=offer, **options) as process:
        line_of(process)
        yield
        if process.poll() is not None:
            line_of(process)  # raises an error that says what happened to the connections
