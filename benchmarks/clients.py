"""The client compared with picows and websockets: CPU time of the client's process for each echoed message.

    python -m benchmarks.clients [--rounds 5] [--only REGEX] [--results FILE] [--docs DIRECTORY]

All clients talk to the same server, pinned to one core: `echo.c`, or for TLS the server `raw`. Each client is a process
of its own on the other core, on uvloop, without compression or keepalive. In each round every contestant is measured
once; the ratios are medians of the ratios within each round. The targets are 1.0 of picows and a third of websockets.
`raw`, a bare asyncio protocol, shows how much of that the event loop itself takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiofastnet
import uvloop

from watershed_mw.core.frames.codec import encode_frame

from .__main__ import machine
from .contestants import CONTESTANTS, Setting, started
from .load import BUILD, CFLAGS, ROOT
from .servers.process import REQUEST
from .table import heading, significant

SOURCE = Path(__file__).with_name("echo.c")
SIZES = {"32 B": 32, "4 KiB": 4096, "64 KiB": 2**16, "1 MiB": 2**20}
BURST = 64
MAX_SIZE = 16 * 2**20
# The packages that this client is compared with, and the target for each ratio.
BARS = {"picows": 1.0, "websockets": 1 / 3}


@dataclass(frozen=True)
class Cell:
    """One row of the table: a message size, and how many are in flight."""

    size: str
    window: int
    tls: bool

    @property
    def name(self) -> str:
        flight = "one in flight" if self.window == 1 else f"bursts of {self.window}"
        return f"{self.size}, {flight}{', TLS' if self.tls else ''}"

    @property
    def rounds(self) -> int:
        """The number of windows in one run, for about a quarter of a second of CPU time."""
        seconds = (40e-6 if self.window == 1 else 6e-6) + SIZES[self.size] * (2e-9 if self.tls else 1e-9)
        return max(3, int(0.25 / seconds / self.window))


CELLS = [Cell(size, window, tls) for tls in (False, True) for window in (1, BURST) for size in SIZES]


# --- the clients -------------------------------------------------------------------------------------------------


class Course:
    """Counts the messages that return, first for a warm-up and then for the measured run."""

    def __init__(self, window: int, rounds: int) -> None:
        self._windows = [max(1, rounds // 10), rounds]
        self._size = window
        self._left = window
        self._began = 0.0
        self.used = 0.0

    def back(self) -> int:
        """Count a returned message; return how many to send now, or -1 at the end."""
        self._left -= 1
        if self._left:
            return 0
        self._left = self._size
        self._windows[0] -= 1
        if not self._windows[0]:
            del self._windows[0]
            now = time.process_time()
            self.used, self._began = now - self._began, now
        return self._size if self._windows else -1


Client = Callable[[str, "ssl.SSLContext | None", bytes, int, int], Awaitable[Course]]


async def callbacks(url: str, tls: ssl.SSLContext | None, data: bytes, window: int, rounds: int) -> Course:
    """This package's client with a `binary` handler."""
    from watershed_mw.client import connect

    course = Course(window, rounds)
    async with connect(
        url, ssl=tls, compression=False, ping_interval=None, proxy=None, max_message_size=MAX_SIZE
    ) as conn:

        def back(message: bytes) -> None:
            more = course.back()
            if more < 0:
                conn.destroy()  # `raw` does not answer a Close frame
            for _ in range(more):
                conn.send(data)

        conn.on("binary", back)
        for _ in range(window):
            conn.send(data)
        await conn.run()
    return course


async def receive(url: str, tls: ssl.SSLContext | None, data: bytes, window: int, rounds: int) -> Course:
    """This package's client with `receive` and `send`."""
    from watershed_mw.client import connect

    async with connect(
        url, ssl=tls, compression=False, ping_interval=None, proxy=None, max_message_size=MAX_SIZE
    ) as conn:
        course = await pulling(conn.send, conn.receive, data, window, rounds)
        conn.destroy()
    return course


async def pulling(
    send: Callable[[bytes], Awaitable[None]],
    recv: Callable[[], Awaitable[object]],
    data: bytes,
    window: int,
    rounds: int,
) -> Course:
    course = Course(window, rounds)
    more = window
    while more >= 0:
        for _ in range(more):
            await send(data)
        await recv()
        more = course.back()
    return course


async def websockets(url: str, tls: ssl.SSLContext | None, data: bytes, window: int, rounds: int) -> Course:
    """The asyncio client of websockets."""
    from websockets.asyncio.client import connect

    async with connect(url, ssl=tls, compression=None, ping_interval=None, proxy=None, max_size=MAX_SIZE) as conn:
        course = await pulling(conn.send, conn.recv, data, window, rounds)
        conn.transport.abort()
    return course


async def picows(url: str, tls: ssl.SSLContext | None, data: bytes, window: int, rounds: int) -> Course:
    """The client of picows with its callback; the payload is copied into bytes, as this package's client does."""
    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

    course = Course(window, rounds)

    class Listener(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            for _ in range(window):
                transport.send(WSMsgType.BINARY, data)

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type != WSMsgType.BINARY:
                return
            frame.get_payload_as_bytes()
            more = course.back()
            if more < 0:
                transport.disconnect()
            for _ in range(more):
                transport.send(WSMsgType.BINARY, data)

    transport, _ = await ws_connect(Listener, url, ssl_context=tls, max_frame_size=MAX_SIZE)
    await transport.wait_disconnected()
    return course


class RawProtocol(asyncio.Protocol):
    """Sends prepared frames, and counts the bytes that return."""

    def __init__(self, data: bytes, window: int, course: Course) -> None:
        self._frame = encode_frame(2, data, b"mask")
        self._window = window
        self._course = course
        self._head = b""
        self._have = 0
        self.gone = asyncio.get_running_loop().create_future()

    def begin(self, transport: asyncio.Transport) -> None:
        """Ask for the upgrade."""
        self._transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        if not self._head.endswith(b"\r\n\r\n"):
            self._head += data  # nothing follows it before a frame has been sent
            if self._head.endswith(b"\r\n\r\n"):
                self._send(self._window)
            return
        self._have += len(data)
        size = len(self._frame) - 4  # without the mask
        while self._have >= size:
            self._have -= size
            more = self._course.back()
            if more < 0:
                self._transport.abort()
            elif more:
                self._send(more)

    def _send(self, count: int) -> None:
        if count == 1:
            self._transport.write(self._frame)
        else:
            self._transport.writelines([self._frame] * count)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)


async def raw(url: str, tls: ssl.SSLContext | None, data: bytes, window: int, rounds: int) -> Course:
    """The limit: the loop's own stream without WebSocket; TLS is aiofastnet's, as in this package's client."""
    course = Course(window, rounds)
    protocol = RawProtocol(data, window, course)
    loop = asyncio.get_running_loop()
    host, port = "127.0.0.1", urlsplit(url).port
    assert port is not None
    transport, _ = await loop.create_connection(lambda: protocol, host, port)
    if tls is not None:
        transport = await aiofastnet.start_tls(loop, transport, protocol, tls, server_hostname=host)
    protocol.begin(transport)
    await protocol.gone
    return course


CLIENTS: dict[str, Client] = {
    "callbacks": callbacks,
    "receive": receive,
    "picows": picows,
    "websockets": websockets,
    "raw": raw,
}


def run_client(name: str, url: str, size: int, window: int, rounds: int) -> None:
    """Run one contestant, in this process, and print its CPU seconds."""
    tls = None
    if url.startswith("wss:"):
        tls = ssl.create_default_context()
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE

    async def main() -> Course:
        return await CLIENTS[name](url, tls, bytes(range(256)) * (size // 256) or bytes(range(size)), window, rounds)

    print(uvloop.run(main()).used)


# --- measuring ---------------------------------------------------------------------------------------------------


@contextmanager
def server(core: int, tls: bool) -> Iterator[str]:
    """The URL of a server on `core`."""
    if tls:
        with started(CONTESTANTS["raw"], Setting("uvloop", tls=True), core) as running:
            yield f"wss://127.0.0.1:{running.port}/"
        return
    program = BUILD / "echo"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", *CFLAGS, "-o", str(program), str(SOURCE)], check=True)
    pipe = subprocess.PIPE
    with subprocess.Popen(["taskset", "-c", str(core), str(program)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"ws://127.0.0.1:{process.stdout.readline().strip()}/"
        process.stdin.close()


def measure(name: str, url: str, cell: Cell, core: int) -> float:
    """Microseconds of CPU per message."""
    arguments = [name, url, *map(str, (SIZES[cell.size], cell.window, cell.rounds))]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.clients", "--client", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout) / cell.rounds / cell.window * 1e6


def ratios(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    """The median of the ratios within each round."""
    return statistics.median(one / other for one, other in zip(times[ours], times[theirs], strict=True))


def report(cell: Cell, times: dict[str, list[float]]) -> dict[str, Any]:
    """Print a line of the table, and return its values."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    compared = {
        f"{ours}/{theirs}": ratios(times, ours, theirs)
        for theirs in BARS
        for ours in ("callbacks", "receive", "raw")
        if ours in times and theirs in times
    }
    figures = " ".join(f"{name} {value:9.2f}" for name, value in medians.items())
    shares = " ".join(f"{name} {value:5.2f}" for name, value in compared.items())
    print(f"{cell.name:32} {figures}   {shares}", flush=True)
    return {"cell": cell.name, "microseconds": medians, "ratios": compared, "rounds": times}


def markdown(results: dict[str, Any]) -> str:
    """The page docs/performance_clients.md."""
    about = (
        "Generated by `make bench-clients`. CPU time of the client's process for each message that it sends to an "
        "echo server and receives back, on uvloop, without compression. `callbacks` is this package's client with a "
        'handler (`conn.on("binary", ...)`), `receive` the same client awaiting each message. The server is a small C '
        "program; for TLS it is the benchmark's `raw` server. Each ratio column shows `callbacks` / `receive`, medians "
        "of the ratios within each round; bold ratios miss the target (1.0 of picows, 0.333 of websockets). `raw` is "
        "not a real client: it is a protocol on the same event loop that sends prepared frames and counts the bytes "
        "that return."
    )
    columns = [*(f"{name}, µs" for name in CLIENTS), *(f"ratio to {name}" for name in BARS)]
    columns += [f"raw, ratio to {name}" for name in BARS]
    lines = [f"| load | {' | '.join(columns)} |", "|---|" + "---:|" * len(CLIENTS) + "---|---|---:|---:|"]
    for row in results["cells"]:
        figures = [significant(row["microseconds"][name]) for name in CLIENTS]
        shares = [
            " / ".join(_judged(row["ratios"][f"{ours}/{theirs}"], bar) for ours in ("callbacks", "receive"))
            for theirs, bar in BARS.items()
        ]
        shares += [f"{row['ratios'][f'raw/{theirs}']:.2f}" for theirs in BARS]
        lines.append(f"| {row['cell']} | " + " | ".join([*figures, *shares]) + " |")
    where = "\n".join([*heading(results).split("\n")[:2], f"{results['rounds']} rounds for each load"])
    parts = ["# The client compared with picows and websockets", about, f"```text\n{where}\n```", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _judged(ratio: float, bar: float) -> str:
    return f"{ratio:.2f}" if ratio <= bar else f"**{ratio:.2f}**"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=re.compile, default=re.compile(""))
    parser.add_argument("--names", nargs="*", default=list(CLIENTS))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--docs", type=Path, metavar="DIRECTORY", help="where to write performance_clients.md")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        name, url, *numbers = options.client
        size, window, rounds = map(int, numbers)
        run_client(name, url, size, window, rounds)
        return
    cells = []
    for cell in CELLS:
        if not options.only.search(cell.name):
            continue
        times: dict[str, list[float]] = {name: [] for name in options.names}
        with server(0, cell.tls) as url:
            for _ in range(options.rounds):
                for name, values in times.items():
                    values.append(measure(name, url, cell, 1))
        cells.append(report(cell, times))
    results = {"machine": machine(), "rounds": options.rounds, "seconds": 0.25, "cells": cells}
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    if options.docs:
        options.docs.joinpath("performance_clients.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
