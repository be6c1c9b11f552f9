"""Sets up the Autobahn test suite: finds a working Python 2.7, and installs the pinned suite into the cache.

It trusts a finished set-up (whose stamp is written last) and rebuilds any other. It never installs anything into an
interpreter that it found: virtualenv itself goes into the cache too.
"""

import fcntl
import glob
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cases

VERSION = "25.10.1"
PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".autobahn"
_FUZZER = Path(__file__).with_name("fuzzer.py2")
_INSTALL_LIMIT = 600.0  # seconds for each of the three steps


class NotRunError(Exception):
    """There is no Python 2.7, so conformance cannot be tested."""


class SetupError(Exception):
    """Python 2.7 is there, but the suite could not be installed or is not the pinned one."""


@dataclass(frozen=True, slots=True)
class Suite:
    """An installed suite."""

    python: Path
    """The interpreter of its virtual environment."""
    known: tuple[str, ...]
    """The identifiers of all its cases."""

    def command(self, mode: str, spec: Path) -> list[str]:
        """The command that runs `wstest` in a mode with a specification file."""
        # webport 0: no web server for humans beside the fuzzing server
        return [str(self.python), "-B", str(_FUZZER), "-m", mode, "-s", str(spec), "--webport", "0"]


def prepare() -> Suite:
    """The suite, installed on first use (about half a minute). Raises NotRunError, SetupError."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    with open(CACHE / "setup.lock", "w") as lock:  # two runs at once must not build the same directory
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = CACHE / f"autobahntestsuite-{VERSION}"
        stamp = home / "cases.json"
        if not stamp.exists():
            shutil.rmtree(home, ignore_errors=True)
            _install(_find_python27(), home)
            known = json.loads(_run([str(home / "bin" / "python"), "-B", str(_FUZZER), "--cases"], CACHE / "setup.log"))
            if len(known) != cases.TOTAL:
                raise SetupError(f"the suite should have {cases.TOTAL} cases, this one has {len(known)}")
            stamp.write_text(json.dumps(known))
        return Suite(home / "bin" / "python", tuple(json.loads(stamp.read_text())))


def _find_python27() -> Path:
    """A Python 2.7 that runs: the existence of a file proves nothing, because pyenv's shim may refuse to run."""
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    if pyenv := shutil.which("pyenv"):
        roots.insert(1, subprocess.run([pyenv, "root"], capture_output=True, text=True, timeout=20).stdout.strip())
    candidates = [shutil.which("python2.7") or ""]
    for root in filter(None, roots):
        candidates += sorted(glob.glob(f"{root}/versions/2.7*/bin/python2.7"), reverse=True)
    for candidate in filter(None, candidates):
        question = [
            candidate,
            "-c",
            "import sys; print('%d.%d %s' % (sys.version_info[:2] + (sys.executable,)))",
        ]
        try:
            answer = subprocess.run(question, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        version, _, executable = answer.stdout.strip().partition(" ")
        if answer.returncode == 0 and version == "2.7":
            return Path(executable)
    raise NotRunError("no working python2.7 on PATH or under pyenv, and the Autobahn suite needs one")


def _install(python: Path, home: Path) -> None:
    print(
        f"setting up autobahntestsuite {VERSION} with {python.name} in {home.relative_to(PROJECT)}",
        flush=True,
    )
    log = CACHE / "setup.log"
    log.unlink(missing_ok=True)
    virtualenv = CACHE / "virtualenv"
    shutil.rmtree(virtualenv, ignore_errors=True)
    # 20.15 is the last virtualenv that runs on Python 2.7
    _run([str(python), "-m", "pip", "install", "--target", str(virtualenv), "virtualenv<20.16"], log)
    _run([str(python), "-m", "virtualenv", str(home)], log, {"PYTHONPATH": str(virtualenv)})
    _run([str(home / "bin" / "python"), "-m", "pip", "install", f"autobahntestsuite=={VERSION}"], log)


def environment() -> dict[str, str]:
    """The environment for Python 2.7 programs, without PYTHONPATH and the like, which are meant for another Python."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # glibc gives each block of 128 KiB back to the kernel, the next message asks for it again: a tenth of the
    # suite's processor time.
    return inherited | {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def _run(command: list[str], log: Path, extra: dict[str, str] | None = None) -> str:
    variables = environment() | (extra or {})
    with open(log, "a") as errors:
        try:
            done = subprocess.run(
                command,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=_INSTALL_LIMIT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"{' '.join(command)}: {error}") from error
        if done.returncode:
            errors.write(done.stdout)
            raise SetupError(f"{' '.join(command)} failed with status {done.returncode}, see {log}")
    return done.stdout
