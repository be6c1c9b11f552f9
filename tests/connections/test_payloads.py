"""Payload types: text by its characters, buffers by their bytes, of any class, with every method."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.payloads import REFUSED, SENDABLE, Colour, Shouting
from tests.support.ways import FEW, Link, Live, LiveInBackground, LiveOnLoop
from tests.support.wire_peer import BINARY, PING, TEXT, WirePeer
from watershed_mw import ConnectionClosed, broadcast

few = pytest.mark.parametrize("way", FEW, ids=str)
WORDS = r"expected str .*bytes-like"


def opened(link: Link, **options: Any) -> tuple[Live, WirePeer]:
    live, peer = link(**options)
    if isinstance(live, LiveInBackground):
        live.run()
    return live, peer


def _broadcast(data: Any, conn: Any) -> None:
    broadcast([conn], data)


def expect(peer: WirePeer, message: str | bytes) -> None:
    peer.expect(TEXT if isinstance(message, str) else BINARY, message)


@few
def test_send_accepts_every_payload_type(link: Link) -> None:
    live, peer = opened(link)
    for data, message in SENDABLE.values():
        live.send(data)
        expect(peer, message)
    for data in REFUSED.values():
        with pytest.raises(TypeError, match=WORDS):
            live.send(data)
    live.send("fine")
    expect(peer, "fine")


@few
def test_send_accepts_every_payload_type_while_the_watcher_reads(link: Link) -> None:
    seen: list[tuple[str, bytes]] = []
    live, peer = opened(link, trace=lambda probe, _, data: seen.append((probe, data)))
    for data, message in SENDABLE.values():
        live.send(data)
        expect(peer, message)
    assert [data for probe, data in seen if probe.startswith("send-")] == [
        message.encode() if isinstance(message, str) else message for _, message in SENDABLE.values()
    ]


@few
def test_send_accepts_every_payload_type_from_another_thread(link: Link) -> None:
    live, peer = opened(link)
    for data, message in SENDABLE.values():
        live.conn.send(data)
        expect(peer, message)
    for data in REFUSED.values():
        with pytest.raises(TypeError, match=WORDS):
            live.conn.send(data)


@few
def test_broadcast_accepts_every_payload_type(link: Link) -> None:
    live, peer = opened(link)
    for data, message in SENDABLE.values():
        if isinstance(live, LiveOnLoop):
            live.do(partial(_broadcast, data)).result(LIMIT)
        else:
            broadcast([live.conn], data)
        expect(peer, message)
    for data in REFUSED.values():
        with pytest.raises(TypeError, match=WORDS):
            broadcast([live.conn], data)


@few
def test_ping_accepts_every_payload_type(link: Link) -> None:
    live, peer = opened(link)
    for data, message in SENDABLE.values():
        payload = message.encode() if isinstance(message, str) else message
        if len(payload) <= 125:
            live.call("ping", data)
            peer.expect(PING, payload)
    for data in REFUSED.values():
        with pytest.raises(TypeError, match=WORDS):
            live.call("ping", data)


@few
@pytest.mark.parametrize("reason", [Colour.RED, Shouting("näive")], ids=["StrEnum", "str with methods"])
def test_a_close_reason_accepts_every_kind_of_string(link: Link, reason: str) -> None:
    live, peer = opened(link)
    ending = live.begin("end", reason, code=4000)
    text = "red" if isinstance(reason, Colour) else "näive"
    peer.expect_close(4000, text)
    peer.send_close(4000)
    peer.finish()
    ending.result(LIMIT)
    with pytest.raises(ConnectionClosed):
        live.send("too late")
