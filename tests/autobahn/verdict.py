"""Prints the results of a run: a table of doors and builds, then each failed case and where its report is."""

import os
from collections.abc import Mapping, Sequence

from . import cases
from .compare import UNKNOWN, Difference
from .run import Result, Target

_MANY = 12  # cases of one kind of failure that are listed singly; more are summed up


def show(
    results: Mapping[Target, Result], judged: Mapping[Target, Sequence[Difference]], chosen: Sequence[str]
) -> tuple[int, int]:
    """Print the results; return how many cases passed and failed.

    A problem outside any case counts as one more failure.
    """
    print(f"{'door':<20}{'build':<13}{'cases':>6}{'ok':>6}{'info':>6}{'failed':>8}{'seconds':>9}")
    passed = failed = 0
    for target, result in results.items():
        differences = judged[target]
        good = [outcome for outcome in result.outcomes.values() if outcome.good]
        ok = sum(outcome.behavior == outcome.close == "OK" for outcome in good)
        row = f"{target.door.name:<20}{target.build:<13}{len(result.outcomes):>6}{ok:>6}{len(good) - ok:>6}"
        print(f"{row}{len(differences) + len(result.problems):>8}{result.seconds:>9.1f}")
        passed += len(chosen) - len(differences)
        failed += len(differences) + len(result.problems)
    for target, result in results.items():
        for problem in result.problems:
            print(f"{target}: {problem}")
        _show_differences(target, result, judged[target], chosen)
    return passed, failed


def _show_differences(target: Target, result: Result, differences: Sequence[Difference], chosen: Sequence[str]) -> None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        came = "good ones" if difference.expected == UNKNOWN else difference.came
        kinds.setdefault((difference.expected, came), []).append(difference.case)
    for (expected, came), members in kinds.items():
        which = f"all {len(chosen)}" if len(members) == len(chosen) > 1 else " ".join(cases.compress(members))
        print(f"{target}: expected {expected}, came {came}: {which}")
        if len(members) <= _MANY and expected != UNKNOWN:
            for case in members:
                if case in result.reports:
                    print(f"    {case}: {os.path.relpath(result.reports[case])}")
