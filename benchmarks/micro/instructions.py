"""How many instructions a message takes, counted by valgrind: for differences that time is too noisy to show.

    python -m benchmarks.micro.instructions [--only REGEX]

One process for each build runs every case a few times, and then more times. What the one took beyond the other is the
cases' own, as whatever happens once is in both. A call that nothing else makes marks where a count begins and ends.
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
# Seconds for one build. Under valgrind everything takes some fifty times as long.
LIMIT = 280
# The C library's function behind `os.getppid`: at each call callgrind writes down what it has counted, and forgets it.
MARK = "getppid"
WARM_UP = 5


def times(case: Case) -> tuple[int, int]:
    """How often a case is run, first and then."""
    return (1, 4) if case.size >= MIB else (20, 120)


def run(build_name: str, cases: list[Case]) -> None:
    """What is counted; the process of a build."""
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
    """Instructions between one mark and the next, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={folder}/out"),
            *(sys.executable, "-m", "benchmarks.micro.instructions", "--run", build_name, "--only", only),
        ]
        # Hashes of strings decide where things lie in tables, hence how long they are looked for.
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
        # Part 0 is all that came before the first mark; between the two counts of a case nothing but a mark happens.
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
