"""The lower bound of opening handshakes under uvicorn: a class that runs the application and then does nothing.

It reads the head, creates the scope and the application's task, and answers with a 101. It checks and negotiates
nothing and has no connection, so its cost is that of uvicorn, the event loop and the application.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from watershed_mw.uvicorn.request import make_scope, read_request

from .raw import answer


class BareProtocol(asyncio.Protocol):
    """The class for ``--ws``."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._gone = asyncio.get_running_loop().create_future()
        self._told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server_state.connections.add(self)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._head = data
        request, fields, _ = read_request(self._transport, data)
        scope = make_scope(self._config, self._transport, request, fields, [], self._app_state.copy(), None)
        task = asyncio.ensure_future(self._config.loaded_app(scope, self._receive, self._send))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._gone.set_result(None)

    def shutdown(self) -> None:
        self._transport.close()

    async def _receive(self) -> dict[str, Any]:
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        await self._gone
        return {"type": "websocket.disconnect", "code": 1006}

    async def _send(self, _message: dict[str, Any]) -> None:
        self._transport.write(answer(self._head))
