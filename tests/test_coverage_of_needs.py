"""Every need and every advisory that concerns a server or a client has a test that carries its mark.

Test files are read with ``ast``, because a collection would take many times as long. Whoever marks a test shows that it
fails without its feature: break the feature, run `pytest` on the file, see it fail.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# The list of needs has thirty rows. The test client for Starlette (19), fan-out (21, 22) and
# typed messages (29) are parts of their own.
ROWS = 30
SERVER_ROWS = {
    1: "data sent before a close arrives, and the right close code with it",
    2: "shutdown never hangs on open connections",
    3: "drain: stop accepting, notify, wait a bounded time, close",
    4: "a slow client eats no memory",
    5: "a slow application eats no memory",
    6: "limits on size and on the count of fragments, by default",
    7: "whole frames from any thread",
    8: "origins checked by default",
    9: "refusal with a real status and body",
    10: "authentication by the machinery of HTTP",
    11: "tokens in the query string stay out of the logs",
    12: "no thread for each WebSocket under WSGI",
    13: "the WSGI request ends cleanly",
    14: "a handler that only sends notices that the peer has gone",
    15: "one exception family after the end",
    16: "keepalive: default, off, per connection, latency, and data counts as life",
    17: "idle time-outs of proxies",
    18: "compression's memory is bounded and paid for when used",
    20: "a test client for Flask",
    23: "a proxy whose upstream picks the subprotocol before the 101 goes out",
    24: "a proxy that passes on close codes, pings and dead backends",
    25: "a proxy without a size cap of its own, on raw sockets",
    26: "clients come back after a reload, each in its own time",
    27: "limits on connections and message rate",
    28: "open and close lines, and live connections",
    30: "receive's edge cases, closing from another thread, reconnecting",
}

SERVER_ADVISORIES = frozenset({
    "CVE-2018-1000518",
    "CVE-2021-32640",
    "CVE-2024-37890",
    "CVE-2026-42544",
    "CVE-2026-44545",
    "CVE-2026-44546",
    "CVE-2026-45736",
    "CVE-2026-48779",
    "CVE-2026-48802",
    "CVE-2026-54274",
    "aiohttp changelog",
    "aiohttp#11898",
    "aiohttp#13350",
    "aiohttp#13487",
    "engine.io 4.x",
    "node ws 3.3.1",
    "upgrade smuggling",
})  # fmt: skip
CLIENT_ADVISORIES = frozenset({
    "CVE-2026-12151",
    "CVE-2026-1526",
    "websockets 16.1",
})  # fmt: skip
# Of passwords: a test may carry it, and none is asked for yet.
OTHER_ADVISORIES = frozenset({"CVE-2021-33880"})

MARKS = ("need", "advisory")
NEVER_RUN = ("skip", "skipif", "xfail")


def _marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, list[object]]:
    """The names of all its ``@pytest.mark.name``, with the arguments of the two relevant ones."""
    marks: dict[str, list[object]] = defaultdict(list)
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "pytest.mark":
            arguments = decorator.args if isinstance(decorator, ast.Call) and target.attr in MARKS else []
            marks[target.attr] += [ast.literal_eval(argument) for argument in arguments]
    return marks


@cache
def marked() -> dict[str, dict[object, list[str]]]:
    """For each of the two marks: its arguments, and the tests that carry them."""
    found: dict[str, dict[object, list[str]]] = {name: defaultdict(list) for name in MARKS}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                where = f"{path.relative_to(TESTS)}:{node.lineno} {node.name}"
                marks = _marks(node)
                for name in MARKS:
                    for argument in marks.get(name, ()):
                        assert node.name.startswith("test_"), f"{where} is no test"
                        assert not set(marks) & set(NEVER_RUN), f"{where} may not be run"
                        found[name][argument].append(where)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("row", SERVER_ROWS, ids=lambda row: f"{row}: {SERVER_ROWS[row]}")
def test_every_need_has_a_test(row: int) -> None:
    assert marked()["need"][row], f"mark a test with @pytest.mark.need({row})"


@pytest.mark.parametrize("advisory", sorted(SERVER_ADVISORIES | CLIENT_ADVISORIES))
def test_every_advisory_has_a_test(advisory: str) -> None:
    assert marked()["advisory"][advisory], f'mark a test with @pytest.mark.advisory("{advisory}")'


def test_every_mark_names_an_existing_need_or_advisory() -> None:
    rows = {row: tests for row, tests in marked()["need"].items() if row not in range(1, ROWS + 1)}
    known = SERVER_ADVISORIES | CLIENT_ADVISORIES | OTHER_ADVISORIES
    advisories = {name: tests for name, tests in marked()["advisory"].items() if name not in known}
    assert (rows, advisories) == ({}, {})
