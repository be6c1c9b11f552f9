"""Selects the build of the hot path: extension modules where they were built, otherwise the same files interpreted.

An extension module lies beside its source and takes precedence on import. ``WATERSHED_MW_PURE=1`` in the environment,
when the package is first imported, hides all of them. No other code may make this choice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from typing import Any, Literal

__all__ = ["SourcesOnly", "implementation"]


class SourcesOnly:
    """A finder for ``sys.meta_path`` that finds modules of a package and its subpackages only as ``*.py`` sources."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec; None for a module of another package, and for a module without a source."""
        places = path if path is not None and name.startswith(self._prefix) else ()
        finders = (FileFinder(place, (SourceFileLoader, SOURCE_SUFFIXES)) for place in places)
        return next((spec for finder in finders if (spec := finder.find_spec(name)) is not None), None)


if os.environ.get("WATERSHED_MW_PURE") == "1":
    sys.meta_path.insert(0, SourcesOnly(__name__.rpartition(".")[0]))

from .core import protocol  # noqa: E402  (found as was just decided)

implementation: Literal["compiled", "interpreted"]
implementation = "interpreted" if str(protocol.__file__).endswith(".py") else "compiled"
