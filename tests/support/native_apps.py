"""Applications that use a native connection from the scope instead of ASGI messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from tests.support.asgi import ASGIApp, Receive, Scope, Send
from watershed_mw import AsyncConnection, WatershedASGI
from watershed_mw.options import ConnectionOptions

Handler: TypeAlias = Callable[[AsyncConnection], Awaitable[None]]
NATIVE = pytest.mark.parametrize("native", [False, True], ids=["messages", "native"])


def accepting(handler: Handler, options: ConnectionOptions | None = None, **middleware: Any) -> ASGIApp:
    """The middleware around an application that accepts every upgrade and calls `handler` with the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(await scope["watershed"].accept(**(options or {})))

    return WatershedASGI(app, **middleware)


async def echoing(connection: AsyncConnection) -> None:
    async for message in connection:
        await connection.send(message)
