"""The life of a connection as one table of enums: the only owner of every state transition.

:class:`~watershed_mw.core.protocol.Protocol` asks this table and never assigns a state of its own;
``docs/design.md`` draws its diagram from it. The table trusts nobody: a pair that it does not
hold is a bug and raises.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "Role", "State", "Trigger", "mermaid"]


class Role(Enum):
    """Which end of the connection this is; it decides who masks (RFC 6455 section 5.1)."""

    SERVER = "server"
    CLIENT = "client"


class State(Enum):
    """Where a connection stands, from the opening handshake's end to the last byte."""

    __hash__ = object.__hash__  # there is one of each; an Enum's own hashes its name, in Python

    OPEN = "open"
    """Messages travel both ways."""

    ANSWERING = "answering"
    """The peer's Close has come; replies to the messages before it may still go out, then our Close."""

    FAILING = "failing"
    """The peer broke the protocol; replies to the messages before that may still go out, then our Close."""

    CLOSING = "closing"
    """Our Close has gone out; the peer's is awaited."""

    ENDING = "ending"
    """The closing handshake is over, or was given up; the end of the TCP stream is awaited."""

    CLOSED = "closed"
    """Nothing more is sent or received."""


class Trigger(Enum):
    """What moves a connection from one state to the next."""

    __hash__ = object.__hash__  # there is one of each; an Enum's own hashes its name, in Python

    LOCAL_CLOSE = "the application ends it"
    PEER_CLOSE = "Close received"
    VIOLATION = "protocol violated"
    HANDED_OVER = "earlier messages handed over"
    PEER_SILENT = "keepalive timeout"
    TIMEOUT = "close timeout"
    EOF = "end of the TCP stream"
    ABORT = "destroyed"


TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.OPEN: {
        Trigger.LOCAL_CLOSE: State.CLOSING,
        Trigger.PEER_CLOSE: State.ANSWERING,
        Trigger.VIOLATION: State.FAILING,
        Trigger.PEER_SILENT: State.ENDING,
        Trigger.EOF: State.CLOSED,
        Trigger.ABORT: State.CLOSED,
    },
    State.ANSWERING: {
        Trigger.HANDED_OVER: State.ENDING,
        Trigger.LOCAL_CLOSE: State.ENDING,
        Trigger.EOF: State.CLOSED,
        Trigger.ABORT: State.CLOSED,
    },
    State.FAILING: {
        Trigger.HANDED_OVER: State.ENDING,
        Trigger.LOCAL_CLOSE: State.ENDING,
        Trigger.EOF: State.CLOSED,
        Trigger.ABORT: State.CLOSED,
    },
    State.CLOSING: {
        Trigger.PEER_CLOSE: State.ENDING,
        Trigger.VIOLATION: State.ENDING,
        Trigger.TIMEOUT: State.CLOSED,
        Trigger.EOF: State.CLOSED,
        Trigger.ABORT: State.CLOSED,
    },
    State.ENDING: {
        Trigger.TIMEOUT: State.CLOSED,
        Trigger.EOF: State.CLOSED,
        Trigger.ABORT: State.CLOSED,
    },
    State.CLOSED: {},
}


def mermaid() -> str:
    """The table as a Mermaid state diagram, for ``docs/design.md``."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.OPEN.name}: opening handshake"]
    for state, row in TRANSITIONS.items():
        # One arrow per target keeps the drawing readable where several triggers lead to one state.
        targets: dict[State, list[str]] = {}
        for trigger, target in row.items():
            targets.setdefault(target, []).append(trigger.value)
        lines += [f"    {state.name} --> {target.name}: {', '.join(why)}" for target, why in targets.items()]
    lines.append(f"    {State.CLOSED.name} --> [*]")
    return "\n".join(lines)
