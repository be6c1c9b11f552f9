"""WebSocket routes for Flask; their handlers get the accepted connection.

A request runs through Flask like any other: ``before_request``, the view, ``after_request``, the session cookie,
teardown. Only then is the 101 sent, with the response's header fields, and the handler called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, Unpack

from flask import Blueprint, Flask, Response, current_app, g, got_request_exception, request
from flask.globals import request_ctx
from flask.sansio.scaffold import Scaffold
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from .connection.aio.api import AsyncConnection, AsyncHandler, is_coroutine_function
from .connection.threads.connection import ThreadConnection
from .core.handshake.headers import RESPONSE_FIELDS
from .errors import ConnectionClosed, HandshakeError
from .http.refusals import log_environ_refused
from .options import ConnectionOptions, Options, check_connection_options
from .wsgi.middleware import WatershedWSGI, asks_for_upgrade
from .wsgi.responses import Rejection
from .wsgi.upgrade import WSGIUpgrade

__all__ = ["Shed", "UpgradeResponse"]

Handler: TypeAlias = Callable[[ThreadConnection], object] | AsyncHandler
_F = TypeVar("_F", bound=Callable[..., Any])

# Flask gives every response a Content-Type.
_DROPPED = RESPONSE_FIELDS | {"content-type"}
# Responses that a view may return. They are WSGI applications, hence callable, but not handlers.
_ANSWERS = (WerkzeugResponse, HTTPException, Rejection)


class Shed:
    """WebSocket routes of a Flask application or a blueprint.

    Args:
        app: the application or blueprint; None to call :meth:`init_app` later.
        options: see :class:`~watershed_mw.Options`; the first Shed of an application sets them.

    Raises:
        TypeError, ValueError: an option is unknown or has an invalid value.
    """

    def __init__(self, app: Flask | Blueprint | None = None, **options: Unpack[Options]) -> None:
        self._options = options
        self._place: Scaffold | None = None
        self._waiting: list[Callable[[Scaffold], object]] = []
        self._views: list[tuple[Any, Callable[..., Any]]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask | Blueprint) -> None:
        """Add the routes to an application or blueprint, and wrap the application in ``WatershedWSGI``."""
        self._place = app
        if isinstance(app, Blueprint):
            app.record(lambda state: self._wrap(state.app))
        else:
            self._wrap(app)
        for add in self._waiting:
            add(app)
        self._waiting.clear()

    def _wrap(self, app: Any) -> None:
        if not isinstance(app.wsgi_app, WatershedWSGI):
            app.wsgi_app = WatershedWSGI(app.wsgi_app, **self._options)

    def route(
        self,
        rule: str,
        *,
        accept: bool = True,
        protocols: Sequence[str] | None = None,
        endpoint: str | None = None,
        connection_options: ConnectionOptions | None = None,
        **rule_options: Any,
    ) -> Callable[[_F], _F]:
        """Call the decorated function as ``handler(connection, **parameters)`` for each upgrade of ``rule``.

        A function blocks its worker thread until it returns, unless it calls ``connection.run_in_background()``; a
        coroutine function runs on the background event loop and gets an :class:`~watershed_mw.AsyncConnection`. A
        connection that is still open when the function returns is closed. ``connection.request`` is Flask's request.

        With ``accept=False`` the function decides: it is an ordinary view, called as ``view(**parameters)``, and
        returns either a response, or a handler for the connection, which is then accepted.

        Args:
            rule: path of the route, with parameters in Flask's syntax.
            accept: whether to accept before the function is called.
            protocols: supported subprotocols; the Shed's by default.
            endpoint: name for ``url_for``; the function's name by default.
            connection_options: options of these connections, such as ``{"ping_interval": 5.0}``.
            rule_options: as in ``Flask.route``.

        Raises:
            TypeError, ValueError: an option is not a connection option, or has an invalid value; raised here, not on
                the first connection.
        """
        check_connection_options(connection_options or {}, "a connection")

        def decorate(function: _F) -> _F:
            view = self._view(function, accept, protocols, connection_options)

            def add(place: Scaffold) -> None:
                place.add_url_rule(rule, endpoint, view, websocket=True, **rule_options)

            if self._place is None:
                self._waiting.append(add)
            else:
                add(self._place)
            return function

        return decorate

    def _view(
        self,
        function: Callable[..., Any],
        accept: bool,
        protocols: Sequence[str] | None,
        connection_options: ConnectionOptions | None,
    ) -> Callable[..., Any]:
        """The view for Flask; the same arguments give the same view, as several rules may share an endpoint."""
        settings = (function, accept, protocols, connection_options)
        for known, earlier in self._views:
            if known == settings:
                return earlier

        @functools.wraps(function)
        def view(**parameters: Any) -> Any:
            if accept:
                handler: Any = functools.partial(function, **parameters) if parameters else function
            else:
                handler = current_app.ensure_sync(function)(**parameters)
                if not callable(handler) or isinstance(handler, _ANSWERS):
                    return handler
            return UpgradeResponse(handler, protocols, **(connection_options or {}))

        self._views.append((settings, view))
        return view


class UpgradeResponse(Response):
    """A response that accepts the upgrade: its header fields go into the 101, then the handler is called.

    Args:
        handler: called with the connection; a coroutine function runs on the background event loop.
        protocols: supported subprotocols.
        options: options of this connection.

    Raises:
        TypeError, ValueError: an option is not a connection option, or has an invalid value.
    """

    def __init__(
        self, handler: Handler, protocols: Sequence[str] | None = None, **options: Unpack[ConnectionOptions]
    ) -> None:
        if options:
            check_connection_options(options, "UpgradeResponse()")
        super().__init__(status=101)
        self._handler = handler
        self._protocols = protocols
        self._connection_options = options

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Send the 101 once Flask has finished the request."""
        upgrade = environ.get("watershed")
        if not isinstance(upgrade, WSGIUpgrade):
            if not asks_for_upgrade(environ):  # Flask checks only Connection and Upgrade
                error = HandshakeError(
                    f"expected GET over HTTP/1.1, got {environ['REQUEST_METHOD']} over {environ.get('SERVER_PROTOCOL')}"
                )
                log_environ_refused(environ, error)
                return BadRequest(str(error))(environ, start_response)
            raise RuntimeError(
                "the application is not wrapped in WatershedWSGI: create Shed(app), or wrap app.wsgi_app"
            )
        fields = [pair for pair in self.get_wsgi_headers(environ) if pair[0].lower() not in _DROPPED]
        return self._after_flask(upgrade, fields, _Context())

    def _after_flask(self, upgrade: WSGIUpgrade, fields: list[tuple[str, str]], context: _Context) -> Iterator[bytes]:
        # A generator: its first step runs after Flask has torn down the request.
        connection = upgrade.accept(self._protocols, fields, **self._connection_options)
        connection.request = context.request
        handler: Any = self._handler
        if is_coroutine_function(handler):
            connection.run_in_background(context.runner(handler))
            return
        with context.of_handler(connection, log=not context.propagates):
            _no_coroutine(handler(connection), handler)
        if context.error is not None:
            upgrade.end(code=1011)
            if context.propagates:
                raise context.error
        yield from ()


def _no_coroutine(result: Any, handler: Any) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"expected a plain function or a coroutine function, got {handler!r}, which returned a coroutine: make it "
            "async def, and await there"
        )


class _Context:
    """A copy of the request context, for a handler that starts after Flask has torn down the original.

    It lives as long as the connection, so its size adds to every idle connection.

    Attributes:
        request: Flask's request.
        propagates: whether a handler's exceptions propagate to the caller, as a view's do in tests.
        error: the exception that the handler raised.
    """

    __slots__ = ("_app", "_connection", "_context", "_globals", "_handler", "_log", "error", "propagates", "request")

    def __init__(self) -> None:
        self._context = request_ctx.copy()
        self._globals = dict(vars(g._get_current_object()))
        self._app: Any = self._context.app
        self._connection: ThreadConnection | AsyncConnection | None = None
        self._handler: AsyncHandler | None = None
        self._log = True
        self.request = request._get_current_object()  # type: ignore[attr-defined]
        asked = self._app.config["PROPAGATE_EXCEPTIONS"]
        self.propagates = self._app.testing if asked is None else asked
        self.error: Exception | None = None

    def runner(self, handler: AsyncHandler) -> AsyncHandler:
        """Wrap a coroutine function, so that it runs in this context."""
        self._handler = handler
        return self._run

    async def _run(self, connection: AsyncConnection) -> None:
        with self.of_handler(connection, log=True):
            assert self._handler is not None  # as runner() has been called
            await self._handler(connection)
        if self.error is not None:
            connection.end(code=1011)

    def of_handler(self, connection: ThreadConnection | AsyncConnection, *, log: bool) -> _Context:
        """The context manager for a connection's handler; it stores and reports the handler's exception.

        A ``ConnectionClosed`` of the handler's own connection does not count as a failure.
        """
        self._connection = connection
        self._log = log
        return self

    def __enter__(self) -> None:
        self._context.__enter__()
        # Handlers also see the values that before_request has stored.
        vars(g._get_current_object()).update(self._globals)
        self._globals.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            self._context.__exit__(kind, error, traceback)
        except Exception as another:  # noqa: BLE001  # an error in a teardown function counts as the handler's
            error = another
        if not isinstance(error, Exception):
            return False
        # If this connection is still open, the error is about another connection, such as one to a database.
        if not isinstance(error, ConnectionClosed) or (self._connection is not None and self._connection.sending):
            self.error = error
            self._report(error)
        return True

    def _report(self, error: Exception) -> None:
        """Report an exception as Flask does for views."""
        with self._app.app_context():
            got_request_exception.send(self._app, _async_wrapper=self._app.ensure_sync, exception=error)
            if self._log:
                self._app.logger.error("Exception on %s [WebSocket]", self.request.path, exc_info=error)
