"""Shared by the core's tests: both builds in one process, and reproducible Hypothesis runs.

A missing build fails its tests; only ``WATERSHED_MW_PURE=1``, which asks for no compiled build, skips its half.
``HYPOTHESIS_PROFILE=explore`` trades reproducibility for a long search.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.builds import PURE, Build, load_build

# A slow core must not make a test flaky: no deadline per example, but few examples.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile(
    "explore", deadline=None, max_examples=3000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Without a compiled build there is nothing to compare. Not a skip: the run was asked to be without one.
collect_ignore = ["test_builds_agree.py"] if PURE else []


@pytest.fixture(scope="session", params=["interpreted"] if PURE else ["interpreted", "compiled"])
def build(request: pytest.FixtureRequest) -> Build:
    """The interpreted hot path, then the compiled one."""
    return load_build(request.param)
