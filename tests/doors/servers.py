"""The servers of the matrix: how each is started, and what it leaves out. `servers_app.py` is what they serve."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support import LIMIT, PROJECT, Program, free_port

from .support import UVICORN_CLASS, eventually

APPLICATION = "tests.doors.servers_app:application"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Server:
    """One server without our frames; every difference from the first one is a fact about the server.

    Attributes:
        named: how an error names it.
        headers: whether it sends the header fields of the accept.
        empty: whether it sends empty messages.
        denial: whether it sends another refusal than a bare 403.
        before: status of an application that raises before it accepts.
        reasons: whether it passes the application's close reason on.
        codes: whether it tells the application the client's close code.
        too_long: close code after a message past the application's limit.
    """

    name: str
    command: tuple[str, ...]
    named: str
    headers: bool = True
    empty: bool = True
    denial: bool = True
    before: int = 500
    reasons: bool = True
    codes: bool = True
    too_long: int = 1009


def _uvicorn(ws: str) -> Server:
    return Server(
        f"uvicorn-{ws}", ("uvicorn", APPLICATION, "--port", "{port}", "--ws", ws), "uvicorn with a WebSocket class"
    )


def _hypercorn(worker: str) -> Server:
    # It tells the application of 1006 whatever the client's Close says.
    command = ("hypercorn", APPLICATION, "--bind", "127.0.0.1:{port}", "--worker-class", worker)
    return Server(f"hypercorn-{worker}", command, "hypercorn", codes=False)


PORTABLE: Sequence[Server] = (
    _uvicorn("websockets-sansio"),
    _uvicorn("websockets"),
    _uvicorn("wsproto"),
    _hypercorn("asyncio"),
    _hypercorn("uvloop"),
    _hypercorn("trio"),
    Server(
        "granian",
        ("granian", "--interface", "asgi", "--port", "{port}", APPLICATION),
        "granian",
        headers=False,
        before=403,
    ),
    Server(
        "daphne",
        ("daphne", "--port", "{port}", APPLICATION),
        "daphne",
        headers=False,
        empty=False,
        denial=False,
        reasons=False,
        too_long=4009,  # of the codes below 3000 it sends 1000 alone
    ),
    Server(
        "gunicorn-asgi",
        ("gunicorn", APPLICATION, "--worker-class", "asgi", "--bind", "127.0.0.1:{port}"),
        "gunicorn's asgi worker",
        denial=False,
    ),
)


@contextlib.contextmanager
def running(*command: str, ready: Callable[[int], bool] | None = None) -> Iterator[tuple[Program, int]]:
    """A server, and its port once it answers. Of the command, `{port}` becomes a free port."""
    port = free_port()
    first, *rest = (part.format(port=port) for part in command)
    with Program(_BIN / first, *rest) as program:
        eventually(lambda: (ready or _listens)(port), f"an answer of {first}: {program.output}")
        yield program, port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return sock.recv(100).startswith(b"HTTP/1.1 200")
    return False


def ours(*options: str, app: str = APPLICATION) -> tuple[str, ...]:
    """The command of uvicorn with our class."""
    return ("uvicorn", app, "--port", "{port}", "--ws", UVICORN_CLASS, *options)


# --- uvicorn's versions --------------------------------------------------------------------------------------

# The newest of each minor version, from the oldest that the package supports.
UVICORNS = (
    *("0.30.6", "0.31.1", "0.32.1", "0.33.0", "0.34.3", "0.35.0", "0.36.1", "0.37.0", "0.38.0", "0.39.0"),
    *("0.40.0", "0.41.0", "0.42.0", "0.43.0", "0.44.0", "0.45.0", "0.46.0", "0.47.0", "0.48.0", "0.49.0"),
    *("0.50.2", "0.51.0", "0.52.4", "0.53.0", "0.54.0"),
)
_CACHE = PROJECT / "build" / "uvicorns"


def install_uvicorn(version: str) -> Path:
    """The folder that holds this version of uvicorn and nothing else."""
    place = _CACHE / version
    if not (place / "uvicorn").is_dir():
        half = _CACHE / f"{version}.{os.getpid()}"
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(half))
        subprocess.run([*pip, f"uvicorn=={version}"], check=True, timeout=60, capture_output=True)
        with contextlib.suppress(OSError):  # somebody else was first
            half.rename(place)
    return place


def converse_on(version: str) -> str:
    """Hold a conversation on this version of uvicorn, in a process of its own; what it printed."""
    place = install_uvicorn(version)
    path = os.pathsep.join([str(place), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.doors.servers_versions", version],
        env=os.environ | {"PYTHONPATH": path},
        cwd=PROJECT,
        timeout=6 * LIMIT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "all well" if done.returncode == 0 else f"exit status {done.returncode}: {done.stdout}"


def converse_on_all() -> dict[str, str]:
    """:func:`converse_on` every version, a few at a time."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(UVICORNS, pool.map(converse_on, UVICORNS), strict=True))
