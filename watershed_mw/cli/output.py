"""The output of the commands: escaped messages, hex dumps, close codes by name, errors in one line.

No text from the network reaches a terminal unescaped: control characters could rewrite the screen, or inject input.
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

# Maximum bytes of a BINARY message and characters of a TEXT message shown on a terminal.
_MAX_DUMPED: Final = 256
_MAX_SHOWN: Final = 100_000
_PER_ROW: Final = 16
# Tab, and the joiners that emoji and several scripts need. All other format characters are escaped: they could reverse
# the direction of the text.
_HARMLESS = frozenset("\t\u200c\u200d")
_NORMAL_ENDS = frozenset({CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS})


class Failure(click.ClickException):
    """Ends the program with status 1 and one line on stderr."""


def _escaped(character: str) -> str:
    if character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape(text: str, *, newline: str = "\\n") -> str:
    """``text`` with control and format characters escaped as in Python, so that a terminal only displays it.

    Args:
        text: any text.
        newline: the replacement for a line feed.
    """
    if not text.isprintable():
        text = newline.join("".join(map(_escaped, line)) for line in text.split("\n"))
    return text


def shown(text: str) -> str:
    """A message for a terminal; lines after the first are indented, so they cannot imitate the program's own output."""
    hidden = len(text) - _MAX_SHOWN
    return escape(text[:_MAX_SHOWN], newline="\n  ") + (f"\n  ... and {hidden:,} more characters" if hidden > 0 else "")


def dump(data: bytes) -> Iterator[str]:
    """The first 256 bytes of a BINARY message, as lines of offset, hex and ASCII."""
    for offset in range(0, min(len(data), _MAX_DUMPED), _PER_ROW):
        row = data[offset : offset + _PER_ROW]
        ascii_ = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"  {offset:04x}  {row.hex(' '):<{3 * _PER_ROW - 1}}  {ascii_}"
    if len(data) > _MAX_DUMPED:
        yield f"  ... and {len(data) - _MAX_DUMPED:,} more bytes"


def describe_end(code: int, reason: str) -> str:
    """The end of a connection in words: ``closed with 1001 (going away) see you``."""
    name = CloseCode(code).name.replace("_", " ") if code in CloseCode.__members__.values() else "application"
    return f"closed with {code} ({name.lower()})" + (f" {escape(reason)}" if reason else "")


def status_of(code: int) -> int:
    """The exit status for a close code: 0 for 1000, 1001 and 1005, else 1."""
    return 0 if code in _NORMAL_ENDS else 1


def say(console: Console, text: str | Iterable[str], style: str = "") -> None:
    """Write lines in a style, without markup and without wrapping."""
    lines = text if isinstance(text, str) else "\n".join(text)
    console.print(Text(lines, style), soft_wrap=True, highlight=False)
