"""The benchmark's results as text: tables for a terminal and for Markdown, and which of the bars hold.

It reads what `__main__` has written (its docstring says the form) and measures nothing. From a file of results it
prints the Markdown: python -m tests.benchmarks.table build/benchmarks/results.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

Group = dict[str, Any]
# What a row may hold, in the order of the columns.
COLUMNS = {
    "cpu": "CPU us",
    "rate": "per second",
    "p50": "p50 us",
    "p99": "p99 us",
    "memory": "KiB",
    "share": "% of a core",
}


def median(values: list[float]) -> float:
    return statistics.median(values)


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: list[float]) -> str:
    """Minimum, median, maximum; one value stands alone."""
    if len(values) < 2:
        return "".join(ratio(value) for value in values)
    return " / ".join(ratio(value) for value in (min(values), median(values), max(values)))


def ratio(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def cells(group: Group) -> list[list[str]]:
    """The head and the rows: medians, and the ratios to the group's reference."""
    columns = [name for name in COLUMNS if any(row[name] for row in group["rows"])]
    head = ["", *(COLUMNS[name] for name in columns), f"{COLUMNS[group['metric']]}, of {group['reference']}"]
    rows = [
        [
            row["contestant"],
            *(number(median(row[name])) if row[name] else "" for name in columns),
            spread(row["ratio"]),
        ]
        for row in group["rows"]
    ]
    return [head, *rows]


def plain(group: Group) -> str:
    """A table for a terminal, with the group's bars below."""
    lines = cells(group)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [f"== {group['title']}"]
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        text.append("  ".join([first.strip().ljust(widths[0]), *others]))
    return "\n".join([*text, *(verdict(bar) for bar in group["bars"]), *failures(group)])


def verdict(bar: dict[str, Any]) -> str:
    if bar["holds"] is None:
        return f"asked: {bar['asked']}: not measured"
    return f"asked: {bar['asked']}; seen: {spread(bar['seen'])}: {'holds' if bar['holds'] else 'FALLS SHORT'}"


def failures(group: Group) -> list[str]:
    return [f"failed: {name}: {message}" for name, message in group["failures"].items()]


def heading(results: dict[str, Any]) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cores']} cores, {about['cpu']}, Linux {about['kernel']}; {about['date']}, commit {about['commit']}\n"
        f"CPython {about['python']}, {about['build']} build; {versions}\n"
        f"{results['rounds']} rounds of {results['seconds']} s for each load; ratios are min / median / max"
    )


def summary(results: dict[str, Any]) -> str:
    bars = [(group, bar) for group in results["groups"] for bar in group["bars"]]
    held = sum(bar["holds"] is True for _, bar in bars)
    return "\n".join([f"{held} of {len(bars)} bars hold", *(f"{group['name']}: {verdict(bar)}" for group, bar in bars)])


def markdown(results: dict[str, Any]) -> str:
    """All tables, with the machine above and the bars first."""
    parts = ["# The benchmark's tables", "Written by `make bench`.", f"```text\n{heading(results)}\n```", bars(results)]
    for group in results["groups"]:
        head, *rows = cells(group)
        rule = ["---", *(["---:"] * (len(head) - 1))]
        lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]
        parts += [f"## {group['title']}", "\n".join(lines), *failures(group)]
    return "\n\n".join(parts) + "\n"


def bars(results: dict[str, Any]) -> str:
    lines = ["| load | asked | seen | |", "|---|---|---:|---|"]
    for group in results["groups"]:
        for bar in group["bars"]:
            word = {True: "holds", False: "**falls short**", None: "not measured"}[bar["holds"]]
            lines.append(f"| {group['title']} | {bar['asked']} | {spread(bar['seen'])} | {word} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
