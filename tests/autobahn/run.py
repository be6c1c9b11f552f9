"""Runs doors against the suite: splits the work into shards, a few at a time, each with its own time limit.

A shard is one process of the suite and one of a door. Any error becomes a problem of its result; a case without a
verdict is absent, and the comparison treats that as a failure.
"""

import asyncio
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from . import cases
from .compare import Outcome
from .doors import Door
from .process import Child, StartError, read, start
from .suite import Suite, environment

BUILDS = ("compiled", "interpreted")
_AGENT = "door"
_LIMIT = 60.0  # seconds that every shard may take, besides ...
_SLOWDOWN = 8.0  # ... so many times what its cases are known to cost on a quiet machine

# What a door must not print: its own exceptions, those that asyncio and threads swallow, leaked sockets.
_STAIN = re.compile(
    r"^.*Traceback.*\n(?:\s.*\n)*(.*)|^(.*(?:Exception ignored|never retrieved|never awaited|ResourceW).*)",
    re.MULTILINE,
)


class _WrongBuildError(Exception):
    """The door runs another build of the package than the one under test."""


@dataclass(frozen=True, slots=True)
class Target:
    """A door on one of its builds."""

    door: Door
    build: str

    def __str__(self) -> str:
        return f"{self.door.name}/{self.build}"


@dataclass(slots=True)
class Result:
    """The results of a target."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reports: dict[str, Path] = field(default_factory=dict)
    """Autobahn's own report on each case."""
    problems: list[str] = field(default_factory=list)
    """What went wrong outside any case."""
    seconds: float = 0.0
    """The time of its shards, added up."""


@dataclass(frozen=True, slots=True)
class _Shard:
    target: Target
    cases: list[str]
    directory: Path

    @property
    def cost(self) -> float:
        return sum(map(cases.cost, self.cases))


async def run(
    suite: Suite, targets: Sequence[Target], chosen: Sequence[str], report: Path, jobs: int
) -> dict[Target, Result]:
    """Run the selected cases against every target, at most `jobs` shards at a time."""
    results = {target: Result() for target in targets}
    shards = _plan(targets, chosen, report, jobs)
    places = asyncio.Semaphore(jobs)

    async def work(shard: _Shard) -> None:
        async with places:
            await _run_shard(suite, shard, results[shard.target])

    async with asyncio.TaskGroup() as group:
        for shard in shards:
            group.create_task(work(shard))
    return results


def _plan(targets: Iterable[Target], chosen: Sequence[str], report: Path, jobs: int) -> list[_Shard]:
    """Order shards by cost, the most expensive first, so that the last ones to run are short."""
    targets = list(targets)
    total = sum(map(cases.cost, chosen)) * len(targets)
    # Below a quarter of a minute a shard would mostly pay for starting two programs.
    parts = math.ceil(sum(map(cases.cost, chosen)) / max(15.0, total / (4 * jobs)))
    shards = []
    for target in targets:
        home = report / f"{target.door.name}-{target.build}"
        shutil.rmtree(home, ignore_errors=True)
        for number, part in enumerate(cases.split(chosen, parts)):
            directory = home / str(number)
            directory.mkdir(parents=True)
            shards.append(_Shard(target, part, directory))
    return sorted(shards, key=lambda shard: -shard.cost)


async def _run_shard(suite: Suite, shard: _Shard, result: Result) -> None:
    begun = time.monotonic()
    limit = _LIMIT + _SLOWDOWN * shard.cost
    log = shard.directory / "door.log"
    try:
        async with asyncio.timeout(limit):
            await (_test_client if shard.target.door.client else _test_server)(suite, shard, log)
    except _WrongBuildError as error:
        result.problems.append(str(error))
        return  # whatever it got done is not filed under a build that did not run
    except StartError as error:
        result.problems.append(str(error))
    except TimeoutError:
        running = re.findall(r"Running test case ID (\S+)", read(shard.directory / "suite.log"))
        result.problems.append(f"not done after {limit:.0f} s, in case {running[-1] if running else '(none)'}: {log}")
    if stains := _STAIN.findall(read(log)):
        result.problems.append(f"the door printed {len(stains)} times such as {''.join(stains[0])!r}: {log}")
    _collect(shard, result)
    result.seconds += time.monotonic() - begun


async def _test_server(suite: Suite, shard: _Shard, log: Path) -> None:
    """Run Autobahn's fuzzing client against one of our servers."""
    async with start(shard.target.door.command, _door_environment(shard.target), log) as door:
        # the words of uvicorn and werkzeug, of gunicorn, and of the other doors
        port, build = await door.said(r"(?:on|at:) (?:http://)?127\.0\.0\.1:(\d+)", r"implementation: (\w+)")
        _check_build(shard.target, build)
        spec = _write_spec(shard, servers=[{"agent": _AGENT, "url": f"ws://127.0.0.1:{port}"}])
        async with _start_suite(suite, "fuzzingclient", spec) as fuzzer:
            await _finish(fuzzer, "the suite")
        if door.process.returncode is not None:
            raise StartError(f"the door ended by itself, with status {door.process.returncode}: {log}")


async def _test_client(suite: Suite, shard: _Shard, log: Path) -> None:
    """Run one of our clients against Autobahn's fuzzing server."""
    spec = _write_spec(shard, url="ws://127.0.0.1:9001")  # fuzzer.py2 takes a free port instead
    async with _start_suite(suite, "fuzzingserver", spec) as fuzzer:
        (port,) = await fuzzer.said(r"listening on 127\.0\.0\.1:(\d+)")
        arguments = (f"ws://127.0.0.1:{port}", _AGENT, str(len(shard.cases)))
        async with start((*shard.target.door.command, *arguments), _door_environment(shard.target), log) as door:
            (build,) = await door.said(r"implementation: (\w+)")
            _check_build(shard.target, build)
            await _finish(door, "the door")


def _start_suite(suite: Suite, mode: str, spec: Path) -> AbstractAsyncContextManager[Child]:
    return start(suite.command(mode, spec), environment(), spec.with_name("suite.log"))


async def _finish(child: Child, name: str) -> None:
    if status := await child.process.wait():
        raise StartError(f"{name} ended with status {status}: {child.log}")


def _door_environment(target: Target) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key != "WATERSHED_MW_PURE"}
    variables["PYTHONWARNINGS"] = "default::ResourceWarning"
    if target.build == "interpreted":
        variables["WATERSHED_MW_PURE"] = "1"
    return variables


def _check_build(target: Target, build: str) -> None:
    if build != target.build:
        raise _WrongBuildError(f"the {target.build} build was to be tested, but the door runs the {build} one")


def _write_spec(shard: _Shard, **entries: object) -> Path:
    spec = shard.directory / "spec.json"
    # plain identifiers instead of patterns: nothing but these cases can be meant
    spec.write_text(json.dumps({"outdir": str(shard.directory), "cases": shard.cases, **entries}))
    return spec


def _collect(shard: _Shard, result: Result) -> None:
    index = shard.directory / "index.json"
    verdicts = json.loads(index.read_text()) if index.exists() else {}
    for case, verdict in verdicts.get(_AGENT, {}).items():
        result.outcomes[case] = Outcome(verdict["behavior"], verdict["behaviorClose"], verdict["remoteCloseCode"])
        result.reports[case] = shard.directory / verdict["reportfile"]
