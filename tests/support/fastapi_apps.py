"""FastAPI applications behind the middleware, and clients for them."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI

from tests.support.peers import Answer, Peer, head
from watershed_mw import AsyncConnection, WatershedASGI


def application(**options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(WatershedASGI, **options)
    return app


def told(port: int, path: str, **changes: Any) -> Any:
    """The value that the endpoint at `path` sends as JSON before it closes with 1000."""
    with Peer(port) as peer:
        peer.open(path, **changes)
        value = json.loads(peer.text())
        assert peer.close() == (1000, "")
        return value


def refused(port: int, path: str, **changes: Any) -> Answer:
    """The HTTP response to a request that is not accepted."""
    with Peer(port) as peer:
        peer.send(head(path, **changes))
        return peer.refusal()


async def tell(conn: AsyncConnection, value: Any) -> None:
    await conn.send(json.dumps(value))
