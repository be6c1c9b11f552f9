"""What is sent arrives whole and in order, whether the kernel takes it at once, in part, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.connections.ways import SERVER, Link, Way, in_thread
from tests.connections.wire import TEXT, Frame
from tests.support import LIMIT

plain = pytest.mark.parametrize(
    "way",
    [Way(loop, carrier, False, SERVER) for loop in ("asyncio", "uvloop") for carrier in ("streams", "transport")],
    ids=str,
)


def numbered(count: int) -> list[str]:
    """Messages that differ in number and length, so that the kernel stops somewhere within one."""
    return [f"{number} ".ljust(200 + number * 7919 % 3000, "*") for number in range(count)]


@plain
def test_order_stays_when_the_kernel_is_full_and_when_it_has_room_again(link: Link) -> None:
    """Half of them come while the peer reads nothing, the rest while it reads as fast as it can."""
    live, peer = link(small=True)
    messages = numbered(2000)

    async def send(conn: Any, some: list[str]) -> None:
        for index, message in enumerate(some):
            conn.send(message)
            if index % 3 == 0:
                await asyncio.sleep(0)  # each of them leaves in a turn of its own

    live.do(lambda conn: send(conn, messages[:1000])).result(LIMIT)
    reading = in_thread(lambda: [peer.read() for _ in messages])
    live.do(lambda conn: send(conn, messages[1000:])).result(LIMIT)
    assert reading.result(LIMIT) == [Frame(TEXT, message.encode()) for message in messages]
