"""Tests of the harness itself: what it must never count as passed, and what it must end.

They need neither Python 2.7 nor a door. That the suite itself runs is shown by `make autobahn`.
"""

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.autobahn import cases
from tests.autobahn.compare import Outcome, compare, load, save
from tests.autobahn.doors import Door
from tests.autobahn.process import Child, StartError, start
from tests.autobahn.run import Result, Target
from tests.autobahn.suite import PROJECT
from tests.autobahn.verdict import show

OK = Outcome("OK", "OK", 1000)
TARGET = Target(Door("some-door", ()), "compiled")


def test_patterns_match_whole_identifiers() -> None:
    known = ["1.1.1", "1.2.1", "10.1.1", "7.1.5", "12.1.10", "12.1.2"]
    assert cases.select(["1.*"], known) == ["1.1.1", "1.2.1"]
    assert cases.select(["12.1.*", "7.1.5", "12.1.2"], known) == ["7.1.5", "12.1.2", "12.1.10"]
    with pytest.raises(ValueError, match=r"'6\.\*'"):
        cases.select(["6.*"], known)


def test_a_set_of_cases_survives_its_short_form() -> None:
    members = ["1.1.1", "1.1.2", "1.2.1", "2.1", "2.2", "2.4", "13.7.18"]
    assert cases.compress(members) == ["1.1.1-2 1.2.1", "2.1-2 2.4", "13.7.18"]
    assert cases.expand(cases.compress(members)) == members
    with pytest.raises(ValueError, match="got 'x'"):
        cases.expand(["x"])


def test_shards_contain_every_case_once() -> None:
    members = [f"12.1.{number}" for number in range(1, 19)]
    parts = cases.split(members, 4)
    assert sorted(itertools.chain(*parts), key=cases.order) == members
    assert cases.split(["1.1.1"], 4) == [["1.1.1"]]


@pytest.mark.parametrize(
    "expected, came",
    [
        (OK, Outcome("NON-STRICT", "OK", 1000)),
        (OK, Outcome("OK", "WRONG CODE", 1000)),
        (OK, Outcome("OK", "OK", 1002)),
        (OK, Outcome("OK", "OK", None)),
        (OK, None),
        (None, OK),
        (Outcome("INFORMATIONAL", "INFORMATIONAL", None), OK),
        (Outcome("NON-STRICT", "OK", 1000), Outcome("NON-STRICT", "OK", 1000)),
    ],
    ids=[
        "non-strict",
        "close",
        "code",
        "no code",
        "missing",
        "unknown",
        "unexpected pass",
        "recorded failure",
    ],
)
def test_anything_but_the_recorded_good_outcome_fails(expected: Outcome | None, came: Outcome | None) -> None:
    baseline = {"1.1.1": expected} if expected else {}
    results = {"1.1.1": came} if came else {}
    assert [difference.case for difference in compare(baseline, results, ["1.1.1"])] == ["1.1.1"]


def test_the_recorded_good_outcome_passes() -> None:
    assert compare({"1.1.1": OK}, {"1.1.1": OK}, ["1.1.1"]) == []


def test_the_baseline_survives_saving_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    other = {"1.1.1": OK, "7.1.6": Outcome("INFORMATIONAL", "INFORMATIONAL", None)}
    baseline = {"a/compiled": {"1.1.1": OK}, "a/interpreted": {"1.1.1": OK}, "b/compiled": other}
    save(baseline, "suite", path)
    assert load(path) == baseline
    assert path.read_text().count('"doors"') == 2
    assert load(tmp_path / "none.json") == {}


def test_a_problem_outside_any_case_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(outcomes={"1.1.1": OK}, problems=["the door died"])
    assert show({TARGET: result}, {TARGET: []}, ["1.1.1"]) == (1, 1)
    assert "some-door/compiled: the door died" in capsys.readouterr().out


def test_without_python27_one_line_says_so_and_nothing_counts_as_passed(tmp_path: Path) -> None:
    """Without a finished set-up, and without a Python 2.7 on PATH or under pyenv."""
    program = (
        "import pathlib, sys; from tests.autobahn import __main__, suite;"
        "suite.CACHE = pathlib.Path(sys.argv[1]); sys.exit(__main__.main([]))"
    )
    environment = {"PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 77, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("conformance NOT RUN: ")


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.autobahn.process._PATIENCE", 0.2)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('pid: 1'); time.sleep(60)"

    async def scenario() -> Child:
        async with start([sys.executable, "-c", program], os.environ, tmp_path / "log") as child:
            assert await child.said(r"pid: (\d)") == ["1"]
        return child

    assert asyncio.run(scenario()).process.returncode == -9


def test_a_child_that_dies_early_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with start([sys.executable, "-c", "print('no')"], os.environ, tmp_path / "log") as child:
            await child.said(r"on (\d+)")

    with pytest.raises(StartError, match="ended with status 0"):
        asyncio.run(scenario())
