"""Instructions per message, counted by valgrind: for differences that are too small for measurements of time.

    python -m benchmarks.micro.instructions [--only REGEX]

One process for each build runs every case a few times, and then more times. The difference between the two counts
belongs to the case, because one-time costs are in both. A system call that nothing else makes marks the beginning and
the end of a count.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.micro.cases import CASES, MIB, Case
from tests.support.builds import PURE, load_build

ROOT = Path(__file__).resolve().parents[2]
# Seconds for one build. Under valgrind everything takes about fifty times as long.
LIMIT = 280
# The C function behind `os.getppid`: at each call callgrind writes its counters to a file and resets them.
MARK = "getppid"
WARM_UP = 5


def times(case: Case) -> tuple[int, int]:
    """How often a case runs in the first and in the second measurement."""
    return (1, 4) if case.size >= MIB else (20, 120)


def run(build_name: str, cases: list[Case]) -> None:
    """Run the cases on one build, in the process that is counted."""
    build = load_build(build_name)
    gc.disable()
    for case in cases:
        action = case.prepare(build)
        for _ in range(WARM_UP):
            action()
        for count in times(case):
            os.getppid()
            for _ in range(count):
                action()
            os.getppid()


def counted(build_name: str, only: str) -> list[int]:
    """Instructions between consecutive marks, in order."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={folder}/out"),
            *(sys.executable, "-m", "benchmarks.micro.instructions", "--run", build_name, "--only", only),
        ]
        # String hashes determine positions in hash tables, and so how long lookups take.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise SystemExit(f"expected counts from valgrind, got: {done.stderr}")
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        return [summary(path) for path in parts]


def summary(path: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)
    assert found is not None, path
    return int(found[1])


def per_message(case: Case, first: int, then: int) -> float:
    few, many = times(case)
    return (then - first) / (many - few) / case.messages


def table(cases: list[Case], only: str) -> None:
    builds = ("interpreted",) if PURE else ("compiled", "interpreted")
    counts = {build: counted(build, only) for build in builds}
    print(f"{'instructions per message':36}", *(f"{build:>14}" for build in builds))
    for index, case in enumerate(cases):
        # Part 0 is everything before the first mark; between the two counts of a case only a mark happens.
        values = [per_message(case, parts[4 * index + 1], parts[4 * index + 3]) for parts in counts.values()]
        print(f"{case.group + ': ' + case.name:36}", *(f"{value:14,.0f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description="Instructions per message, by valgrind's callgrind.")
    parser.add_argument("--only", default="", help="regular expression for cases")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [case for case in CASES if re.search(options.only, f"{case.group}: {case.name}")]
    if options.run:
        run(options.run, cases)
    elif shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed")
    else:
        table(cases, options.only)


if __name__ == "__main__":
    main()
