"""Case identifiers: matching patterns, sorting, costs, and a short form for sets of cases.

Identifiers come from the installed suite; only their number is known here.
"""

import re
from collections.abc import Iterable, Sequence

TOTAL = 517
"""Cases in autobahntestsuite 25.10.1. Another number means another suite."""

SUBSET = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.*", "13.1.*")
"""What CI runs: all but the message-size cases (9), and of the compression cases one family of each kind."""

# Measured seconds of cases 12.x.n and 13.x.n by n: a thousand messages each, of 16 bytes (n=1) to 128 KiB
# (n=10), then fragmented ones. They only have to be good enough to cut the work into equal parts.
_COMPRESSION_COST = (0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.9, 1.4, 2.5, 5.0, 0.8, 1.0, 1.4, 2.6, 5.5, 5.2, 5.0, 5.0)


def order(case: str) -> tuple[int, ...]:
    """The sort key of an identifier: "10.1.1" comes after "9.8.6"."""
    return tuple(int(part) for part in case.split("."))


def select(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The suite's cases that match any pattern ("6.4.*"), in order. Raises ValueError if one matches none."""
    chosen: set[str] = set()
    for pattern in patterns:
        expression = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        matches = [case for case in known if expression.fullmatch(case)]
        if not matches:
            raise ValueError(f"no case of the suite matches {pattern!r}")
        chosen.update(matches)
    return sorted(chosen, key=order)


def cost(case: str) -> float:
    """About how many seconds a case takes."""
    match order(case):
        case (12 | 13, _, size):
            return _COMPRESSION_COST[size - 1]
        case (9, *_):
            return 2.0
        case (6, 4, _):
            return 2.0
        case (5, 19 | 20):
            return 1.0
        case _:
            return 0.01


def split(cases: Iterable[str], parts: int) -> list[list[str]]:
    """Cut cases into at most `parts` lists of about the same cost, none of them empty."""
    bins: list[list[str]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for case in sorted(cases, key=lambda case: (-cost(case), order(case))):
        lightest = load.index(min(load))
        bins[lightest].append(case)
        load[lightest] += cost(case)
    return [sorted(part, key=order) for part in bins if part]


def compress(cases: Iterable[str]) -> list[str]:
    """One line per chapter, runs shortened: ["1.1.1-8 1.2.1-8", "2.1-11"]."""
    runs: list[list[tuple[int, ...]]] = []
    for key in sorted(order(case) for case in cases):
        if runs and runs[-1][-1][:-1] == key[:-1] and runs[-1][-1][-1] + 1 == key[-1]:
            runs[-1].append(key)
        else:
            runs.append([key])
    chapters: dict[int, list[str]] = {}
    for run in runs:
        text = ".".join(map(str, run[0])) + (f"-{run[-1][-1]}" if len(run) > 1 else "")
        chapters.setdefault(run[0][0], []).append(text)
    return [" ".join(texts) for texts in chapters.values()]


def expand(lines: Iterable[str]) -> list[str]:
    """Expand the short form of `compress`. Raises ValueError for anything that `compress` does not produce."""
    cases: list[str] = []
    for text in " ".join(lines).split():
        found = re.fullmatch(r"((?:\d+\.)+)(\d+)(?:-(\d+))?", text)
        if found is None:
            raise ValueError(f"expected cases such as 6.4.1-4, got {text!r}")
        family, first, last = found[1], int(found[2]), int(found[3] or found[2])
        cases.extend(f"{family}{number}" for number in range(first, last + 1))
    return cases
