"""core/events.py: the events of a protocol, the same for both roles (RFC 6455 sections 5.5 and 7.1)."""

from __future__ import annotations

import dataclasses

import pytest

from watershed_mw.core.events import CloseReceived, Event, Failed, Ping, Pong
from watershed_mw.errors import RemoteProtocolError

EVENTS = [Ping(b"a"), Pong(b"a"), CloseReceived(1000, "bye"), Failed(RemoteProtocolError("no"))]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_frozen(event: object) -> None:
    name = dataclasses.fields(event)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, None)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_have_slots(event: object) -> None:
    assert not hasattr(event, "__dict__")


def test_a_ping_is_not_a_pong() -> None:
    ping: Event = Ping(b"a")
    pong: Event = Pong(b"a")
    assert ping == Ping(b"a")
    assert ping != pong
