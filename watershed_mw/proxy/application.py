"""Proxy mode: forwards WebSocket connections to another server, as raw bytes where possible.

The opening handshake is end to end: the upstream chooses subprotocol and extensions, and the client gets its refusals.
After it, an event loop relays bytes between the two sockets without parsing messages. ::

    app.mount("/notebooks", WebSocketProxy("ws://127.0.0.1:8888"))         # Starlette, FastAPI
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/notebooks": WebSocketProxy("unix:/run/notebook.sock")})
"""

from __future__ import annotations

import ssl as tls
from collections.abc import Iterable
from typing import Any, Final

import httpx

from ..connection.awaitables import mark_coroutine_function
from ..connection.limit import ConnectionLimit
from ..core.handshake.headers import check_outgoing
from ..options import ConnectionOptions, Options
from ..watershed import Watershed
from .asgi import ASGIProxy
from .config import Config, Mode
from .target import Choice, Fields, Upstream, UpstreamLike, parse_upstream
from .wsgi import WSGIProxy

__all__ = ["WebSocketProxy"]

# As the middlewares' default: a host has only this many ports, and the connections fit into half a GiB.
_MAX_CONNECTIONS: Final = 2**16
_MODES: Final = ("auto", "raw", "messages")


class WebSocketProxy:
    """An ASGI and WSGI application that forwards WebSocket connections.

    Mount it like any route, or call it from a handler that has checked the request. Plain HTTP requests get a 426.
    Servers that inspect an application's signature take it for an ASGI application.

    Args:
        upstream: URL (``ws://``, ``wss://``, or ``unix:/path/of/socket``), :class:`Upstream`, or a function (``def`` or
            ``async def``) that takes a :class:`ProxyRequest` and returns one of these, or refuses: with None (404), or
            by raising ``HandshakeError(message, status=403)``. Paths with dot segments are refused (400).
        keep_host: True, the default, to forward the client's Host, which the upstream needs to check an Origin; False
            to send the upstream's.
        strip_prefix: True, the default, to strip the mount prefix from the path; False to keep it; or another prefix to
            strip.
        headers: further header fields for the upstream, which replace the client's of the same name.
        drop_headers: names of fields that are not forwarded, such as ``("cookie",)`` or
            ``("x-forwarded-for", "forwarded")``.
        ssl: context for TLS with the upstream; by default one that verifies certificates.
        mode: ``"auto"``, the default, relays raw bytes where the server hands over its socket, and messages elsewhere;
            ``"raw"`` refuses (501) elsewhere; ``"messages"`` always relays messages. WSGI servers always hand over
            their socket, and bytes are relayed.
        open_timeout: seconds to wait for the upstream's response head, and for the body of its refusal to make progress
            on its way to the client; default 10.
        close_timeout: seconds for both sides to close when the server stops, and for one side to close after the other;
            default 10.
        idle_timeout: seconds without a byte after which a connection is closed with 1001; default 3,600, None for no
            limit.
        max_duration: maximum seconds of a connection; default None, for no limit.
        max_bytes: maximum bytes in both directions together; default None, for no limit.
        max_message_size: maximum bytes of one message where messages are relayed; default 16 MiB, None for no limit.
            Does not apply to raw bytes.
        max_connections: maximum concurrent connections, beyond which requests get a 503; default 65,536, None for no
            limit.
        origins: allowed origins besides the request's own host, see :class:`~watershed_mw.Options`; ignored where the
            application has its own middleware, which checks them.
        shutdown_code: close code for both sides when the server stops; default 1012 under uvicorn, 1001 under WSGI.
        install_signal_handlers: as for :class:`~watershed_mw.WatershedWSGI`.

    Raises:
        ValueError, TypeError: an argument is invalid.
    """

    def __init__(
        self,
        upstream: UpstreamLike | Choice,
        *,
        keep_host: bool = True,
        strip_prefix: bool | str = True,
        headers: Fields = (),
        drop_headers: Iterable[str] = (),
        ssl: tls.SSLContext | None = None,
        mode: Mode = "auto",
        open_timeout: float = 10.0,
        close_timeout: float = 10.0,
        idle_timeout: float | None = 3600.0,
        max_duration: float | None = None,
        max_bytes: int | None = None,
        max_message_size: int | None = 16 * 2**20,
        max_connections: int | None = _MAX_CONNECTIONS,
        origins: str | list[str] | None = None,
        shutdown_code: int | None = 0,
        install_signal_handlers: bool = True,
    ) -> None:
        if isinstance(upstream, str):
            parse_upstream(upstream)
        elif not isinstance(upstream, Upstream) and not callable(upstream):
            raise TypeError(f"expected upstream as a URL, Upstream(...) or a callable, got {type(upstream).__name__}")
        if mode not in _MODES:
            raise ValueError(f"expected mode to be one of {', '.join(_MODES)}, got {mode!r}")
        if ssl is not None and not isinstance(ssl, tls.SSLContext):
            raise TypeError(f"expected ssl to be an ssl.SSLContext, got {type(ssl).__name__}")
        _check_positive(open_timeout=open_timeout, close_timeout=close_timeout)
        optional = {"idle_timeout": idle_timeout, "max_duration": max_duration, "max_bytes": max_bytes}
        _check_positive(**{name: value for name, value in optional.items() if value is not None})
        extra = httpx.Headers(headers)
        check_outgoing(extra.multi_items())
        middleware_options: Options = {
            "origins": origins,
            "max_connections": None,
            "shutdown_code": shutdown_code,
            "install_signal_handlers": install_signal_handlers,
        }
        connection_options: ConnectionOptions = {"max_message_size": max_message_size, "close_timeout": close_timeout}
        config = Config(
            upstream=upstream,
            keep_host=keep_host,
            strip_prefix=strip_prefix,
            headers=extra,
            drop_headers=frozenset(name.lower() for name in drop_headers),
            ssl=ssl,
            mode=mode,
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            idle_timeout=idle_timeout,
            max_duration=max_duration,
            max_bytes=max_bytes,
            middleware_options=middleware_options,
            connection_options=connection_options,
            client=Watershed(**connection_options),
            connection_limit=ConnectionLimit(max_connections),
        )
        self._asgi = ASGIProxy(config)
        self._wsgi = WSGIProxy(config)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Serve an ASGI call, ``(scope, receive, send)``, or a WSGI call, ``(environ, start_response)``."""
        if len(args) == 3 or named:  # daphne passes them by keyword
            return self._asgi(*args, **named)
        if len(args) == 2:
            return self._wsgi(*args)
        if len(args) == 1:
            # An ASGI 2 call: before Python 3.12, some servers take a callable object for an ASGI 2 application.
            return _ASGI2(self._asgi, args[0])
        raise TypeError(f"expected (scope, receive, send) or (environ, start_response), got {len(args)} arguments")


mark_coroutine_function(WebSocketProxy.__call__)


class _ASGI2:
    """The ASGI 2 instance for one scope."""

    def __init__(self, app: ASGIProxy, scope: Any) -> None:
        self._app = app
        self._scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await self._app(self._scope, receive, send)


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"expected {name} above 0, got {value!r}")
