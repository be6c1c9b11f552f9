"""Clients for URLs: ``connect("wss://...")``, for asyncio and for threads.

httpx carries out the opening handshake: redirects, proxies, the environment, cookies, authentication, TLS. Afterwards
the connection has the event loop's own transport, or the bare socket, with no HTTP layer around it.

::

    async with connect("wss://example.org/chat") as conn:      with connect("wss://example.org/chat") as conn:
        await conn.send("hello")                                   conn.send("hello")
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as tls
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeAlias, Unpack, cast

try:
    import httpx
except ImportError as error:
    raise ImportError("watershed_mw.client needs httpx: pip install 'watershed-mw[client]'") from error

from ..connection.aio.api import AsyncConnection
from ..connection.threads.connection import ThreadConnection
from ..options import ClientOptions, check_options
from ..watershed import Watershed
from .aio.opening import open_connection
from .handshake import Arguments, Offer, RequestOptions, shown
from .retry import Attempts, Backoff, Retry, worth_retrying
from .route import ProxyLike, Route, as_proxy
from .threads.opening import open_connection as open_blocking

__all__ = ["Connect", "connect"]

Fields: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]]"

_MAX_REDIRECTS: Final = 10


def connect(
    url: str | httpx.URL,
    *,
    protocols: Sequence[str] = (),
    headers: Fields = (),
    origin: str | None = None,
    auth: Any = None,
    cookies: Any = None,
    http: httpx.Client | httpx.AsyncClient | None = None,
    ssl: tls.SSLContext | None = None,
    proxy: ProxyLike | bool | None = True,
    unix: str | os.PathLike[str] | None = None,
    open_timeout: float | None = 10.0,
    max_redirects: int = _MAX_REDIRECTS,
    cross_origin_headers: Iterable[str] = (),
    retry: Retry = worth_retrying,
    backoff: Backoff | None = None,
    **options: Unpack[ClientOptions],
) -> Connect:
    """A connection to ``url``, opened when it is entered (``async with``, ``with``), awaited or iterated over.

    Args:
        url: ``ws://`` or ``wss://`` URL (``http://`` and ``https://`` mean the same); credentials in it become an
            Authorization header.
        protocols: subprotocols to offer, in order of preference.
        headers: further header fields of the request.
        origin: Origin header, as browsers send one.
        auth: as in httpx: (name, password), or an ``httpx.Auth``.
        cookies: as in httpx; those without a domain are for the origin of ``url``, as a Cookie header is.
        http: an ``httpx.Client`` for ``with``, or an ``httpx.AsyncClient`` for ``async with``, that sends the request
            with its own configuration; it replaces ``auth``, ``cookies``, ``ssl``, ``proxy``, ``unix`` and
            ``max_redirects``.
        ssl: context for TLS with the server; default httpx's, which verifies certificates.
        proxy: URL of an HTTP or SOCKS5 proxy, or an ``httpx.Proxy``, which may have its own TLS context; True, the
            default, for the proxy that the environment names (HTTPS_PROXY, ALL_PROXY, NO_PROXY ...), None or False
            for none.
        unix: path of a Unix socket to connect to instead of the URL's host.
        open_timeout: seconds for the whole opening handshake; default 10, None for no limit. For threads name
            resolution is not included, and with ``http`` it limits each step, as httpx's own timeouts do.
        max_redirects: maximum redirects to follow; default 10. A redirect to another origin carries the handshake's
            fields, Origin, User-Agent and Accept-Language, but no other field of ``headers``. A redirect from TLS to
            plain text is refused.
        cross_origin_headers: names of fields of ``headers`` that a redirect to another origin carries as well, such
            as ``["X-Request-Id"]``; never Authorization and Cookie.
        retry: decides for the iterators whether to reconnect, given the exception of a failed attempt, or the
            ``ConnectionClosed`` of a connection that ended; default :func:`worth_retrying`. A 401, 403 or 404 ends the
            iteration without asking it.
        backoff: how long the iterators wait; default ``Backoff()``: a random time up to 1, 2, 4 ... 60 seconds.
        options: options of the connection, such as ``compression=False``; see :class:`~watershed_mw.Options`. Options
            of a server (``origins``, ``max_connections``, ``shutdown_code``) are refused.

    Returns:
        an object to enter (``async with``, ``with``), await (``conn = await connect(...)``), open
        (``conn = connect(...).open()``), or iterate over (``async for``, ``for``), for one connection after the other.

    Raises:
        ValueError, TypeError: an argument is invalid; raised immediately, all other errors on opening.
        HandshakeError: the server refused, with ``status``, ``headers``, ``body`` and ``response``; status 502 if the
            answer is not HTTP.
        TimeoutError: the handshake took longer than ``open_timeout``.
        UnsupportedServerError: ``wss://`` through a proxy that is itself reached by TLS, for threads.
        OSError: the server cannot be reached (``ConnectionRefusedError``, ``socket.gaierror``, ``ssl.SSLError`` ...).
    """
    check_options(options, _OPTIONS, "connect()")
    request_options = RequestOptions.of(
        url, headers, origin, None if http is not None else cookies, cross_origin_headers
    )
    if http is not None and not isinstance(http, (httpx.Client, httpx.AsyncClient)):
        raise TypeError(f"expected http to be an httpx.Client or httpx.AsyncClient, got {type(http).__name__}")
    if ssl is not None and not isinstance(ssl, tls.SSLContext):
        raise TypeError(f"expected ssl to be an ssl.SSLContext, got {type(ssl).__name__}")
    if unix is not None and not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"expected no unix= on a platform without Unix sockets, got {os.fspath(unix)!r}")
    arguments = Arguments(
        request_options=request_options,
        shed=Watershed(**options, protocols=protocols),
        route=Route(
            context=ssl,
            unix=None if unix is None else os.fspath(unix),
            proxy=None if proxy is None or isinstance(proxy, bool) else as_proxy(proxy),
            environment=proxy is True,
        ),
        client={
            "auth": auth,
            "cookies": request_options.cookies,
            "follow_redirects": True,
            "max_redirects": max_redirects,
            "timeout": None,  # open_timeout is for the whole handshake
            "trust_env": False,  # the route reads the environment
        },
        http=http,
        open_timeout=open_timeout,
    )
    return Connect(arguments, retry, backoff)


# All arguments of connect(), for the error about a misspelt one.
_OPTIONS: Final = frozenset(connect.__kwdefaults__ or ()) | ClientOptions.__optional_keys__


class Connect:
    """The result of :func:`connect`, for both flavours; reusable.

    Several tasks or threads may await it, open it or iterate over it at the same time. Only one ``with`` or ``async
    with`` block may use it at a time, as leaving the block closes the connection that entering it opened.
    """

    def __init__(self, arguments: Arguments, retry: Retry, backoff: Backoff | None) -> None:
        self._arguments = arguments
        self._retry = retry
        self._backoff = backoff
        self._offer = Offer()
        self._entered: AsyncConnection | ThreadConnection | None = None
        self._in_use = threading.Lock()

    def _enter(self) -> None:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("expected one `with` or `async with` at a time, got a second: call connect() for each")

    def _leave(self) -> AsyncConnection | ThreadConnection | None:
        connection, self._entered = self._entered, None
        self._in_use.release()
        return connection

    def _attempts(self) -> Attempts:
        return Attempts(self._backoff or Backoff(), self._retry, shown(self._arguments.request_options.url))

    # --- asyncio ---------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, AsyncConnection]:
        return open_connection(self._arguments, self._offer).__await__()

    async def __aenter__(self) -> AsyncConnection:
        self._enter()
        try:
            connection = await self
        except BaseException:
            self._in_use.release()
            raise
        self._entered = connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await cast(AsyncConnection, self._leave()).__aexit__(kind, error, traceback)

    async def __aiter__(self) -> AsyncIterator[AsyncConnection]:
        """Yield one connection after another; each is closed before the next one, or when the loop ends.

        The logger ``watershed_mw.client`` gets a line for each further attempt, with its cause and the delay before it,
        and for its success. An exception in the body ends the loop: around ``receive()`` the body needs ``except
        ConnectionClosed: continue`` to reconnect.
        """
        attempts = self._attempts()
        for pause in attempts:
            if pause:
                await asyncio.sleep(pause)
            try:
                connection = await self
            except Exception as error:
                if not attempts.failed(error):
                    raise
                continue
            attempts.opened()
            try:
                yield connection
            finally:
                await connection.end()
            attempts.ended(connection.close_code, connection.close_reason, connection.duration)

    # --- threads ---------------------------------------------------------------------------------------------

    def open(self) -> ThreadConnection:
        """Open a connection for threads.

        Raises:
            RuntimeError: an event loop runs in this thread, which must not block.
            Exception: as documented at :func:`connect`.
        """
        return open_blocking(self._arguments, self._offer)

    def __enter__(self) -> ThreadConnection:
        self._enter()
        try:
            connection = self.open()
        except BaseException:
            self._in_use.release()
            raise
        self._entered = connection
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cast(ThreadConnection, self._leave()).__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[ThreadConnection]:
        """Yield one connection after another; each is closed before the next one, or when the loop ends.

        Logging and ``ConnectionClosed`` in the body work as in :meth:`__aiter__`.
        """
        attempts = self._attempts()
        for pause in attempts:
            if pause:
                time.sleep(pause)
            try:
                connection = self.open()
            except Exception as error:
                if not attempts.failed(error):
                    raise
                continue
            attempts.opened()
            try:
                yield connection
            finally:
                connection.end()
            attempts.ended(connection.close_code, connection.close_reason, connection.duration)
