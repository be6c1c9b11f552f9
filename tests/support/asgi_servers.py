"""The ASGI servers of the test matrix: how each is started, and what it does not support.

They serve `asgi_servers_app.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.support import LIMIT, PROJECT
from tests.support.peers import Answer, Peer, close, dial, head
from tests.support.programs import Program, free_port
from tests.support.threaded_servers import UVICORN_CLASS
from tests.support.waiting import eventually

APPLICATION = "tests.support.asgi_servers_app:application"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Server:
    """A server that handles frames itself; attributes that differ from the defaults are limits of that server.

    Attributes:
        command: the command line; `{port}` stands for any port that the server reports, `{free}` for a free one.
        named: the server's name in errors.
        headers: whether it sends the headers of the accept.
        empty: whether it sends empty messages.
        denial: whether it sends refusals other than a bare 403.
        before: the status if the application raises before it accepts.
        reasons: whether it passes on the application's close reason.
        low_codes: whether it sends close codes below 3000 other than 1000.
        told: what the application sees of a client's Close(4005, "enough").
        too_long: the close code after a message above the application's limit.
        lifespan: whether it supports lifespan events.
        stopped: the close code that a client gets at SIGTERM; None if its stream just ends.
        patient: whether the application sees its lifespan's shutdown event while a client is connected.
        absolute_hosts: whether it passes on the host of an absolute-form target.
        versions: whether it passes on, or checks, the HTTP version of an upgrade.
    """

    name: str
    command: tuple[str, ...]
    named: str
    headers: bool = True
    empty: bool = True
    denial: bool = True
    before: int = 500
    reasons: bool = True
    low_codes: bool = True
    told: tuple[int, str] = (4005, "enough")
    too_long: int = 1009
    lifespan: bool = True
    stopped: int | None = 1012
    patient: bool = True
    absolute_hosts: bool = True
    versions: bool = True


def _uvicorn(ws: str) -> Server:
    return Server(
        f"uvicorn-{ws}",
        ("uvicorn", APPLICATION, "--port", "{port}", "--ws", ws),
        "uvicorn with another WebSocket class",
        versions=False,
    )


def _hypercorn(worker: str, stopped: int | None) -> Server:
    # It tells the application of 1006 whatever the client's Close says, and at a stop it lets clients be until the
    # grace period ends, which is 3 seconds unless told otherwise.
    command = ("hypercorn", APPLICATION, "--bind", "127.0.0.1:{port}", "--worker-class", worker)
    grace = ("--graceful-timeout", "1")
    return Server(f"hypercorn-{worker}", command + grace, "hypercorn", told=(1006, ""), stopped=stopped)


HYPERCORNS: Sequence[Server] = (_hypercorn("asyncio", 1011), _hypercorn("uvloop", 1011), _hypercorn("trio", None))
PORTABLE: Sequence[Server] = (
    _uvicorn("websockets-sansio"),
    _uvicorn("websockets"),
    _uvicorn("wsproto"),
    *HYPERCORNS,
    Server(
        "granian",
        # it reports the port that it was given, even if that is 0
        ("granian", "--interface", "asgi", "--port", "{free}", APPLICATION),
        "granian",
        headers=False,
        before=403,
        told=(4005, ""),
        stopped=None,
        absolute_hosts=False,
    ),
    Server(
        "daphne",
        ("daphne", "--port", "{port}", APPLICATION),
        "daphne",
        headers=False,
        empty=False,
        denial=False,
        reasons=False,
        low_codes=False,
        told=(4005, ""),
        too_long=4009,  # what we send instead of 1009
        lifespan=False,
        stopped=None,
        patient=False,
        absolute_hosts=False,
        versions=False,
    ),
    Server(
        "gunicorn-asgi",
        # Clients are let be for the grace period, 30 seconds unless told otherwise. The control socket would lie in
        # the user's home directory.
        (
            *("gunicorn", APPLICATION, "--worker-class", "asgi", "--bind", "127.0.0.1:{port}"),
            *("--graceful-timeout", "1", "--no-control-socket"),
        ),
        "gunicorn's asgi worker",
        denial=False,
        told=(4005, ""),
        stopped=None,
        patient=False,
    ),
)

_ADDRESS = re.compile(r"127\.0\.0\.1:([1-9]\d*)")


@contextlib.contextmanager
def running(*command: str, probe: bool = True) -> Iterator[tuple[Program, int]]:
    """Run a server and yield its port.

    With `probe` it has answered a request first, because some servers report that they listen before they do.
    """
    first, *rest = (part.format(port=0, free=free_port()) for part in command)
    with Program(_BIN / first, *rest) as program:
        port = int(program.wait_for_line(_ADDRESS)[1])
        if probe:
            eventually(lambda: _answers(port), f"an answer of {first}")
        yield program, port


@contextlib.contextmanager
def running_at(place: Path) -> Iterator[Program]:
    """Run uvicorn with `WatershedProtocol` on a Unix socket."""
    with Program(_BIN / "uvicorn", APPLICATION, "--ws", UVICORN_CLASS, "--uds", place) as program:
        program.wait_for_line(re.compile("running on unix socket"))
        yield program


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return sock.recv(100).startswith(b"HTTP/1.1 200")
    return False


def ours(*options: str, app: str = APPLICATION) -> tuple[str, ...]:
    """The command that starts uvicorn with `WatershedProtocol`."""
    return ("uvicorn", app, "--port", "{port}", "--ws", UVICORN_CLASS, *options)


_HAND_OVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
listener.set_inheritable(True)
print("listening on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
os.execv(sys.argv[1], [*sys.argv[1:], "--fd", str(listener.fileno())])
"""


def ours_on_a_socket() -> tuple[str, ...]:
    """Run uvicorn with `WatershedProtocol` on a socket that another program has opened."""
    return ("python", "-c", _HAND_OVER, str(_BIN / "uvicorn"), APPLICATION, "--ws", UVICORN_CLASS)


# --- uvicorn's versions --------------------------------------------------------------------------------------

# The newest of each minor version, from the oldest that the package supports.
UVICORNS = (
    *("0.30.6", "0.31.1", "0.32.1", "0.33.0", "0.34.3", "0.35.0", "0.36.1", "0.37.0", "0.38.0", "0.39.0"),
    *("0.40.0", "0.41.0", "0.42.0", "0.43.0", "0.44.0", "0.45.0", "0.46.0", "0.47.0", "0.48.0", "0.49.0"),
    *("0.50.2", "0.51.0", "0.52.4", "0.53.0", "0.54.0"),
)
_CACHE = PROJECT / "build" / "uvicorns"


def install_uvicorn(version: str) -> Path:
    """The folder that contains this version of uvicorn and nothing else."""
    place = _CACHE / version
    if not (place / "uvicorn").is_dir():
        _CACHE.mkdir(parents=True, exist_ok=True)
        half = _CACHE / f"{version}.{os.getpid()}"
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(half))
        subprocess.run([*pip, f"uvicorn=={version}"], check=True, timeout=60, capture_output=True)
        try:
            half.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(half)
    return place


_OF_A_VERSION = """
import sys
_, place, way, application, *options = sys.argv
sys.path.insert(0, place)
import uvicorn
assert uvicorn.__file__.startswith(place), uvicorn.__file__
if way == "by name":
    uvicorn.main([application, "--port", "0", *options])
else:
    from watershed_mw.uvicorn import WatershedProtocol
    uvicorn.run(application, port=0, ws=WatershedProtocol)
"""


def ours_of(version: str) -> tuple[str, ...]:
    """Run `WatershedProtocol` on this version of uvicorn.

    From 0.36 on by command line; before that by `uvicorn.run`, because older versions do not take a class by name.
    """
    by_name = tuple(map(int, version.split(".")[:2])) >= (0, 36)
    way = ("by name", APPLICATION, "--ws", UVICORN_CLASS) if by_name else ("as an object", APPLICATION)
    return ("python", "-c", _OF_A_VERSION, str(install_uvicorn(version)), *way)


def converse_within(version: str) -> None:
    """Talk to this version of uvicorn with each HTTP parser, all in one process of its own."""
    path = os.pathsep.join([str(install_uvicorn(version)), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.uvicorn_versions", version],
        env=os.environ | {"PYTHONPATH": path},
        cwd=PROJECT,
        timeout=3 * LIMIT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


Native: TypeAlias = tuple[Program, int]
Portable: TypeAlias = tuple[Program, int, Server]
STOPPED = (0, -signal.SIGTERM)
"""Exit codes after SIGTERM: uvicorn lets the signal have its usual effect in the end."""
ROOM = "/starlette/rooms/blue"


def seen(program: Program) -> list[dict[str, object]]:
    """Everything that the application has reported so far."""
    return [json.loads(line) for line in re.findall(r"SAW (\{.*\})\n", program.output)]


def saw(program: Program, **facts: object) -> None:
    """Wait until the application has reported something with these facts."""
    try:
        eventually(lambda: any(facts.items() <= one.items() for one in seen(program)))
    except AssertionError:
        raise AssertionError(f"{facts} was never seen:\n{program.output}") from None


def refused(port: int, path: str, **fields: str) -> Answer:
    with Peer(port) as peer:
        peer.send(head(path, **fields))
        answer = peer.answer()
        assert answer.status != 101, "it was accepted"
        return answer


def read_close(port: int, path: str) -> tuple[str, int, str]:
    """Everything that the server sends until it closes, and its Close."""
    with dial(port, path) as client:
        received = ""
        while True:
            try:
                received += str(client.recv(LIMIT))
            except ConnectionClosed:
                break
    closed = client.protocol.close_rcvd
    assert closed is not None, "no Close came"
    return received, closed.code, closed.reason


def is_served(port: int, path: str) -> None:
    """Exchange a few messages."""
    with dial(port, path, protocols=["chat.v1"]) as client:
        assert client.subprotocol == "chat.v1"
        client.send("Grüße")
        assert client.recv(LIMIT) == "Grüße"


def begin_stop(program: Program) -> None:
    os.kill(program.pid, signal.SIGTERM)


def told_to_go(peer: Peer) -> None:
    """The server's Close at shutdown, answered as clients do."""
    while (frame := peer.frame()).opcode is Opcode.TEXT:
        pass
    assert (frame.opcode, bytes(frame.data)[:2]) == (Opcode.CLOSE, (1012).to_bytes(2, "big"))
    peer.send(close(1012))
    peer.end()
    peer.sock.close()
