"""The main benchmark: every integration, other packages and a lower bound, under the same loads.

    python -m benchmarks [--rounds 5] [--only REGEX] [--quick] [--results FILE] [--out docs/]

A series has contestants and loads. In each round every contestant is started anew, pinned to one core, and driven
through all loads of the series by `load.c` on the other core, one contestant right after the other. A ratio always
compares two values of the same round. The main metric is the server's CPU time per message, which varies least between
runs; message rates and latencies of a closed loop are recorded as well.

The results go to build/benchmarks/results.json, which `table.py` and `plot.py` read:

    {"machine": {"cpu", "cores", "kernel", "date", "python", "build", "commit", "versions": {name: version}},
     "rounds": int,        # as requested
     "seconds": float,     # duration of each run of messages
     "groups": [{
        "series": str,     # "uvloop", "sizes", "text", "deflate", "tls", "asyncio", "interpreted", "memory",
                           # "keepalive", "handshakes", "broadcast", "scaling"
        "name": str,       # series and load, unique: "uvloop: c=100 w=1 32 B"
        "title": str,      # as shown in tables and plots
        "metric": str,     # the list of a row that is compared: "cpu", "rate", "memory" or "share"
        "unit": str,       # of that list
        "load": {"kind", "connections", "window", "size", "text", "deflate", "messages", "loop", "tls", "pure"},
        "reference": str,  # the contestant that ratios refer to
        "bars": [{"contestant", "asked": str, "seen": [per round], "holds": bool | null}],  # null: not measured
        "failures": {contestant: message},
        "rows": [{"contestant", "kind", "ratio": [...],   # kind as in contestants.py: "ours", "peer" or "limit"
                  "cpu": [...],     # microseconds per message, handshake or broadcast
                  "rate": [...],    # messages, handshakes or broadcasts per second
                  "p50": [...], "p99": [...],             # microseconds, see load.Echo
                  "memory": [...],  # KiB per connection
                  "share": [...]}]  # percent of one core
     }]}

Every list has one value per round in which the contestant was measured, and is empty if the load has no such figure.
Contestants that are far from any target are measured in the first rounds only. `matrix.py` lists series, contestants,
loads and targets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import load as generator
from benchmarks import table
from benchmarks.contestants import CONTESTANTS, Contestant, Server, Setting, started
from benchmarks.matrix import FEW, SERIES, Bar, Load, Series
from watershed_mw import implementation

ROOT = generator.ROOT
RESULTS = generator.BUILD / "results.json"
PACKAGES = (
    *("uvloop", "uvicorn", "starlette", "websockets", "wsproto", "picows", "aiohttp", "granian", "hypercorn"),
    *("gunicorn", "flask", "flask-sock", "httptools"),
)
Figures = dict[str, float]


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How long a run of messages takes, in seconds, and the core of the load generator."""

    seconds: float
    core: int


def measure_echo(server: Server, load: Load, setting: Setting, pace: Pace) -> Figures:
    result = generator.echo(
        server.port,
        connections=load.connections,
        window=load.window,
        size=load.size,
        text=load.text,
        deflate=load.deflate,
        tls=setting.tls,
        seconds=pace.seconds,
        core=pace.core,
        around=server.cpu,
    )
    return figures(result)


def measure_broadcast(server: Server, load: Load, setting: Setting, pace: Pace) -> Figures:
    result = generator.broadcast(
        server.port,
        "/broadcast",
        connections=load.connections,
        rounds=load.rounds,
        size=load.size,
        core=pace.core,
        around=server.cpu,
    )
    return figures(result)


def figures(result: generator.Echo) -> Figures:
    return {"cpu": result.cpu, "rate": result.messages / result.seconds, "p50": result.p50, "p99": result.p99}


def measure_opening(server: Server, load: Load, setting: Setting, pace: Pace) -> Figures:
    churn = load.kind == "churn"
    generator.opening(server.port, "/", seconds=pace.seconds / 5, core=pace.core, churn=churn)
    before = server.cpu()
    rate = generator.opening(server.port, "/", seconds=pace.seconds * 2, core=pace.core, churn=churn)
    return {"rate": rate, "cpu": (server.cpu() - before) / (rate * pace.seconds * 2) * 1e6}


def measure_memory(server: Server, load: Load, setting: Setting, pace: Pace) -> Figures:
    """Memory per connection beyond the first hundred, which include what the server loads or caches only once."""
    with holding(server, load, pace, 100):
        before = server.memory()
        with holding(server, load, pace, load.connections):
            return {"memory": (server.memory() - before) / load.connections / 1024}


def measure_keepalive(server: Server, load: Load, setting: Setting, pace: Pace) -> Figures:
    """CPU over one ping interval, which is 20 seconds for every contestant that sends PINGs."""
    period = 20.0
    with holding(server, load, pace, load.connections):
        before, begin = server.cpu(), time.monotonic()
        time.sleep(period)
        return {"share": (server.cpu() - before) / (time.monotonic() - begin) * 100}


@contextmanager
def holding(server: Server, load: Load, pace: Pace, connections: int) -> Iterator[None]:
    with generator.idle(
        server.port, "/", connections=connections, deflate=load.deflate, messages=load.messages, core=pace.core
    ):
        time.sleep(0.5)  # lets the server finish its work after the response
        yield


MEASURES: dict[str, Callable[[Server, Load, Setting, Pace], Figures]] = {
    "echo": measure_echo,
    "open": measure_opening,
    "churn": measure_opening,
    "memory": measure_memory,
    "keepalive": measure_keepalive,
    "broadcast": measure_broadcast,
}


def able(contestant: Contestant, setting: Setting, load: Load) -> bool:
    needs = {"echo": load.kind != "open", "broadcast": load.kind == "broadcast"}
    needs |= {"tls": setting.tls, "deflate": load.deflate, "text": load.text}
    return {setting.loop, *(name for name, needed in needs.items() if needed)} <= contestant.supports


class Run:
    """The figures of one series: for each load and contestant one entry per round, or None."""

    def __init__(self, series: Series, core: int, pace: Pace) -> None:
        self._series = series
        self._core = core
        self._pace = pace
        self._figures: dict[tuple[str, str], list[Figures | None]] = {}
        self._failures: dict[tuple[str, str], str] = {}

    def round(self, number: int) -> None:
        series = self._series
        for name in series.contestants:
            if number < FEW or name not in series.few:
                for loads in [[load] for load in series.loads] if series.fresh else [list(series.loads)]:
                    self._visit(CONTESTANTS[name], [load for load in loads if self._takes_part(name, load)], number)

    def _takes_part(self, name: str, load: Load) -> bool:
        return able(CONTESTANTS[name], self._series.setting, load) and (load.name, name) not in self._failures

    def _visit(self, contestant: Contestant, loads: list[Load], number: int) -> None:
        if not loads:
            return
        setting = replace(self._series.setting, deflate=loads[0].deflate)
        done = 0
        try:
            with started(contestant, setting, self._core) as server:
                for load in loads:
                    values = MEASURES[load.kind](server, load, setting, self._pace)
                    entries = self._figures.setdefault((load.name, contestant.name), [])
                    entries += [None] * (number - len(entries)) + [values]
                    done += 1
        except (generator.LoadError, AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            load, *others = loads[done:]
            self._failures[load.name, contestant.name] = str(error) or repr(error)
            print(f"{self._series.name}: {load.name}: {contestant.name}: {error}", file=sys.stderr, flush=True)
            self._visit(contestant, others, number)

    def groups(self) -> list[dict[str, Any]]:
        return [self._group(load) for load in self._series.loads]

    def _group(self, load: Load) -> dict[str, Any]:
        series = self._series
        setting = {"loop": series.setting.loop, "tls": series.setting.tls, "pure": series.setting.pure}
        described = {name: getattr(load, name) for name in ("kind", "connections", "window", "size", "text", "deflate")}
        return {
            "series": series.name,
            "name": f"{series.name}: {load.name}",
            "title": f"{series.title}: {load.name}",
            "metric": series.metric,
            "unit": series.unit,
            "load": {**described, "messages": load.messages, **setting},
            "reference": series.reference,
            "bars": [self._bar(bar) for bar in series.bars if bar.load == load.name],
            "failures": {name: text for (where, name), text in self._failures.items() if where == load.name},
            "rows": [self._row(load, name) for name in series.contestants if (load.name, name) in self._figures],
        }

    def _row(self, load: Load, name: str) -> dict[str, Any]:
        entries = [entry for entry in self._figures[load.name, name] if entry]
        lists = {
            key: [entry[key] for entry in entries if key in entry]
            for key in ("cpu", "rate", "p50", "p99", "memory", "share")
        }
        ratio = self._compared(load.name, name, load.name, self._series.reference, lambda ours, theirs: ours / theirs)
        return {"contestant": name, "kind": CONTESTANTS[name].kind, **lists, "ratio": ratio}

    def _bar(self, bar: Bar) -> dict[str, Any]:
        if bar.reference:
            seen = self._compared(bar.load, bar.contestant, bar.load, bar.reference, lambda one, two: one / two)
        elif bar.minus:
            seen = self._compared(bar.load, bar.contestant, bar.minus, bar.contestant, lambda one, two: one - two)
        else:
            seen = self._compared(bar.load, bar.contestant, bar.load, bar.contestant, lambda one, _: one)
        holds = bar.holds(table.median(seen)) if seen else None
        return {"contestant": bar.contestant, "asked": bar.asked(self._series.unit), "seen": seen, "holds": holds}

    def _compared(
        self, load: str, name: str, other_load: str, other: str, how: Callable[[float, float], float]
    ) -> list[float]:
        """Round by round, for the rounds in which both were measured."""
        metric = self._series.metric
        pairs = zip(self._figures.get((load, name), []), self._figures.get((other_load, other), []), strict=False)
        return [how(one[metric], two[metric]) for one, two in pairs if one and two]


# --- running -----------------------------------------------------------------------------------------------------


def chosen(only: str, quick: bool) -> list[Series]:
    """The series with the loads whose names match; with --quick only the quick ones."""
    found = []
    for series in SERIES:
        loads = tuple(
            load
            for load in series.loads
            if re.search(only, f"{series.name}: {load.name}") and not (quick and not (series.quick and load.quick))
        )
        names = tuple(name for name in series.contestants if not (quick and name in series.few))
        if loads:
            found.append(replace(series, loads=loads, contestants=names))
    return found


def machine() -> dict[str, Any]:
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": processor[1] if processor else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "build": implementation,
        "commit": output_of("git", "describe", "--always", "--dirty", "--exclude=*"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    manifest = ROOT / "tests" / "support" / "parties" / "node_modules" / "ws" / "package.json"
    if manifest.exists():
        found["ws"] = json.loads(manifest.read_text())["version"]
        found["node"] = output_of("node", "--version").removeprefix("v")
    return found


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def main() -> None:
    """Measure, print the tables, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="REGEX", help="series and loads, such as 'uvloop: c=100'")
    parser.add_argument("--quick", action="store_true", help="one short round of the main contestants")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: build/benchmarks/results.json")
    parser.add_argument("--out", type=Path, help="a directory for performance_tables.md and the plots")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rounds = 1 if options.quick else options.rounds
    pace = Pace(0.15 if options.quick else 0.5, cores[-1])
    results: dict[str, Any] = {"machine": machine(), "rounds": rounds, "seconds": pace.seconds, "groups": []}
    print(table.heading(results))
    for series in chosen(options.only, options.quick):
        run = Run(series, cores[0], pace)
        for number in range(min(rounds, series.rounds or rounds)):
            run.round(number)
        results["groups"] += run.groups()
        for group in results["groups"][-len(series.loads) :]:
            print(f"\n{table.plain(group)}", flush=True)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1))
    print(f"\n{table.summary(results)}")
    if options.out:
        options.out.joinpath("performance_tables.md").write_text(table.markdown(results))
        command = [sys.executable, "-m", "benchmarks.plot", str(options.results), str(options.out)]
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
