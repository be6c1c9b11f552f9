"""A child process whose output goes to a log file and is read from there.

A child is ended by its own pid and nothing else; on Linux the kernel ends it too if this process is killed.
"""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from .suite import PROJECT

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_POLL = 0.02  # seconds between two looks at a log
_PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL; a fuzzing server writes its reports in them


class StartError(Exception):
    """A child did not print the lines that announce it is ready."""


class Child:
    """A running child process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    async def said(self, *patterns: str, limit: float = 30.0) -> list[str]:
        """Wait until the log matches every pattern; return the first group of each. Raises StartError."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    running = self.process.returncode is None
                    text = read(self.log)
                    found = [re.search(pattern, text) for pattern in patterns]
                    if all(found):
                        return [match[1] for match in found if match]
                    if not running:
                        status = self.process.returncode
                        raise StartError(f"ended with status {status} before it was ready: {self.log}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise StartError(f"not ready after {limit:.0f} s: {self.log}") from None

    async def end(self) -> None:
        """End it: SIGTERM first, then SIGKILL if necessary."""
        for method in (self.process.terminate, self.process.kill):
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    method()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE):
                        await self.process.wait()


@contextlib.asynccontextmanager
async def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> AsyncIterator[Child]:
    """Start a child in the project's directory, and end it when the block is left."""
    with _create(log) as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=PROJECT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    child = Child(process, log)
    try:
        yield child
    finally:
        await child.end()


def read(log: Path) -> str:
    """The text of a log so far."""
    return log.read_text(errors="replace") if log.exists() else ""


def _create(log: Path) -> IO[bytes]:
    return open(log, "wb")


def _die_with_parent() -> None:
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the harness alone: it ends its children in order
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
