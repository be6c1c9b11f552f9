"""The command: ``python -m tests.fuzz [--seconds N] [TARGET ...]``. Exit status 0: nothing was found; 1: something was.

Every target gets its share of the time: first on the interpreted build, where atheris sees what
an input reaches, then the inputs that were worth keeping once more on the compiled one. Without atheris the inputs are
random mutations, on both builds.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import watershed_mw
from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS

PROJECT = Path(__file__).resolve().parents[2]
PLACE = PROJECT / "build" / "fuzz"
SHARE_OF_REPLAY = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    options = _parser().parse_args(arguments)
    names = options.target or list(TARGETS)
    if options.input is not None:
        for name in names:
            run(TARGETS[name], options.input.read_bytes())
        return 0
    guided = importlib.util.find_spec("atheris") is not None and not options.random
    if not guided:
        print("== random mutations, without coverage" + ("" if options.random else ": atheris is not installed"))
    PLACE.mkdir(parents=True, exist_ok=True)
    compiled = watershed_mw.implementation == "compiled"
    share = options.seconds * options.jobs / len(names)
    first, second = (share * (1 - SHARE_OF_REPLAY), share * SHARE_OF_REPLAY) if compiled else (share, 0.0)
    failed = _run("libfuzzer" if guided else "random", first, options.jobs, names, pure=True)
    if compiled:
        failed += _run("replay" if guided else "random", second, options.jobs, names, pure=False)
    print(f"corpora and findings: {os.path.relpath(PLACE)}")
    for name in failed:
        print(f"FOUND something in {name}; to run an input again: python -m tests.fuzz {name} --input FILE")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="for all together (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--random", action="store_true", help="random mutations, even where atheris is installed")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one input, as a finding is written")
    return parser


def _run(driver: str, seconds: float, jobs: int, names: list[str], *, pure: bool) -> list[str]:
    """Run a driver on one build and show the results; return the names of targets with findings."""
    print(f"== {driver}, {'interpreted' if pure else 'compiled'} build, {seconds:.1f} s for each target", flush=True)
    environment = os.environ | {"WATERSHED_MW_PURE": "1" if pure else ""}
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.child", driver, f"{seconds:.2f}", str(jobs)]
    failed = list(names)
    with subprocess.Popen(
        [*command, str(PLACE), *names],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(PLACE / f"{driver}.log").open("wb"),
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            name, _, status = line.strip().rpartition(" ")
            if name not in failed:
                continue  # of a library, as it is imported
            text = (PLACE / f"{name}-{driver}.log").read_text(errors="replace")
            counted = re.search(r"stat::number_of_executed_units:\s+(\d+)", text)
            print(f"{name:20} {int(counted[1]) if counted else 0:>10,} inputs" + _fault(status, text), flush=True)
            if status == "0":
                failed.remove(name)
    return failed


def _fault(status: str, text: str) -> str:
    """The finding of a target: its traceback, and the file with its input."""
    if status == "0":
        return ""
    lines = [line for line in text.splitlines() if not re.match(r"#\d+\s|\s*NEW_FUNC|stat::|MS: |0x|INFO:", line)]
    return "".join(f"\n    {line}" for line in [f"FOUND (status {status})", *lines[-40:]])


if __name__ == "__main__":
    sys.exit(main())
