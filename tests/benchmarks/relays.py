"""The raw relay beside nginx and HAProxy: CPU time of the one in the middle for a message and its echo.

    python -m tests.benchmarks.relays [--rounds 5] [--only REGEX] [--seconds 1.0] [--results FILE]

Each has one process with one thread on a core of its own; the other core has the load generator, and the echo behind
them (`servers/raw.py`). In each round every contestant is started anew and driven through all loads, so a ratio is
always that of two values of one round. Those of `nginx` and `haproxy` that are not installed are left out.

The results go to build/benchmarks/relays.json:

    {"rounds": int, "seconds": float,
     "loads": [{"name": str, "bar": float,           # at most that ratio to nginx is asked of the relay on uvloop
                "rows": {contestant: {"cpu": [...],  # microseconds per message and echo, one value per round
                                      "ratio": [...]}}}]}   # to nginx
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import load as generator
from tests.benchmarks.contestants import CONTESTANTS, Setting, started
from tests.benchmarks.servers.process import Server, running

RESULTS = generator.BUILD / "relays.json"
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
    module = "tests.benchmarks.servers.relay_server"
    return [sys.executable, "-m", module, "{port}", "--upstream", str(upstream), "--loop", loop]


def configured(program: str, text: str, options: list[str], folder: str, upstream: int) -> list[str]:
    """Write the configuration once the port is known, which `{port}` is replaced by, then become the program."""
    path = Path(folder, "configuration")
    path.write_text(text.format(port="PORT", upstream=upstream, folder=folder))
    return ["sh", "-c", f"sed -i s/PORT/$1/ {path} && exec {program} {' '.join(options)} {path}", "sh", "{port}"]


@contextmanager
def relaying(name: str, upstream: int, core: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # nginx's worker is another user where its master is root
        if name == "nginx":
            command = configured(_found("nginx"), NGINX, ["-p", folder, "-c"], folder, upstream)
        elif name == "haproxy":
            command = configured(_found("haproxy"), HAPROXY, ["-db", "-f"], folder, upstream)
        else:
            command = ours(name.removeprefix("relay on "), upstream)
        with running(command, core, tls=False, environment={}) as server:
            yield server


def _found(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or ""


def measure(contestants: list[str], loads: list[Load], rounds: int, seconds: float) -> dict[str, Any]:
    us, them = 1, 0
    rows: dict[str, dict[str, list[float]]] = {load.name: {name: [] for name in contestants} for load in loads}
    with started(CONTESTANTS["raw"], Setting("uvloop"), them) as echo:
        for number in range(rounds):
            # Round about, so that nobody is always the one who comes after a pause.
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


def _ratios(values: list[float], reference: list[float]) -> list[float]:
    return [value / other for value, other in zip(values, reference, strict=False)]


def table(results: dict[str, Any]) -> str:
    lines = ["| load | contestant | CPU in us (min, median, max) | of nginx (min, median, max) | asked |"]
    lines += ["|---|---|---:|---:|---|"]
    for load in results["loads"]:
        for name, row in load["rows"].items():
            asked = ""
            if name == "relay on uvloop" and row["ratio"]:
                word = "holds" if statistics.median(row["ratio"]) <= load["bar"] else "**falls short**"
                asked = f"at most {load['bar']:g}: {word}"
            lines.append(f"| {load['name']} | {name} | {_spread(row['cpu'])} | {_spread(row['ratio'])} | {asked} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return " ".join(f"{value:.3g}" for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", help="loads whose name this expression is found in")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    generator.build()
    contestants = ["relay on uvloop", "relay on asyncio", *(name for name in ("nginx", "haproxy") if _found(name))]
    loads = [load for load in LOADS if re.search(options.only, load.name)]
    results = measure(contestants, loads, options.rounds, options.seconds)
    options.results.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
