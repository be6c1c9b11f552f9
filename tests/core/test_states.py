"""core/states.py: the state table of a connection (RFC 6455 sections 1.4 and 7.1)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from watershed_mw.core.states import TRANSITIONS, Role, State, Trigger, mermaid

DESIGN = Path(__file__).resolve().parents[2] / "docs" / "design.md"


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_every_trigger_is_used() -> None:
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


def test_nothing_leaves_closed() -> None:
    assert TRANSITIONS[State.CLOSED] == {}


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_the_end_of_the_stream_and_an_abort_close_from_every_state(state: State) -> None:
    assert TRANSITIONS[state][Trigger.EOF] is State.CLOSED
    assert TRANSITIONS[state][Trigger.ABORT] is State.CLOSED


def test_no_state_is_entered_twice() -> None:
    # With a cycle, a peer could keep a connection alive forever.
    order = [State.OPEN, State.ANSWERING, State.FAILING, State.CLOSING, State.ENDING, State.CLOSED]
    for state, row in TRANSITIONS.items():
        assert all(order.index(target) > order.index(state) for target in row.values())


def test_every_state_is_reached_from_open() -> None:
    reached = {State.OPEN}
    for _ in State:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(State)


def test_there_are_two_roles() -> None:
    assert [role.value for role in Role] == ["server", "client"]


def test_diagram_shows_every_transition() -> None:
    drawn = set()
    for line in mermaid().splitlines():
        if match := re.fullmatch(r"    (\w+) --> (\w+): (.+)", line):
            state, target, triggers = match.groups()
            drawn |= {(state, target, trigger) for trigger in triggers.split(", ")}
    assert drawn == {
        (state.name, target.name, trigger.value)
        for state, row in TRANSITIONS.items()
        for trigger, target in row.items()
    }


def test_diagram_begins_at_open_and_ends_at_closed() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert lines[1].startswith("    [*] --> OPEN")
    assert lines[-1] == "    CLOSED --> [*]"


def test_design_document_shows_the_diagram_of_the_table() -> None:
    text = DESIGN.read_text(encoding="utf-8")
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert mermaid() in blocks, f"put this into {DESIGN.name}:\n```mermaid\n{mermaid()}\n```"
