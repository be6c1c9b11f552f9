"""The servers that are measured, and how each is started: `python -m benchmarks.contestants` tries all of them once.

Every contestant is a server with one process (WSGI servers have one worker) and one event loop. It echoes at the path
/, text as text and binary as binary, up to 16 MiB; `bare` only answers the upgrade. Contestants that broadcast send
each message received at /broadcast to every connection there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .servers.process import Server, certificate, running
from .servers.serving import BACKLOG

__all__ = ["CONTESTANTS", "Contestant", "Server", "Setting", "started"]

HERE = Path(__file__).resolve().parent
SERVERS = "benchmarks.servers"
OUR_CLASS = "watershed_mw.uvicorn:WatershedProtocol"
# Threads start on demand, so a high number costs nothing where few are needed.
THREADS = 4000


@dataclass(frozen=True)
class Setting:
    """How to configure a server."""

    loop: Literal["uvloop", "asyncio"]
    tls: bool = False
    deflate: bool = False
    pure: bool = False


@dataclass(frozen=True)
class Contestant:
    """One of the servers.

    Attributes:
        command: the command that starts it; `{port}` in it stands for its port.
        supports: any of "echo", "tls", "deflate", "asyncio", "uvloop", "text", "broadcast". A server that does not run
            on a Python event loop, or brings its own, lists only "uvloop".
    """

    name: str
    kind: Literal["ours", "peer", "limit"]
    command: Callable[[Setting], list[str]]
    supports: frozenset[str]


@contextmanager
def started(contestant: Contestant, setting: Setting, core: int) -> Iterator[Server]:
    """Run a contestant on `core` for the duration of the block, which begins once it has answered an upgrade."""
    environment = {"WATERSHED_MW_PURE": "1"} if setting.pure else {}
    with running(contestant.command(setting), core, tls=setting.tls, environment=environment) as server:
        yield server


# --- commands ----------------------------------------------------------------------------------------------------

Command = Callable[[Setting], list[str]]


def tls_options(setting: Setting, chain: str, key: str) -> list[str]:
    """The certificate and key, as command line options with the given names."""
    return [chain, str(certificate()[0]), key, str(certificate()[1])] if setting.tls else []


def uvicorn(app: str, ws: str) -> Command:
    def command(setting: Setting) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", f"{SERVERS}.{app}", "--host", "127.0.0.1", "--port", "{port}"),
            *("--loop", setting.loop, "--http", "httptools", "--ws", ws, "--lifespan", "off"),
            *("--ws-per-message-deflate", str(setting.deflate).lower(), "--backlog", str(BACKLOG)),
            *("--no-access-log", "--log-level", "warning"),
            *tls_options(setting, "--ssl-certfile", "--ssl-keyfile"),
        ]

    return command


def program(module: str) -> Command:
    def command(setting: Setting) -> list[str]:
        return [
            *(sys.executable, "-m", f"{SERVERS}.{module}", "{port}", "--loop", setting.loop),
            *(["--deflate"] if setting.deflate else []),
            *tls_options(setting, "--certificate", "--key"),
        ]

    return command


def gunicorn(app: str) -> Command:
    def command(setting: Setting) -> list[str]:
        return [
            *(sys.executable, "-m", "gunicorn", f"{SERVERS}.wsgi:{app}", "--bind", "127.0.0.1:{port}"),
            *("--worker-class", "gthread", "--threads", str(THREADS), "--worker-connections", str(4 * THREADS)),
            *("--backlog", str(BACKLOG), "--log-level", "error", "--no-control-socket"),
            *tls_options(setting, "--certfile", "--keyfile"),
        ]

    return command


def granian(setting: Setting) -> list[str]:
    return [
        *(sys.executable, "-m", "granian", f"{SERVERS}.asgi:app", "--interface", "asgi", "--host", "127.0.0.1"),
        *("--port", "{port}", "--loop", setting.loop, "--backlog", str(BACKLOG)),
        *("--no-access-log", "--log-level", "warning"),
        *tls_options(setting, "--ssl-certificate", "--ssl-keyfile"),
    ]


def hypercorn(setting: Setting) -> list[str]:
    # 0 workers: serve in the main process, as every other contestant does.
    return [
        *(sys.executable, "-m", "hypercorn", f"{SERVERS}.asgi:app", "--bind", "127.0.0.1:{port}"),
        *("--workers", "0", "--worker-class", setting.loop, "--backlog", str(BACKLOG), "--log-level", "warning"),
        *tls_options(setting, "--certfile", "--keyfile"),
    ]


def node_ws(setting: Setting) -> list[str]:
    from tests.support.parties.node_peers import install

    install()
    files = [str(path) for path in certificate()] if setting.tls else []
    return ["node", str(HERE / "servers" / "node_ws.js"), "{port}", str(setting.deflate).lower(), *files]


# --- the table ---------------------------------------------------------------------------------------------------

LOOPS = {"uvloop", "asyncio"}
FULL = frozenset({"echo", "tls", "deflate", "text", *LOOPS})

CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("raw", "limit", program("raw"), FULL - {"deflate"}),
        Contestant("bare", "limit", uvicorn("asgi:app", f"{SERVERS}.bare:BareProtocol"), frozenset(LOOPS)),
        Contestant("asgi", "ours", uvicorn("asgi:app", OUR_CLASS), FULL),
        Contestant("starlette", "ours", uvicorn("starlette_app:app", OUR_CLASS), FULL),
        Contestant("native", "ours", uvicorn("native:callbacks_app", OUR_CLASS), FULL | {"broadcast"}),
        Contestant("native-iter", "ours", uvicorn("native:iteration_app", OUR_CLASS), FULL),
        Contestant("wsgi-blocking", "ours", gunicorn("blocking"), FULL - {"asyncio"}),
        Contestant("wsgi-background", "ours", gunicorn("background"), FULL - {"asyncio"}),
        Contestant("wsgi-async", "ours", gunicorn("asynchronous"), FULL - {"asyncio"}),
        Contestant("websockets-sansio", "peer", uvicorn("asgi:app", "websockets-sansio"), FULL),
        Contestant("wsproto", "peer", uvicorn("asgi:app", "wsproto"), FULL),
        Contestant("websockets", "peer", program("websockets_server"), FULL | {"broadcast"}),
        Contestant("picows", "peer", program("picows_server"), FULL - {"deflate"} | {"broadcast"}),
        Contestant("aiohttp", "peer", program("aiohttp_server"), FULL),
        Contestant("granian", "peer", granian, FULL - {"deflate"}),
        Contestant("hypercorn", "peer", hypercorn, FULL),
        Contestant("flask-sock", "peer", gunicorn("flask_sock"), FULL - {"asyncio"}),
        Contestant("node-ws", "peer", node_ws, FULL - {"asyncio"}),
    )
}

if __name__ == "__main__":
    from .servers.check import main

    main()
