"""The proxy compared with nginx and HAProxy: CPU time of the proxy for each message and its echo.

    python -m benchmarks.relays [--rounds 5] [--only REGEX] [--seconds 1.0] [--results FILE] [--docs DIRECTORY]
    python -m benchmarks.relays --stream 4    # memory while 4 GiB pass through the proxy

`proxy, uvicorn` is `WebSocketProxy` under uvicorn with `WatershedProtocol`, `proxy, gunicorn` the same behind gunicorn
with four threads; `relay on ...` is the relay alone, between two sockets, without a proxy or a server. Each contestant
is one process with one busy thread, on a core of its own. The other core runs the load generator and the echo server
behind the proxy (`servers/raw.py`). In each round every contestant is started anew and driven through all loads, so a
ratio always compares two values of the same round. nginx and HAProxy are left out if they are not installed.

The results go to build/benchmarks/relays.json:

    {"machine": {...}, "rounds": int, "seconds": float,   # as in results.json of `python -m benchmarks`
     "loads": [{"name": str, "bar": float,           # the highest ratio to nginx allowed for those in BARRED
                "rows": {contestant: {"cpu": [...],  # microseconds per message and echo, one value per round
                                      "ratio": [...]}}}]}   # to nginx
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load as generator
from benchmarks import table as tables
from benchmarks.__main__ import machine
from benchmarks.contestants import CONTESTANTS, OUR_CLASS, SERVERS, Setting, started, uvicorn
from benchmarks.servers.process import REQUEST, Server, running
from benchmarks.servers.serving import BACKLOG
from watershed_mw.core.handshake.negotiation import accept_key

RESULTS = generator.BUILD / "relays.json"
BARRED = ("proxy, uvicorn", "proxy, gunicorn", "relay on uvloop")
PACKAGES = ("uvloop", "uvicorn", "httptools", "gunicorn")
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
    }}
  }}
}}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
listen relay
  bind 127.0.0.1:{port}
  server echo 127.0.0.1:{upstream}
"""


@dataclass(frozen=True)
class Load:
    name: str
    connections: int
    window: int
    size: int
    bar: float


LOADS = (
    Load("c=50 w=1 32 B", 50, 1, 32, 1.1),
    Load("c=10 w=16 4 KiB", 10, 16, 4 * 2**10, 0.6),
    Load("c=4 w=2 1 MiB", 4, 2, 2**20, 0.5),
)


def ours(loop: str, upstream: int) -> list[str]:
    module = "benchmarks.servers.relay_server"
    return [sys.executable, "-m", module, "{port}", "--upstream", str(upstream), "--loop", loop]


def gunicorn() -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", f"{SERVERS}.proxy:app", "--bind", "127.0.0.1:{port}"),
        *("--worker-class", "gthread", "--threads", "4", "--worker-connections", "4000"),
        *("--backlog", str(BACKLOG), "--log-level", "error", "--no-control-socket"),
    ]


def configured(program: str, text: str, options: list[str], folder: str, upstream: int) -> list[str]:
    """A command that writes the port, given as `{port}`, into the configuration, and then becomes the program."""
    path = Path(folder, "configuration")
    path.write_text(text.format(port="PORT", upstream=upstream, folder=folder))
    return ["sh", "-c", f"sed -i s/PORT/$1/ {path} && exec {program} {' '.join(options)} {path}", "sh", "{port}"]


@contextmanager
def relaying(name: str, upstream: int, core: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # if nginx's master runs as root, its workers run as another user
        if name == "nginx":
            command = configured(_found("nginx"), NGINX, ["-p", folder, "-c"], folder, upstream)
        elif name == "haproxy":
            command = configured(_found("haproxy"), HAPROXY, ["-db", "-f"], folder, upstream)
        elif name == "proxy, uvicorn":
            command = uvicorn("proxy:app", OUR_CLASS)(Setting("uvloop"))
        elif name == "proxy, gunicorn":
            command = gunicorn()
        else:
            command = ours(name.removeprefix("relay on "), upstream)
        with running(command, core, tls=False, environment={"UPSTREAM": str(upstream)}) as server:
            yield server


def _found(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or ""


def measure(contestants: list[str], loads: list[Load], rounds: int, seconds: float) -> dict[str, Any]:
    us, them = 1, 0
    rows: dict[str, dict[str, list[float]]] = {load.name: {name: [] for name in contestants} for load in loads}
    with started(CONTESTANTS["raw"], Setting("uvloop"), them) as echo:
        for number in range(rounds):
            # In rotating order, so that no contestant always comes first after a pause.
            for name in contestants[number % len(contestants) :] + contestants[: number % len(contestants)]:
                with relaying(name, echo.port, us) as server:
                    for load in loads:
                        result = generator.echo(
                            server.port,
                            connections=load.connections,
                            window=load.window,
                            size=load.size,
                            seconds=seconds,
                            core=them,
                            around=server.cpu,
                        )
                        rows[load.name][name].append(result.cpu)
    return {
        "machine": described(contestants),
        "rounds": rounds,
        "seconds": seconds,
        "loads": [
            {
                "name": load.name,
                "bar": load.bar,
                "rows": {
                    name: {"cpu": values, "ratio": _ratios(values, rows[load.name].get("nginx", []))}
                    for name, values in rows[load.name].items()
                },
            }
            for load in loads
        ],
    }


def described(contestants: list[str]) -> dict[str, Any]:
    """The machine, and the versions of the contestants."""
    found = machine()
    versions = {name: text for name, text in found["versions"].items() if name in PACKAGES}
    for name, option in (("nginx", "-v"), ("haproxy", "-v")):
        if name in contestants:
            text = subprocess.run([_found(name), option], capture_output=True, text=True)
            number = re.search(r"\d+\.\d+\.\d+", text.stdout + text.stderr)
            versions[name] = number[0] if number else ""
    return {**found, "versions": versions}


def _ratios(values: list[float], reference: list[float]) -> list[float]:
    return [value / other for value, other in zip(values, reference, strict=False)]


def table(results: dict[str, Any]) -> str:
    lines = ["| load | contestant | CPU in µs (min, median, max) | ratio to nginx (min, median, max) | target |"]
    lines += ["|---|---|---:|---:|---|"]
    for load in results["loads"]:
        for name, row in load["rows"].items():
            asked = ""
            if name in BARRED and row["ratio"]:
                word = "met" if statistics.median(row["ratio"]) <= load["bar"] else "**missed**"
                asked = f"at most {load['bar']:g}: {word}"
            lines.append(f"| {load['name']} | {name} | {_spread(row['cpu'])} | {_spread(row['ratio'])} | {asked} |")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """The page docs/performance_relays.md."""
    about = (
        "Generated by `make bench-relays`. CPU time of the proxy for each message that passes through it to an echo "
        "server and back. Each proxy is one process with one thread, pinned to its own core; nginx and HAProxy run "
        "with a minimal configuration and one worker. `proxy, uvicorn` is `WebSocketProxy` under uvicorn with "
        "`WatershedProtocol`, `proxy, gunicorn` the same behind gunicorn; `relay on ...` is the relay alone. Each of "
        "`c` connections has `w` messages in flight. Ratios compare values of the same round."
    )
    parts = [
        "# The proxy compared with nginx and HAProxy",
        about,
        f"```text\n{tables.heading(results)}\n```",
        table(results),
    ]
    return "\n\n".join(parts) + "\n"


def stream(size: int) -> str:
    """Send one frame of ``size`` bytes through the proxy under uvicorn, as fast as possible; report its memory."""
    block = memoryview(bytes(2**20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream: int = listener.getsockname()[1]

        def serve() -> None:
            for blocks in (0, size // len(block)):  # the first connection only checks that the server is up
                sock, _ = listener.accept()
                with sock:
                    while not (request := sock.recv(65536)).endswith(b"\r\n\r\n"):
                        pass
                    key = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
                    assert key
                    accept = accept_key(key[1].decode())
                    sock.sendall(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n\x82\x7f" + size.to_bytes(8, "big")
                    )
                    for _ in range(blocks):
                        sock.sendall(block)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with relaying("proxy, uvicorn", upstream, 1) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(REQUEST)
                room, head, got = bytearray(2**20), b"", 0
                while b"\r\n\r\n" not in head:
                    head += client.recv(1)
                before, began, used = _status(server, "VmRSS"), time.monotonic(), server.cpu()
                while got < size + 10:
                    count = client.recv_into(room)
                    if not count:
                        raise EOFError(f"expected {size + 10} bytes, got {got}")
                    got += count
            peak = _status(server, "VmHWM")
            return (
                f"{size / 2**30:g} GiB in {time.monotonic() - began:.1f} s, {server.cpu() - used:.1f} s of CPU; "
                f"resident {before / 1024:.1f} MiB before, at most {peak / 1024:.1f} MiB"
            )


def _status(server: Server, name: str) -> int:
    """A line of the server's ``/proc/PID/status``, in KiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{server.pids[0]}/status").read_text())
    assert found
    return int(found[1])


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return " ".join(tables.significant(value) for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", help="measure only loads whose name matches")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, metavar="DIRECTORY", help="where to write performance_relays.md")
    parser.add_argument("--stream", type=int, metavar="GIB", help="only send this much through the proxy")
    options = parser.parse_args()
    if options.stream:
        print(stream(options.stream * 2**30))
        return
    generator.build()
    contestants = [*BARRED, "relay on asyncio", *(name for name in ("nginx", "haproxy") if _found(name))]
    loads = [load for load in LOADS if re.search(options.only, load.name)]
    results = measure(contestants, loads, options.rounds, options.seconds)
    options.results.write_text(json.dumps(results, indent=1))
    print(table(results))
    if options.docs:
        options.docs.joinpath("performance_relays.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
