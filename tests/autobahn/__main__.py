"""The command: ``python -m tests.autobahn``. Exit status 0: all passed; 1: something failed; 2: wrong usage;
77: not run at all, because there is no Python 2.7 (the value that automake gives to a skipped test).
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import cases, compare, suite, verdict
from .doors import ALIASES, DOORS, Door
from .run import BUILDS, Result, Target, run

FAILED, NOT_RUN = 1, 77


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        installed = suite.prepare()
    except suite.NotRunError as error:
        print(f"conformance NOT RUN: {error}")
        return NOT_RUN
    except suite.SetupError as error:
        print(f"the Autobahn suite could not be set up: {error}")
        return FAILED
    patterns = options.cases.split(",") if options.cases else cases.SUBSET if options.subset else ["*"]
    try:
        chosen = cases.select(patterns, installed.known)
    except ValueError as error:
        parser.error(str(error))
    targets = [Target(door, build) for door in _doors(options.door) for build in options.build or BUILDS]
    report: Path = options.report.resolve()
    begun = time.monotonic()
    try:
        with _alone_in(report):
            results = asyncio.run(_run(installed, targets, chosen, report, options.jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted: no result")
        return FAILED
    baseline = compare.load()
    judged = {
        target: compare.compare(
            None if options.update_baseline else baseline.get(str(target), {}), result.outcomes, chosen
        )
        for target, result in results.items()
    }
    passed, failed = verdict.show(results, judged, chosen)
    if options.update_baseline:
        _update(baseline, results, failed)
    print(f"{time.monotonic() - begun:.0f} s with {options.jobs} at a time; reports: {os.path.relpath(report)}")
    print(f"{passed} passed, {failed} failed")
    return FAILED if failed else 0


def _parser() -> argparse.ArgumentParser:
    names = [*ALIASES, *(door.name for door in DOORS)]
    parser = argparse.ArgumentParser("python -m tests.autobahn", description=__doc__)
    parser.add_argument("--subset", action="store_true", help=f"only the cases that CI runs: {' '.join(cases.SUBSET)}")
    parser.add_argument("--cases", metavar="PATTERNS", help="only these cases, for example 1.*,6.4.*,7.1.5")
    parser.add_argument("--door", action="append", choices=names, help="only this door; may be repeated")
    parser.add_argument("--build", action="append", choices=BUILDS, help="only this build; may be repeated")
    parser.add_argument("--update-baseline", action="store_true", help="record the results, if all reach the bar")
    parser.add_argument("--report", type=Path, default=suite.CACHE / "report", metavar="DIR", help="where reports go")
    parser.add_argument(
        "--jobs", type=int, default=(os.cpu_count() or 1) + 1, help="shards at a time (default: cores + 1)"
    )
    return parser


def _doors(names: Sequence[str] | None) -> Iterator[Door]:
    wanted = {door for name in names or () for door in ALIASES.get(name, (name,))}
    return (door for door in DOORS if not wanted or door.name in wanted)


@contextlib.contextmanager
def _alone_in(report: Path) -> Iterator[None]:
    """Refuse to run twice at once: two runs would read each other's reports."""
    report.mkdir(parents=True, exist_ok=True)
    with open(report / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run writes to {report}: wait for it, or give --report another directory")
        yield


async def _run(
    installed: suite.Suite, targets: Sequence[Target], chosen: Sequence[str], report: Path, jobs: int
) -> dict[Target, Result]:
    task = asyncio.current_task()
    assert task is not None
    # a cancelled run ends its children; Ctrl-C is handled alike by asyncio.run
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(installed, targets, chosen, report, jobs)


def _update(baseline: dict[str, compare.Outcomes], results: Mapping[Target, Result], failed: int) -> None:
    """Record the results; after any failure the file stays unchanged."""
    if failed:
        print("the baseline is left as it is")
        return
    for target, result in results.items():
        baseline[str(target)] = baseline.get(str(target), {}) | result.outcomes
    compare.save(baseline, f"autobahntestsuite {suite.VERSION}")
    print(f"wrote {compare.BASELINE.name}")


if __name__ == "__main__":
    sys.exit(main())
