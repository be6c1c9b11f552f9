"""The pages of docs/: extracts their code blocks, tables and command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.support import PROJECT

PAGES = sorted((PROJECT / "docs").glob("*.md"))
# A comment before a block or table, invisible to readers, names the test that runs it.
_BLOCK = re.compile(
    r"^(?:<!-- test: (?P<name>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_TABLE = re.compile(r"^<!-- (?P<kind>compare|names): (?P<name>\S+) -->\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and its position."""

    page: Path
    line: int
    language: str
    name: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def module(self) -> ModuleType:
        """The namespace after running the block."""
        module = ModuleType(f"block_{self.page.stem}_{self.line}")
        exec(compile("\n" * self.line + self.code, self.page, "exec"), module.__dict__)
        return module


@cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block of every page."""
    return tuple(_blocks())


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            yield Block(page, line, match["language"], match["name"] or "", match["code"])


def tables(kind: str) -> dict[str, list[list[str]]]:
    """The marked tables of a kind by name, as rows of cells without the heading."""
    found = {}
    for page in PAGES:
        for match in _TABLE.finditer(page.read_text()):
            if match["kind"] == kind:
                rows = match["rows"].splitlines()[2:]
                found[match["name"]] = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return found


PYTHON = [block for block in blocks() if block.language == "python"]


def named(name: str) -> Block:
    """The one block with this name."""
    [block] = [block for block in blocks() if block.name == name]
    return block


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of every page, as program and arguments."""
    for block in blocks():
        if block.language == "sh" and block.name != "pipes":  # those are run by tests/terminal/test_connect.py
            for line in block.code.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                yield program, arguments
