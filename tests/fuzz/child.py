"""Some targets on one build: ``python -m tests.fuzz.child DRIVER SECONDS JOBS PLACE TARGET...``, for ``__main__``.

The drivers are ``libfuzzer`` (atheris: guided by the coverage of the interpreted code), ``random`` (mutations of what
is known, without any package) and ``replay`` (what is known, once). Modules are imported, and instrumented, one time;
each target then has a fork of this process. For each a line "NAME STATUS" is printed: status 0 where nothing was found.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

MOST_BYTES = 1024
PATIENCE = 60.0
"""Seconds beyond its share after which a fork hangs, where no limit of a single input has stopped it."""
HUNG = 124


def main(driver: str, seconds: float, jobs: int, place: Path, names: list[str]) -> None:
    """Run the targets, a few at a time."""
    if driver == "libfuzzer":
        _instrument()
    importlib.import_module("tests.fuzz.run")
    running: dict[int, tuple[str, float]] = {}
    for name in names:
        while len(running) >= jobs:
            _wait(running)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _in_fork(partial(_search, driver, name, seconds, place), place / f"{name}-{driver}.log")
        running[pid] = name, time.monotonic() + seconds + PATIENCE
    while running:
        _wait(running)


class _SourcesOnly:
    """Hide the extension modules as WATERSHED_MW_PURE does, behind atheris' finder, which instruments what it loads."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if path is None or not name.startswith("watershed_mw."):
            return None
        finders = (FileFinder(place, (SourceFileLoader, SOURCE_SUFFIXES)) for place in path)
        return next((spec for finder in finders if (spec := finder.find_spec(name)) is not None), None)


def _instrument() -> None:
    """Import the targets, and with them the package from its sources, so that coverage is counted."""
    os.environ.pop("WATERSHED_MW_PURE", None)
    sys.meta_path.insert(0, _SourcesOnly())
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["watershed_mw"]):
        importlib.import_module("tests.fuzz.targets")
    import watershed_mw

    assert watershed_mw.implementation == "interpreted"


def _in_fork(work: Callable[[], int], log: Path) -> None:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = work()
    except BaseException:  # noqa: BLE001  # a fork never returns to what its parent does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(running: dict[int, tuple[str, float]]) -> None:
    """Wait briefly, and remove the forks that have ended from ``running``."""
    time.sleep(0.05)
    for pid, (name, until) in list(running.items()):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del running[pid]
            code = HUNG if time.monotonic() > until else os.waitstatus_to_exitcode(status)
            print(name, code, flush=True)


def _search(driver: str, name: str, seconds: float, place: Path) -> int:
    from tests.fuzz.run import run, seeds_of
    from tests.fuzz.targets import TARGETS

    target, corpus = TARGETS[name], place / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = seeds_of(name)
    if driver == "libfuzzer":
        for seed in seeds:
            (corpus / _digest(seed)).write_bytes(seed)
        atheris: Any = sys.modules["atheris"]
        options = {"max_total_time": max(1, round(seconds)), "max_len": MOST_BYTES, "timeout": 60, "rss_limit_mb": 2048}
        given = [f"-{option}={value}" for option, value in options.items()]
        given += [f"-artifact_prefix={place / name}-", "-print_final_stats=1", str(corpus)]
        atheris.Setup([sys.argv[0], *given], lambda data: run(target, data))
        atheris.Fuzz()  # ends this process
    known = [*seeds, *(path.read_bytes() for path in sorted(corpus.iterdir()))]
    inputs: Iterable[bytes] = known if driver == "replay" else _invented(known)
    until = time.monotonic() + seconds
    done = 0
    for data in inputs:
        if time.monotonic() > until and (done or driver != "replay"):
            break
        done += 1
        try:
            run(target, data)
        except BaseException:  # noqa: BLE001  # that is what is looked for
            traceback.print_exc()
            path = place / f"{name}-crash-{_digest(data)}"
            path.write_bytes(data)
            print(f"Test unit written to {path}")
            return 1
    print(f"stat::number_of_executed_units: {done}")
    return 0


def _invented(known: list[bytes]) -> Iterator[bytes]:
    """An endless series of random bytes, and known inputs with bytes changed, removed, duplicated or joined."""
    generator = random.Random()
    yield from known
    while True:
        if not known or generator.random() < 0.3:
            yield generator.randbytes(generator.choice((4, 16, 64, 256, MOST_BYTES)))
            continue
        data = bytearray(generator.choice(known))
        for _ in range(generator.randint(1, 6)):
            start = generator.randint(0, len(data))
            stop = start + generator.randint(0, 8)
            replacement = generator.randbytes(generator.randint(0, 8))
            if generator.random() < 0.2:
                replacement = generator.choice(known)[: generator.randint(0, MOST_BYTES)]
            data[start:stop] = replacement
        yield bytes(data[:MOST_BYTES])


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
