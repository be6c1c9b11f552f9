"""Tests of the soak itself: it passes if nothing is wrong, and finds a fault of each kind that it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).resolve().parents[2]

FAULTS = {
    "memory": "memory grew from",
    "descriptor": "descriptors grew from",
    "thread": "threads grew from",
    "task": "tasks grew from",
    "connection": "connections are still there after their end",
    "lost": "life",
    "changed": "life",
}


def soak(fault: str) -> subprocess.CompletedProcess[str]:
    """Run a short soak of one door, with a fault injected into its application."""
    command = [
        sys.executable,
        "-m",
        "tests.soak",
        "--seconds",
        "4",
        "uvicorn-native",
        *(["--grace", "1"] if fault else []),
    ]
    environment = os.environ | {"FAULT": fault}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.timeout(120)
def test_an_integration_without_a_fault_passes() -> None:
    done = soak("")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uvicorn-native" in done.stdout
    assert done.stdout.count("passed") == 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_found(fault: str) -> None:
    done = soak(fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout
    assert FAULTS[fault] in done.stdout, done.stdout
