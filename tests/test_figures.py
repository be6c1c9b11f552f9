"""Figures that several pages of the documentation mention are those of the last benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def measured(title: str) -> dict[str, float]:
    """The first column of a benchmark table, by contestant."""
    text = (DOCS / "performance_tables.md").read_text()
    section = text.partition(f"\n## memory of an idle connection, uvloop: {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", section, re.MULTILINE)
    return {name: float(figure) for name, figure in rows}


OPENED = measured("opened")
MORE = {
    name: figure - measured("after one message")[name]
    for name, figure in measured("after one message, with deflate").items()
}
ASGI, SANSIO = f"{OPENED['asgi']:.1f}", f"{OPENED['websockets-sansio']:.1f}"
TOLD = [
    ("deploying.md", f"takes {ASGI} KiB of the process"),
    ("deploying.md", f"{MORE['asgi']:.1f} KiB more once both sides have compressed"),
    ("deploying.md", f"Starlette adds {OPENED['starlette'] - OPENED['asgi']:.1f} KiB"),
    ("deploying.md", f"takes {SANSIO} KiB, and {MORE['websockets-sansio']:.1f} more with compression"),
    ("uvicorn.md", f"{ASGI} KiB instead of {SANSIO}"),
    ("performance.md", f"takes {ASGI} KiB under an ASGI application, {OPENED['native']:.1f} KiB native"),
    ("performance.md", f"websockets-sansio takes {SANSIO}."),
    ("performance.md", f"With permessage-deflate {MORE['asgi']:.1f} KiB more remain"),
]


@pytest.mark.parametrize("page, told", TOLD)
def test_documented_idle_memory_matches_the_benchmark(page: str, told: str) -> None:
    text = " ".join((DOCS / page).read_text().split())
    assert told in text, f"expected {told!r} in {page}, as the benchmark says"
