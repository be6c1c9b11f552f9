"""Where a server's CPU time goes under a load, by part and by function, as Markdown: a profile by Linux's `perf`.

    python -m benchmarks.profiles asgi "uvloop: c=100 w=1 32 B"

Contestants and loads are named as in the tables. Needs `perf` (Debian's linux-perf), and permission to use it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks import load as generator
from benchmarks.__main__ import Pace, measure_echo
from benchmarks.contestants import CONTESTANTS, started
from benchmarks.matrix import SERIES, Load, Series

# Samples per second of CPU time: a virtual machine has no hardware counters.
_RATE = 4000
_SECONDS = 3.0
_MOST = 14
_PARTS = (
    (r"\[kernel", "the kernel: system calls, TCP"),
    (r"^libpython|^python", "the interpreter: objects, coroutines, the application"),
    (r"^loop\.|^_asyncio|^_selector", "the event loop"),
    (r"^libc\.|^libm\.", "the C library: memory, copies"),
    (r"^libz\.|^zlib", "zlib"),
    (r"^libssl|^libcrypto|^_ssl", "TLS"),
)


def find(name: str) -> tuple[Series, Load]:
    """The series and the load that the tables call `name`."""
    for series in SERIES:
        for load in series.loads:
            if f"{series.name}: {load.name}" == name:
                return series, load
    names = [f"{series.name}: {load.name}" for series in SERIES for load in series.loads if load.kind == "echo"]
    raise SystemExit(f"expected a load among {', '.join(names)}; got {name!r}")


def record(contestant: str, series: Series, load: Load, data: Path) -> float:
    """Microseconds of CPU per message, while `perf` writes its samples into `data`."""
    setting = replace(series.setting, deflate=load.deflate)
    with started(CONTESTANTS[contestant], setting, 0) as server:
        pids = ",".join(map(str, server.pids))
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_RATE), "-o", str(data), "-p", pids]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as perf:
            try:
                figures = measure_echo(server, load, setting, Pace(_SECONDS, 1))
            finally:
                perf.send_signal(signal.SIGINT)
    return figures["cpu"]


def shares(data: Path, sort: str) -> list[tuple[float, str]]:
    """Percent and name, the largest first."""
    command = ["perf", "report", "-i", str(data), "--no-children", "--stdio", "-s", sort]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+([\d.]+)%\s+(.+?)\s*$", report, re.MULTILINE)
    return [(float(percent), name) for percent, name in found]


def part_of(library: str, ours: set[str]) -> str:
    if library.partition(".")[0] in ours:
        return "this package"
    return next((part for pattern, part in _PARTS if re.search(pattern, library)), "anything else")


def readable(symbol: str) -> str:
    """A readable function name: Cython's names begin with a prefix, and each part with its length."""
    where, _, name = symbol.partition("] ")
    made = re.match(r"__pyx_[a-z]+_(?=\d)(.*)", name)
    words = re.findall(r"\d+([A-Za-z_]+?)(?=_\d+[A-Za-z_]|$)", made[1]) if made else []
    return f"{'.'.join(words) if words else name}{' (kernel)' if 'k' in where else ''}"


def main() -> None:
    """Profile one contestant under one load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("contestant", choices=sorted(CONTESTANTS))
    parser.add_argument("load", help="series and load, such as 'uvloop: c=100 w=1 32 B'")
    options = parser.parse_args()
    if shutil.which("perf") is None:
        raise SystemExit("expected `perf` on the path, and found none: it is in Debian's package linux-perf")
    series, load = find(options.load)
    ours = {path.name.partition(".")[0] for path in (generator.ROOT / "watershed_mw").rglob("*.so")}
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "perf.data"
        cpu = record(options.contestant, series, load, data)
        parts: defaultdict[str, float] = defaultdict(float)
        for percent, library in shares(data, "dso"):
            parts[part_of(library, ours)] += percent
        functions = shares(data, "sym")[:_MOST]
    print(f"`{options.contestant}`, {series.title}, {load.name}: {cpu:.2f} µs of CPU per message.\n")
    print("| part | share | µs |\n|---|---:|---:|")
    for part, percent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {part} | {percent:.1f} % | {cpu * percent / 100:.2f} |")
    print("\n| function | share |\n|---|---:|")
    for percent, symbol in functions:
        print(f"| `{readable(symbol)}` | {percent:.1f} % |")


if __name__ == "__main__":
    main()
