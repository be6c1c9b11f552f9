"""The state machine of a connection: a table of all transitions.

:class:`~watershed_mw.core.protocol.Protocol` changes its state by this table only, and the diagram in
``docs/design.md`` is generated from it. A transition that is not in the table is a bug and raises.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "Role", "State", "Trigger", "mermaid"]


class Role(Enum):
    """Which end of the connection this is; clients mask their frames (RFC 6455 section 5.1)."""

    SERVER = "server"
    CLIENT = "client"


class State(Enum):
    """States of a connection, from the end of the opening handshake to the last byte."""

    __hash__ = object.__hash__  # members are singletons; Enum hashes the name, in Python

    OPEN = "open"
    """Messages are sent and received."""

    ANSWERING = "answering"
    """The peer's Close was received; replies to earlier messages may be sent, then our Close."""

    FAILING = "failing"
    """The peer violated the protocol; replies to earlier messages may be sent, then our Close."""

    CLOSING = "closing"
    """Our Close was sent; waiting for the peer's."""

    ENDING = "ending"
    """The closing handshake is complete or was given up; waiting for the end of the TCP stream."""

    CLOSED = "closed"
    """Nothing can be sent or received."""


class Trigger(Enum):
    """Events that change the state of a connection."""

    __hash__ = object.__hash__  # members are singletons; Enum hashes the name, in Python

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
        # One arrow per target keeps the diagram readable when several triggers lead to one state.
        targets: dict[State, list[str]] = {}
        for trigger, target in row.items():
            targets.setdefault(target, []).append(trigger.value)
        lines += [f"    {state.name} --> {target.name}: {', '.join(why)}" for target, why in targets.items()]
    lines.append(f"    {State.CLOSED.name} --> [*]")
    return "\n".join(lines)
