"""Run one input through one target, with limits on time and memory."""

from __future__ import annotations

import resource
import signal
import traceback
from pathlib import Path
from types import FrameType

from tests.fuzz.source import Source
from tests.fuzz.targets import Target

__all__ = ["CPU_SECONDS", "MOST_MEMORY", "Hang", "TooMuchMemory", "run", "seeds_of"]

SEEDS = Path(__file__).parent / "seeds"
# Inputs are at most a few KiB: whatever takes longer is quadratic at best. CPU time: a busy machine changes nothing.
CPU_SECONDS = 2.0
MOST_MEMORY = 32 * 2**20  # bytes by which one input may raise the process's peak


class Hang(BaseException):
    """An input took longer than :data:`CPU_SECONDS`."""


class TooMuchMemory(Exception):  # a finding, not an error of the target's
    """An input took more than :data:`MOST_MEMORY`."""


def run(target: Target, data: bytes) -> None:
    """Run the target once.

    Raises:
        Hang, TooMuchMemory: a limit was passed.
        Exception: whatever the target does not list.
    """
    before = _peak()
    previous = signal.signal(signal.SIGVTALRM, _interrupt)
    # Again and again, in case that something catches the first one.
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS, CPU_SECONDS / 4)
    try:
        target(Source(data))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    if (more := _peak() - before) > MOST_MEMORY:
        raise TooMuchMemory(f"an input of {len(data)} bytes took {more / 2**20:.0f} MiB")


def seeds_of(name: str) -> list[bytes]:
    """The saved inputs of a target: one per line, in hexadecimal, after a comment if it was a finding."""
    path = SEEDS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _interrupt(number: int, frame: FrameType | None) -> None:
    where = "".join(traceback.format_stack(frame, limit=6))
    raise Hang(f"an input took more than {CPU_SECONDS} s of CPU:\n{where}")
