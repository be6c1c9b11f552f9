"""The WSGI integration compared with flask-sock on gunicorn's gthread worker: CPU per message, and idle memory.

Every round starts a fresh gunicorn for each contestant, pinned to one core, and drives it from the other core; ratios
refer to flask-sock in the same round. Only the worker is measured: its CPU time from /proc, and its memory as
proportional set size (PSS).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import uvloop

from watershed_mw import implementation

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept-Language: en-US,en;q=0.9\r\n"
    "Cache-Control: no-cache\r\n\r\n"
)
# Seconds for a server to start, or a client to get its 101.
LIMIT = 20.0


@dataclass(frozen=True)
class Contestant:
    """An application of `wsgi_apps`, and the path at which it echoes."""

    name: str
    app: str
    path: str


CONTESTANTS = (
    Contestant("flask-sock", "flask_sock", "/blocking"),
    Contestant("blocking", "ours", "/blocking"),
    Contestant("background", "ours", "/background"),
    Contestant("async", "ours", "/async"),
)


# --- the server --------------------------------------------------------------------------------------------------


@contextmanager
def gunicorn(app: str, threads: int) -> Iterator[tuple[int, int]]:
    """Start a server on the first core; yield its port and the process id of its worker."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = ["-m", "gunicorn", f"benchmarks.wsgi_apps:{app}", "-b", f"127.0.0.1:{port}", "-k", "gthread"]
    command += ["--threads", str(threads), "--log-level", "error", "--no-control-socket"]
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(["taskset", "-c", str(core), sys.executable, *command], cwd=ROOT)
    try:
        deadline = time.monotonic() + LIMIT
        while not (workers := children(process.pid)) or not listens(port):
            assert time.monotonic() < deadline, "gunicorn does not start"
            time.sleep(0.05)
        yield port, workers[0]
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Proportional set size in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


# --- the load ----------------------------------------------------------------------------------------------------


def frame(size: int) -> bytes:
    """A client's TEXT frame, masked with zeros."""
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return b"\x81" + length + bytes(4) + b"a" * size


class Client(asyncio.Protocol):
    """Sends a frame, waits until as many bytes as its echo have arrived, and sends it again."""

    def __init__(self, path: str, data: bytes) -> None:
        self._request = HEAD.format(path=path).encode()
        self._data = data
        self._echo = len(data) - 4
        self._left = 0
        self._bytes = 0
        self._answer = b""
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def begin(self, count: int) -> asyncio.Future[None]:
        self.done = asyncio.get_running_loop().create_future()
        self._left, self._bytes = count, 0
        self.transport.write(self._data)
        return self.done

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self._answer += data
            if self._answer.endswith(b"\r\n\r\n"):
                assert b" 101 " in self._answer.partition(b"\r\n")[0], self._answer
                self.opened.set_result(None)
            return
        self._bytes += len(data)
        if self._bytes >= self._echo:
            self._bytes -= self._echo
            self._left -= 1
            if self._left:
                self.transport.write(self._data)
            else:
                self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.opened, self.done):
            if not future.done():
                future.set_exception(ConnectionError(f"the server has gone: {error}"))


async def connected(port: int, path: str, count: int, data: bytes) -> list[Client]:
    clients = []
    for _ in range(count):
        _, client = await asyncio.get_running_loop().create_connection(lambda: Client(path, data), "127.0.0.1", port)
        await asyncio.wait_for(client.opened, LIMIT)
        clients.append(client)
    return clients


async def cpu_per_message(port: int, worker: int, path: str, *, size: int, count: int, messages: int) -> float:
    """The worker's CPU time per message in microseconds, with one message in flight on each of `count` connections."""
    clients = await connected(port, path, count, frame(size))
    await asyncio.gather(*(client.begin(max(messages // 10, 2)) for client in clients))
    before = cpu_seconds(worker)
    await asyncio.gather(*(client.begin(messages) for client in clients))
    return (cpu_seconds(worker) - before) / (count * messages) * 1e6


async def idle_memory(port: int, worker: int, path: str, *, count: int) -> float:
    """KiB per connection of `count` connections that have echoed one message and are idle."""
    first = await connected(port, path, count // 2, frame(32))  # enough for thread pools to reach their full size
    await asyncio.gather(*(client.begin(1) for client in first))
    await asyncio.sleep(0.3)  # lets the server finish its work after the response
    before = memory(worker)
    more = await connected(port, path, count, frame(32))
    await asyncio.gather(*(client.begin(1) for client in more))
    await asyncio.sleep(0.3)
    return (memory(worker) - before) / count / 1024


Measure = Callable[[int, int, str], Awaitable[float]]
MEASURES: dict[str, tuple[str, Measure]] = {
    "32 B, 100 connections": (
        "us",
        lambda port, worker, path: cpu_per_message(port, worker, path, size=32, count=100, messages=400),
    ),
    "1 MiB, 4 connections": (
        "us",
        lambda port, worker, path: cpu_per_message(port, worker, path, size=2**20, count=4, messages=60),
    ),
    "idle connection": ("KiB", lambda port, worker, path: idle_memory(port, worker, path, count=100)),
}


# --- the table ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="The WSGI integration compared with flask-sock on gunicorn gthread.")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds: int = parser.parse_args().rounds
    cores = sorted(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("gunicorn", "flask", "flask-sock", "simple-websocket"))
    print(f"CPython {sys.version.split()[0]}, {implementation} build, {packages}; {rounds} rounds, min/median/max")
    for title, (unit, measure) in MEASURES.items():
        seen: dict[str, list[float]] = {contestant.name: [] for contestant in CONTESTANTS}
        for _ in range(rounds):
            for contestant in CONTESTANTS:
                with gunicorn(contestant.app, threads=150) as (port, worker):
                    os.sched_setaffinity(0, {cores[-1]})
                    seen[contestant.name].append(uvloop.run(measured(measure, port, worker, contestant.path)))
                    os.sched_setaffinity(0, cores)
        for name, values in seen.items():
            ratios = [value / peer for value, peer in zip(values, seen["flask-sock"], strict=True)]
            print(f"{title:22} {name:11} {spread(values, 1):>22} {unit:3} {spread(ratios, 3):>22}", flush=True)


async def measured(measure: Measure, port: int, worker: int, path: str) -> float:
    return await measure(port, worker, path)


def spread(values: list[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    main()
