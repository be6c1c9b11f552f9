"""The optional extension modules; everything else about the project stands in pyproject.toml.

The hot path is compiled from the very files that run interpreted, with C types from the ``*.pxd`` beside them; an
extension module lies beside its source and is found before it. Compiling is a favour, never a condition: whatever
goes wrong here costs speed and one line of output, and an install has either all of the extension modules or none.

Two environment variables are read, at build time only:

``WATERSHED_MW_PURE=1``
    compile nothing (the wheel is then the same for every platform).
``WATERSHED_MW_COMPILE=required``
    fail where the build would otherwise fall back; for continuous integration and releases.
"""

from __future__ import annotations

import os
import platform
import sys
import textwrap
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A front end runs this file several times for one install; only these commands get to hear what is not built.
BUILDING = {"bdist_wheel", "build", "build_ext", "editable_wheel"}
# The way of a byte, and back. Each is a file that runs interpreted as well, with its C types in a .pxd beside it.
MODULES = (
    "core.frames.codec",
    "core.frames.utf8",
    "core.frames.boundaries",
    "core.frames.payload_buffer",
    "core.deflate",
    "core.memory_budget",
    "core.pace",
    "core.prepared",
    "core.liveness",
    "core.incoming",
    "core.base",
    "core.protocol",
    "core.receive_queue",
    "sockets.blocking",
    "connection.awaitables",
    "connection.handlers",
    "connection.base",
    "connection.broadcast",
    "connection.aio.api",
    "connection.aio.writer",
    "connection.aio.reader",
    "connection.aio.dispatch",
    "connection.aio.driver",
    "connection.aio.connection",
    "connection.threads.turns",
    "connection.threads.stream",
    "relay.side",
    "relay.socket_side",
    "relay.transport_side",
    "uvicorn.messages",
)
ROOT = Path(__file__).resolve().parent
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # annotations stay for mypy and readers; C types come from the .pxd alone
    "boundscheck": False,
    "wraparound": False,
    "binding": True,
    # Not "freethreading_compatible": tests fail without the GIL, which CPython therefore enables on import.
    "warn.unreachable": False,  # a function with two bodies returns at the end of its compiled one
}


def note(text: str) -> None:
    """Say in one line what was built, or why the interpreted code will run."""
    print(f"watershed_mw: {text}", flush=True)


class OptionalBuildExt(build_ext):
    """Compiles all of the extension modules or none."""

    def run(self) -> None:
        """Translate and compile; on any failure fall back to the interpreted code."""
        in_place = bool(self.inplace)  # setuptools clears it while it works, and leaves it so on failure
        started = time.time()
        try:
            self._translate()
            super().run()
        except Exception as error:
            if os.environ.get("WATERSHED_MW_COMPILE") == "required":
                raise
            self._forget_all(in_place)
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
            note(f"no extension modules, the interpreted code will run ({reason})")
            return
        if in_place:
            # A source that was edited while the compiler ran must look newer than its extension module.
            for path in self._in_place_paths():
                os.utime(path, (started, started))
        note(f"compiled {', '.join(name.partition('.')[2] for name in self._names())}")

    def _names(self) -> list[str]:
        return [self.get_ext_fullname(extension.name) for extension in self.extensions]

    def _in_place_paths(self) -> list[Path]:
        return [ROOT / self.get_ext_filename(name) for name in self._names()]

    def _translate(self) -> None:
        # Here and not at the top: metadata and sdist need no Cython, and without it the build falls back.
        from Cython.Build import cythonize

        # force: cythonize trusts time stamps, which know nothing of directives or of another Cython.
        translated = cythonize(
            self.extensions, compiler_directives=DIRECTIVES, build_dir="build", force=True, quiet=True
        )
        for extension, result in zip(self.extensions, translated, strict=True):
            extension.sources = result.sources
            # Last wins, so an optimisation level in the caller's CFLAGS is left to rule.
            if self._optimises() and "-O" not in os.environ.get("CFLAGS", ""):
                extension.extra_compile_args = ["-O3"]
        self.force = True
        self.parallel = self.parallel or True

    @staticmethod
    def _optimises() -> bool:
        return platform.system() != "Windows"  # MSVC has /O2 from distutils and knows no -O3

    def _forget_all(self, in_place: bool) -> None:
        self.inplace = False
        built = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        if in_place:
            built += self._in_place_paths()  # left from an earlier build: stale, and it would be imported
        for path in built:
            path.unlink(missing_ok=True)
        self.extensions = []


def extensions() -> list[Extension]:
    """Return what there is to compile on this interpreter."""
    pure = os.environ.get("WATERSHED_MW_PURE") == "1"
    if pure or platform.python_implementation() != "CPython":
        if BUILDING.intersection(sys.argv):
            reason = "WATERSHED_MW_PURE=1" if pure else platform.python_implementation()
            note(f"no extension modules, the interpreted code will run ({reason})")
        return []
    return [Extension(f"watershed_mw.{name}", [f"watershed_mw/{name.replace('.', '/')}.py"]) for name in MODULES]


setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuildExt})
