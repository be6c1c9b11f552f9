"""What the commands write: messages of the peer made harmless, hex dumps, close codes by name, errors in one line.

Nothing that came from the network reaches a terminal unescaped: a control character could rewrite what is shown
there, or make the terminal itself type.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ..core.codes import CloseCode

__all__ = ["Failure", "describe_end", "dump", "escape", "say", "shown", "status_of"]

# Bytes of a BINARY message, and characters of a TEXT message, that a terminal is shown.
_MOST_DUMPED: Final = 256
_MOST_SHOWN: Final = 100_000
_PER_ROW: Final = 16
# Joiners, without which emoji and several scripts fall apart. All other format characters are told, not obeyed: they
# can turn the direction of the text around.
_HARMLESS = frozenset("\t\u200c\u200d")
_NORMAL_ENDS = frozenset({CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS})


class Failure(click.ClickException):
    """What ends the program with status 1 and one line on stderr."""


def _escaped(character: str) -> str:
    if character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape(text: str, *, newline: str = "\\n") -> str:
    """``text`` without anything that a terminal obeys: control and format characters as Python writes them.

    Args:
        text: whatever came.
        newline: what stands for a line feed.
    """
    if not text.isprintable():
        text = newline.join("".join(map(_escaped, line)) for line in text.split("\n"))
    return text


def shown(text: str) -> str:
    """A message for a terminal: further lines are indented, so that none looks like one of ours."""
    left = len(text) - _MOST_SHOWN
    return escape(text[:_MOST_SHOWN], newline="\n  ") + (f"\n  ... and {left:,} characters more" if left > 0 else "")


def dump(data: bytes) -> Iterator[str]:
    """A BINARY message as lines of offset, hex and ASCII, of its first 256 bytes."""
    for offset in range(0, min(len(data), _MOST_DUMPED), _PER_ROW):
        row = data[offset : offset + _PER_ROW]
        ascii_ = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"  {offset:04x}  {row.hex(' '):<{3 * _PER_ROW - 1}}  {ascii_}"
    if len(data) > _MOST_DUMPED:
        yield f"  ... and {len(data) - _MOST_DUMPED:,} bytes more"


def describe_end(code: int, reason: str) -> str:
    """How a connection has ended, for a person: ``closed with 1001 (GOING AWAY) see you``."""
    name = CloseCode(code).name.replace("_", " ") if code in CloseCode.__members__.values() else "application"
    return f"closed with {code} ({name.lower()})" + (f" {escape(reason)}" if reason else "")


def status_of(code: int) -> int:
    """The exit status after a connection that ended with ``code``: 0 for 1000, 1001 and 1005, else 1."""
    return 0 if code in _NORMAL_ENDS else 1


def say(console: Console, text: str | Iterable[str], style: str = "") -> None:
    """Write lines, which are not taken for markup and not wrapped, in a style."""
    lines = text if isinstance(text, str) else "\n".join(text)
    console.print(Text(lines, style), soft_wrap=True, highlight=False)
