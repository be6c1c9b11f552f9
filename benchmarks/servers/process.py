"""A server in a process of its own, pinned to a core; its CPU time and its memory."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ROOT = Path(__file__).resolve().parents[2]
# Seconds from a server's start until it answers an upgrade.
LIMIT = 30.0
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        pids: the processes that serve connections, not those that only supervise others.
    """

    port: int
    pids: list[int]

    def cpu(self) -> float:
        """Seconds of CPU time so far, in nanosecond resolution, including threads that have ended."""
        return sum(time.clock_gettime_ns(_cpu_clock(pid)) for pid in self.pids) / 1e9

    def memory(self) -> int:
        """Proportional set size (PSS) in bytes: shared memory counts in proportion."""
        return sum(_memory(pid) for pid in self.pids)


def _cpu_clock(pid: int) -> int:
    # The clock id as clock_getcpuclockid(3) computes it, which Python does not expose: CPU time of the whole process.
    return (~pid << 3) | 2


def _memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _leaves(pid: int) -> list[int]:
    """The descendants of this process that have no children; the process itself if it has none."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            children += map(int, (task / "children").read_text().split())
    return [leaf for child in children for leaf in _leaves(child)] or [pid]


@functools.cache
def certificate() -> tuple[Path, Path]:
    """Create certificate and key for 127.0.0.1 as PEM files, which are deleted when this process exits."""
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    issued = trustme.CA().issue_cert("127.0.0.1")
    chain, key = Path(folder.name, "chain.pem"), Path(folder.name, "key.pem")
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    # granian reads PKCS #8 only.
    private = load_pem_private_key(issued.private_key_pem.bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, key


_kept: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def running(command: list[str], core: int, *, tls: bool, environment: dict[str, str]) -> Iterator[Server]:
    """Run a server for the duration of the block; `{port}` in the command stands for a free port.

    If the server never answers an upgrade, the error shows its output.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    _allow_many_files()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *(part.replace("{port}", str(port)) for part in command)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_for_answer(process, port, tls, output)
            yield Server(port, _leaves(process.pid))
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # no need for a graceful shutdown
            process.wait()


def _allow_many_files() -> None:
    """Raise the descriptor limit as far as allowed, for this process and the servers, which inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, tls: bool, output: IO[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while not _answers(port, tls):
        if process.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            sys.stderr.buffer.write(output.read())
            state = "runs" if process.poll() is None else f"has ended with {process.returncode}"
            raise RuntimeError(f"expected a 101 on port {port}, got none; {state}: {process.args!r}")
        time.sleep(0.05)


def _answers(port: int, tls: bool) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2.0) as sock:
            stream = _unverified().wrap_socket(sock) if tls else sock
            stream.sendall(REQUEST)
            answered = stream.recv(100).startswith(b"HTTP/1.1 101")
            stream.close()
            return answered
    except OSError:
        return False


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
