"""This package's connection under `WatershedProtocol`: with handlers (and a broadcast), and with iteration."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from watershed_mw import AsyncConnection, WatershedASGI, broadcast

members: set[AsyncConnection] = set()


async def callbacks(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    conn: AsyncConnection = await scope["watershed"].accept()
    if scope["path"] == "/broadcast":
        await take_part(conn)
    else:
        conn.on("text", conn.send)
        conn.on("binary", conn.send)
        await conn.run()


async def take_part(conn: AsyncConnection) -> None:
    members.add(conn)
    conn.on("text", to_all)
    conn.on("binary", to_all)
    try:
        await conn.run()
    finally:
        members.discard(conn)


def to_all(message: str | bytes) -> None:
    broadcast(members, message)


async def iteration(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    conn: AsyncConnection = await scope["watershed"].accept()
    async for message in conn:
        await conn.send(message)


callbacks_app = WatershedASGI(callbacks)
iteration_app = WatershedASGI(iteration)
