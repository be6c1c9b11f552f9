"""Waiting connections use no CPU, whatever they wait for: a stalled peer costs only memory."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.ways import EACH, Live, Opener, Way
from tests.support.wire_peer import TEXT, WirePeer

COMPRESSED = (("Sec-WebSocket-Extensions", "permessage-deflate"),)
# A little more than the seconds after which compression memory is released.
QUIET = 1.1


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def idle(way: Way, live: Live, peer: WirePeer) -> None:
    """A task or thread waits for a message."""
    live.begin("receive") if way.pulls else live.run()


def half_a_message(way: Way, live: Live, peer: WirePeer) -> None:
    idle(way, live, peer)
    peer.write(peer.frame(TEXT, deflated(bytes(50_000)), rsv=4)[:40])


def sends_alone(way: Way, live: Live, peer: WirePeer) -> None:
    """The peer does not read, and the waiting sender handles incoming data too."""
    if not way.pulls:
        live.run()
    live.begin("send", random.Random(1).randbytes(2_000_000))


def takes_nothing(way: Way, live: Live, peer: WirePeer) -> None:
    """The peer does not read; one task or thread waits for that while another one waits for a message."""
    idle(way, live, peer)
    live.begin("send", random.Random(1).randbytes(2_000_000))


def nobody_receives(way: Way, live: Live, peer: WirePeer) -> None:
    """More has arrived than the application receives."""
    peer.write(*(peer.frame(TEXT, "x" * 1000) for _ in range(100)))


def never_closes(way: Way, live: Live, peer: WirePeer) -> None:
    """The peer does not answer the Close."""
    live.begin("end")


STATES = [idle, half_a_message, sends_alone, takes_nothing, nobody_receives, never_closes]


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_idle_connections_use_no_cpu(state: Callable[[Way, Live, WirePeer], None], opener: Opener) -> None:
    options: dict[str, Any] = {"small": True, "fields": COMPRESSED, "ping_interval": None, "close_timeout": 60}
    opened = [(way, *opener.open(way, max_queued_messages=50, **options)) for way in EACH]
    for way, live, peer in opened:
        live.call("send", "what is compressed " * 100)
        peer.send(TEXT, deflated(b"and inflated " * 100), rsv=4)
        if way.pulls:
            live.receive()
        state(way, live, peer)
    time.sleep(QUIET)
    before = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - before
    assert used < 0.15, f"{used:.2f} s of CPU within half a second"
    assert [(way, live.conn.close_code, live.conn.close_reason) for way, live, _ in opened if live.conn.closed] == []
    for _, live, _ in opened:
        live.call("destroy")
