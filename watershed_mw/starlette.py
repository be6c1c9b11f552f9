"""A WebSocket route for Starlette; its handler gets the accepted connection.

The response passes through the middleware in front of the route (sessions, authentication, CORS), and the connection's
``request`` is Starlette's ``HTTPConnection``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Unpack, overload

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute, get_name
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from .asgi.middleware import WatershedASGI
from .asgi.policy import UpgradePolicy
from .asgi.upgrade import ASGIUpgrade
from .connection.aio.api import AsyncConnection, is_coroutine_function
from .options import Options

__all__ = ["WatershedRoute", "upgrade_of"]


def upgrade_of(websocket: WebSocket) -> ASGIUpgrade:
    """The upgrade object of a request; it responds through Starlette's ``websocket``.

    Raises:
        RuntimeError: no :class:`~watershed_mw.WatershedASGI` wraps this handler.
    """
    upgrade = websocket.scope.get("watershed")
    if not isinstance(upgrade, ASGIUpgrade):
        raise RuntimeError(
            "expected WatershedASGI in front of this handler, got none: wrap the application in it, or call "
            "app.add_middleware(WatershedASGI)"
        )
    return upgrade.through(websocket.receive, websocket.send, HTTPConnection(websocket.scope))


class WatershedRoute(WebSocketRoute):
    """A route that accepts and calls ``endpoint(connection)``; the connection is closed when the endpoint returns.

    ``connection.request`` is the ``HTTPConnection``: path parameters, cookies, session, user, ``app.state``. With
    ``accept=False`` the endpoint decides: it is called as ``endpoint(request, upgrade)`` and awaits
    ``upgrade.accept(...)`` or ``upgrade.reject(...)``.

    Args:
        path: path of the route, with parameters in Starlette's syntax.
        endpoint: coroutine function.
        accept: whether to accept before the endpoint is called.
        name: name for ``url_for``; the endpoint's name by default.
        middleware: as in Starlette's routes.
        options: see :class:`~watershed_mw.Options`, such as ``protocols``; they override those of a ``WatershedASGI``
            in front. Without one, the route validates the request itself, with the same safe defaults.

    Raises:
        TypeError, ValueError: an option is unknown or invalid, or the endpoint is not a coroutine function.
    """

    @overload
    def __init__(
        self,
        path: str,
        endpoint: Callable[[AsyncConnection], Awaitable[object]],
        *,
        accept: Literal[True] = True,
        name: str | None = None,
        middleware: Sequence[Middleware] | None = None,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self,
        path: str,
        endpoint: Callable[[HTTPConnection, ASGIUpgrade], Awaitable[object]],
        *,
        accept: Literal[False],
        name: str | None = None,
        middleware: Sequence[Middleware] | None = None,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Awaitable[object]],
        *,
        accept: bool = True,
        name: str | None = None,
        middleware: Sequence[Middleware] | None = None,
        **options: Unpack[Options],
    ) -> None:
        # With accept=False it may be a plain function that returns an awaitable, so its result is checked instead.
        if accept and inspect.isroutine(endpoint) and not is_coroutine_function(endpoint):
            raise _no_coroutine(endpoint)
        app = _Endpoint(endpoint, accept, options)
        super().__init__(path, app, name=get_name(endpoint) if name is None else name, middleware=middleware)
        self.endpoint = endpoint


class _Endpoint:
    """The route's ASGI application."""

    def __init__(self, endpoint: Callable[..., Awaitable[object]], accept: bool, options: Options) -> None:
        self._endpoint = endpoint
        self._accept = accept
        self._options = options
        # This route's middleware for each middleware in front, whose options it inherits; usually there is only one.
        # The one for None is made now, so that an invalid option fails at startup.
        self._middlewares: dict[UpgradePolicy | None, WatershedASGI] = {None: WatershedASGI(self._serve, **options)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = scope.get("watershed")
        if not isinstance(upgrade, ASGIUpgrade):
            await self._middlewares[None](scope, receive, send)
        elif self._options:
            await self._middleware_behind(upgrade.policy)(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    def _middleware_behind(self, front: UpgradePolicy) -> WatershedASGI:
        middleware = self._middlewares.get(front)
        if middleware is None:
            options: Any = {**front.options, **self._options}
            middleware = self._middlewares[front] = WatershedASGI(self._serve, **options)
        return middleware

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: HTTPConnection = HTTPConnection(scope)
        upgrade = scope["watershed"].through(receive, send, request)
        if self._accept:
            await self._endpoint(await upgrade.accept())
            return
        decision: Any = self._endpoint(request, upgrade)
        if not inspect.isawaitable(decision):
            raise _no_coroutine(self._endpoint)  # no response has been sent
        await decision


def _no_coroutine(endpoint: Any) -> TypeError:
    return TypeError(
        f"expected a coroutine function (async def) as the endpoint of a WatershedRoute, got {endpoint!r}: run "
        "blocking code with starlette.concurrency.run_in_threadpool()"
    )
