"""The cases under pytest-benchmark, both builds side by side.

    python -m pytest benchmarks/micro/bench_core.py [-k masking] [--benchmark-autosave]

The file's name keeps it out of the suite: pytest collects it only if it is named. Times are per run; if a run handles
several messages, the name of the case says so.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.cases import CASES, Case
from tests.support.builds import PURE, load_build

BUILDS = ("interpreted",) if PURE else ("compiled", "interpreted")


@pytest.mark.benchmark(max_time=0.3, min_rounds=20, warmup=True, warmup_iterations=20, disable_gc=True)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.group}: {case.name}" for case in CASES])
def test_case(benchmark: BenchmarkFixture, case: Case, build: str) -> None:
    benchmark.group = f"{case.group}: {case.name}"
    benchmark.name = build
    benchmark.extra_info.update(messages=case.messages, size=case.size)
    benchmark(case.prepare(load_build(build)))
