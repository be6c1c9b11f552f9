"""Proxy mode: WebSocket connections forwarded to another server, raw wherever that can be.

The opening handshake goes end to end: the upstream chooses subprotocol and extensions, and its refusal is the client's.
Then bytes are relayed between two sockets, unparsed, on the process's event loop. ::

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
from .config import Mode, Plan
from .target import Choice, Fields, Upstream, UpstreamLike, parse_upstream
from .wsgi import WSGIProxy

__all__ = ["WebSocketProxy"]

# As many as the middlewares allow: what one host's ports and half a GiB of memory allow.
_MAX_CONNECTIONS: Final = 2**16
_MODES: Final = ("auto", "raw", "messages")


class WebSocketProxy:
    """An ASGI application and a WSGI application that forwards WebSocket connections.

    It is mounted like any route, or called by the application's own handler once that has let the request pass. Plain
    HTTP requests get a 426. To a server that looks at an application's signature it is an ASGI application.

    Args:
        upstream: URL (``ws://``, ``wss://``, or ``unix:/path/of/socket``), :class:`Upstream`, or a callable, which may
            be a coroutine function: it is given a :class:`ProxyRequest`, and returns one of these, or refuses by None
            (404) or by raising ``HandshakeError(message, status=403)``. Paths with dot segments are refused (400).
        keep_host: True, the default, for the client's own Host, by which the upstream can judge an Origin; False for
            the upstream's.
        strip_prefix: True, the default, to leave out of the path what the proxy is mounted under; False to keep it; or
            a prefix to leave out.
        headers: further header fields for the upstream, in place of the client's of the same name.
        drop_headers: names of fields that do not go to the upstream, such as ``("cookie",)`` or
            ``("x-forwarded-for", "forwarded")``.
        ssl: context for TLS with the upstream; one that verifies certificates unless given.
        mode: ``"auto"``, the default, for raw bytes where the server gives its socket and messages elsewhere; ``"raw"``
            to refuse (501) elsewhere, ``"messages"`` to relay messages everywhere. Under WSGI there is always a
            socket, and bytes are relayed.
        open_timeout: seconds that the upstream has to answer, and that the body of its refusal may stand still on its
            way to the client; default 10.
        close_timeout: seconds that both sides have to end when the server stops, and the second side when the first has
            ended; default 10.
        idle_timeout: seconds without a byte after which a connection is ended with 1001; default 3,600, None for no
            limit.
        max_duration: seconds that a connection may last; default None, for no limit.
        max_bytes: bytes that may pass in both directions together; default None, for no limit.
        max_message_size: bytes of one message where messages are relayed; default 16 MiB, None for no limit. Raw bytes
            have no such limit.
        max_connections: connections at once, one more gets a 503; default 65,536, None for no limit.
        origins: origins allowed besides the request's own host, see :class:`~watershed_mw.Options`; the business of the
            application's own middleware where there is one.
        shutdown_code: close code for both sides when the server stops; default 1012 under uvicorn, 1001 under WSGI.

    Raises:
        ValueError, TypeError: an argument cannot be used.
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
        options: Options = {"origins": origins, "max_connections": None, "shutdown_code": shutdown_code}
        both: ConnectionOptions = {"max_message_size": max_message_size, "close_timeout": close_timeout}
        plan = Plan(
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
            options=options,
            both=both,
            shed=Watershed(**both),
            connection_limit=ConnectionLimit(max_connections),
        )
        self._asgi = ASGIProxy(plan)
        self._wsgi = WSGIProxy(plan)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Serve ``(scope, receive, send)``, which may be given by name, or ``(environ, start_response)``."""
        if len(args) == 3 or named:  # daphne gives them by name
            return self._asgi(*args, **named)
        if len(args) == 2:
            return self._wsgi(*args)
        if len(args) == 1:
            # As some servers call what inspect does not know as an ASGI 3 application: it can be told from 3.12 on.
            return _Double(self._asgi, args[0])
        raise TypeError(f"expected (scope, receive, send) or (environ, start_response), got {len(args)} arguments")


mark_coroutine_function(WebSocketProxy.__call__)


class _Double:
    """An ASGI 2 application's instance for one scope."""

    def __init__(self, app: ASGIProxy, scope: Any) -> None:
        self._app = app
        self._scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await self._app(self._scope, receive, send)


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"expected {name} above 0, got {value!r}")
