"""The bar and the baseline: which outcome of a case counts as passed, and the committed file of all outcomes.

A case passes if its outcome is good enough AND matches the baseline: a better outcome is a difference too.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from . import cases

BASELINE = Path(__file__).with_name("baseline.json")
UNKNOWN = "outcomes that the baseline holds"
_GOOD = {"OK", "INFORMATIONAL"}


class Outcome(NamedTuple):
    """Autobahn's verdict on one case."""

    behavior: str
    close: str
    code: int | None
    """The close code that the package sent; None if it sent none."""

    @property
    def good(self) -> bool:
        """Whether it reaches the bar: both verdicts OK or INFORMATIONAL."""
        return {self.behavior, self.close} <= _GOOD

    def __str__(self) -> str:
        return f"{self.behavior} / {self.close} / {self.code}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of str()."""
        behavior, close, code = text.split(" / ")
        return cls(behavior, close, None if code == "None" else int(code))


Outcomes = dict[str, Outcome]  # by case


class Difference(NamedTuple):
    """A case that failed."""

    case: str
    expected: str
    came: str


def compare(
    expected: Mapping[str, Outcome] | None, came: Mapping[str, Outcome], chosen: Iterable[str]
) -> list[Difference]:
    """The selected cases that failed; without `expected` (to write a baseline) only the bar counts."""
    differences = []
    for case in chosen:
        outcome = came.get(case)
        if outcome is None or not outcome.good:
            wanted = (expected or {}).get(case, "OK or INFORMATIONAL")
        elif expected is not None and outcome != expected.get(case):
            wanted = expected.get(case, UNKNOWN)
        else:
            continue
        differences.append(Difference(case, str(wanted), "no result" if outcome is None else str(outcome)))
    return differences


def load(path: Path = BASELINE) -> dict[str, Outcomes]:
    """The baseline: outcomes by case, by target ("uvicorn-h11/compiled"). Empty if there is no file yet."""
    if not path.exists():
        return {}
    baseline: dict[str, Outcomes] = {}
    for group in json.loads(path.read_text())["results"]:
        outcomes = {
            case: Outcome.parse(outcome) for outcome, lines in group["cases"].items() for case in cases.expand(lines)
        }
        baseline |= dict.fromkeys(group["doors"], outcomes)
    return baseline


def save(baseline: Mapping[str, Outcomes], suite: str, path: Path = BASELINE) -> None:
    """Write the baseline. Targets with the same outcomes share an entry, so that differences stand out."""
    groups: dict[tuple[tuple[str, Outcome], ...], list[str]] = {}
    for target, outcomes in baseline.items():
        key = tuple(sorted(outcomes.items(), key=lambda item: cases.order(item[0])))
        groups.setdefault(key, []).append(target)
    results = []
    for key, targets in sorted(groups.items(), key=lambda group: min(group[1])):
        by_outcome: dict[str, list[str]] = {}
        for case, outcome in key:
            by_outcome.setdefault(str(outcome), []).append(case)
        lines = {outcome: cases.compress(members) for outcome, members in sorted(by_outcome.items())}
        results.append({"doors": sorted(targets), "cases": lines})
    path.write_text(json.dumps({"suite": suite, "results": results}, indent=1) + "\n")
