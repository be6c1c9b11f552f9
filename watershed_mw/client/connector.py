"""Clients for URLs: ``connect("wss://...")``, for asyncio and for threads.

The opening handshake is httpx's: redirects, proxies, the environment, cookies, authentication, TLS. Afterwards the
connection has the event loop's own transport, or the bare socket, and HTTP is gone.

::

    async with connect("wss://example.org/chat") as conn:      with connect("wss://example.org/chat") as conn:
        await conn.send("hello")                                   conn.send("hello")
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl as tls
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias, Unpack, cast

try:
    import httpx
except ImportError as error:
    raise ImportError("watershed_mw.client needs httpx: pip install 'watershed-mw[client]'") from error

from ..connection.aio.api import AsyncConnection
from ..connection.threads.connection import ThreadConnection
from ..core.handshake.extensions import with_plain_offer
from ..core.handshake.headers import REQUEST_FIELDS, check_outgoing
from ..errors import HandshakeError
from ..options import ClientOptions, check_options
from ..watershed import Watershed
from .handshake import AsyncioOpening, Journey, ThreadOpening, as_http_url, read_refusal, read_refusal_blocking, shown
from .retry import Attempts, Backoff, Retry, worth_retrying
from .route import ProxyLike, Route, as_proxy
from .streams import AsyncioStream

__all__ = ["Backoff", "Connect", "Retry", "connect", "worth_retrying"]

Fields: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]]"

_logger = logging.getLogger("watershed_mw.client")

_MAX_REDIRECTS: Final = 10
_NEVER_FOLLOW = frozenset({"authorization", "cookie", "proxy-authorization"})
_PLAIN: Final = "%s has refused the opening handshake with 400; asking once more, with a plain offer of compression"


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
    """A connection to ``url``, opened when it is entered (``async with``, ``with``), awaited, or iterated over.

    Args:
        url: ``ws://`` or ``wss://`` URL (``http://`` and ``https://`` mean the same); credentials in it become an
            Authorization header.
        protocols: subprotocols to offer, the most wanted first.
        headers: further header fields of the request.
        origin: Origin header, as browsers send one.
        auth: as in httpx: (name, password), or an ``httpx.Auth``.
        cookies: as in httpx; those without a domain are for the origin of ``url``, as a Cookie header is.
        http: an ``httpx.Client`` for ``with``, an ``httpx.AsyncClient`` for ``async with``, that sends the request
            with all that it is configured with; ``auth``, ``cookies``, ``ssl``, ``proxy``, ``unix`` and
            ``max_redirects`` are its own business then.
        ssl: context for TLS with the server; unless given httpx's default, which verifies certificates.
        proxy: URL of an HTTP or SOCKS5 proxy, or an ``httpx.Proxy``, which may have a TLS context of its own; True, the
            default, for what the environment says (HTTPS_PROXY, ALL_PROXY, NO_PROXY ...), None or False for none.
        unix: path of a Unix socket to connect to instead of the URL's host.
        open_timeout: seconds for the whole opening handshake; default 10, None for no limit. Threads spend what name
            resolution takes on top of it, and with ``http`` it is for each step, as httpx's own time-outs are.
        max_redirects: redirects that are followed; default 10. To another origin go the fields of the handshake,
            Origin, User-Agent and Accept-Language, and nothing else of ``headers``; from TLS to none nothing goes.
        cross_origin_headers: names of fields of ``headers`` that may follow a redirect to another origin as well, such
            as ``["X-Request-Id"]``; never Authorization and Cookie.
        retry: asked by the iterators whether to connect again, with the exception of an attempt that failed, or the
            ``ConnectionClosed`` of a connection that ended; default :func:`worth_retrying`. Never asked for 401, 403
            and 404, which end the iteration.
        backoff: how long the iterators wait; default ``Backoff()``: at random up to 1, 2, 4 ... 60 seconds.
        options: options of the connection, such as ``compression=False``; see :class:`~watershed_mw.Options`. Those
            of a server (``origins``, ``max_connections``, ``shutdown_code``) are refused.

    Returns:
        what can be entered, awaited (``conn = await connect(...)``), opened (``conn = connect(...).open()``), or
        iterated over (``async for``, ``for``) for one connection after the other.

    Raises:
        ValueError, TypeError: an argument cannot be used; at once.
        HandshakeError: on opening, that the server refused, with ``status``, ``headers``, ``body`` and ``response``;
            status 502 for what is no HTTP.
        TimeoutError: not open in time.
        UnsupportedServerError: ``wss://`` through a proxy that is spoken to in TLS, by threads.
        OSError: no way there (``ConnectionRefusedError``, ``socket.gaierror``, ``ssl.SSLError`` ...).
    """
    check_options(options, _OPTIONS, "connect()")
    target = as_http_url(url)
    if http is not None and not isinstance(http, (httpx.Client, httpx.AsyncClient)):
        raise TypeError(f"expected http to be an httpx.Client or httpx.AsyncClient, got {type(http).__name__}")
    if ssl is not None and not isinstance(ssl, tls.SSLContext):
        raise TypeError(f"expected ssl to be an ssl.SSLContext, got {type(ssl).__name__}")
    if unix is not None and not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"expected no unix= on a platform without Unix sockets, got {os.fspath(unix)!r}")
    shed = Watershed(**options, protocols=protocols)
    given = httpx.Headers(headers)
    if not_yours := sorted(REQUEST_FIELDS.intersection(given)):
        raise ValueError(f"expected header fields besides those of the opening handshake, got {', '.join(not_yours)}")
    if origin is not None:
        given["Origin"] = origin
    follow = _checked_names(cross_origin_headers)
    jar = None
    if http is None:
        jar = _for_the_origin(target, cookies, given)
    check_outgoing(given.multi_items())
    return Connect(
        _Order(
            url=target,
            shed=shed,
            headers=given,
            auth=auth,
            cookies=jar,
            http=http,
            ssl=ssl,
            proxy=None if proxy is None or isinstance(proxy, bool) else as_proxy(proxy),
            environment=proxy is True,
            unix=None if unix is None else os.fspath(unix),
            open_timeout=open_timeout,
            max_redirects=max_redirects,
            follow=follow,
        ),
        retry,
        backoff or Backoff(),
    )


def _checked_names(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise ValueError(f"expected cross_origin_headers as a list of names, got a string: write [{names!r}]")
    found = frozenset(name.lower() for name in names)
    if never := sorted(found & _NEVER_FOLLOW):
        raise ValueError(
            f"expected cross_origin_headers without credentials, got {', '.join(never)}, which is for one origin: "
            "follow such a redirect yourself, with max_redirects=0"
        )
    return found


# All that can be given to connect(), for the error that a misspelt one gets.
_OPTIONS: Final = frozenset(connect.__kwdefaults__ or ()) | ClientOptions.__optional_keys__


def _for_the_origin(url: httpx.URL, cookies: Any, headers: httpx.Headers) -> httpx.Cookies:
    """Put cookies of no domain, which httpx would send to every server, into ``headers``, and return the others."""
    others, loose = httpx.Cookies(), httpx.Cookies()
    for cookie in httpx.Cookies(cookies).jar:
        (others if cookie.domain else loose).jar.set_cookie(cookie)
    if pairs := httpx.Request("GET", url, cookies=loose).headers.get("cookie"):
        headers["cookie"] = f"{headers['cookie']}; {pairs}" if "cookie" in headers else pairs
    return others


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for, checked."""

    url: httpx.URL
    shed: Watershed
    headers: httpx.Headers
    auth: Any
    cookies: Any
    http: httpx.Client | httpx.AsyncClient | None
    ssl: tls.SSLContext | None
    proxy: httpx.Proxy | None
    environment: bool
    unix: str | None
    open_timeout: float | None
    max_redirects: int
    follow: frozenset[str]

    def route(self) -> Route:
        """The way to the server."""
        return Route(self.ssl, self.unix, self.proxy, self.environment)

    def journey(self) -> Journey:
        """What holds for each request on the way."""
        return Journey(self.shed, self.url, self.headers, fixed=self.unix is not None, follow=self.follow)

    def request(self, client: httpx.Client | httpx.AsyncClient, plain: bool) -> httpx.Request:
        """The first request; ``plain`` for an offer of compression without parameters."""
        headers = httpx.Headers({"Accept-Encoding": "identity"})  # a refusal's body is taken as it comes
        headers.update(self.headers)
        fields = self.shed.request_headers(self.shed.generate_key())
        headers.update((with_plain_offer(fields) or fields) if plain else fields)
        return client.build_request("GET", self.url, headers=headers)

    def client_options(self) -> dict[str, Any]:
        """How a client of our own is made, besides its transport and hooks."""
        return {
            "auth": self.auth,
            "cookies": self.cookies,
            "follow_redirects": True,
            "max_redirects": self.max_redirects,
            "timeout": None,  # one for all: the stream's deadline
            "trust_env": False,  # the route has asked it
        }

    def may_be_the_offer(self, error: HandshakeError) -> bool:
        """Whether the server may have refused the parameters with which compression was offered."""
        return error.status == 400 and error.response is not None and self.shed.settings.deflate is not None

    def too_late(self) -> TimeoutError:
        """What is raised when time is up."""
        return TimeoutError(f"no WebSocket at {shown(self.url)} within {self.open_timeout:g} seconds (open_timeout)")


def _plainly(error: httpx.HTTPError | httpx.InvalidURL) -> Exception:
    """An error of httpx as what it comes from: the network's own, or a handshake that failed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        # anyio says of a refused connection that all attempts have failed, by reason of it.
        return cause.__cause__ if isinstance(cause.__cause__, OSError) else cause
    if isinstance(error, httpx.TimeoutException):
        return TimeoutError(str(error))
    if isinstance(error, httpx.NetworkError):
        return ConnectionError(str(error))
    status = 302 if isinstance(error, httpx.TooManyRedirects) else 502
    return HandshakeError(f"expected an answer to the opening handshake, got: {error}", status=status)


def _check_no_loop() -> None:
    """Raise an error where blocking would stop an event loop, and with it perhaps the very server that is asked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "expected a thread without a running event loop for `with`, `for` and open(), got one that runs a loop, which "
        "they would block: use `async with connect(...)`, `async for` or `await connect(...)` here"
    )


def _check_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "expected a running event loop of asyncio for `async with`, got none (trio has another kind): use "
            "`with connect(...)` in a thread there"
        ) from None


async def _refusal_within(response: httpx.Response, limit: asyncio.Timeout) -> HandshakeError:
    # A refusal whose body trickles is one, rather than a time-out, which would be tried again.
    until = limit.when()
    limit.reschedule(None)
    return await read_refusal(response, until)


class Connect:
    """What :func:`connect` returns; it can be used any number of times, by both flavours.

    Awaiting it, opening it and iterating over it may go on at the same time; it can be entered again when it has been
    left, as leaving it could not tell which connection to end.
    """

    def __init__(self, order: _Order, retry: Retry, backoff: Backoff) -> None:
        self._order = order
        self._retry = retry
        self._backoff = backoff
        self._plain = False  # whether this server has refused an offer with parameters, and taken one without
        self._entered: AsyncConnection | ThreadConnection | None = None
        self._in_use = threading.Lock()

    def _enter(self) -> None:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("expected one `with` or `async with` at a time, got a second: call connect() for each")

    def _leave(self) -> AsyncConnection | ThreadConnection | None:
        connection, self._entered = self._entered, None
        self._in_use.release()
        return connection

    # --- asyncio ---------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, AsyncConnection]:
        return self._open_asyncio().__await__()

    async def __aenter__(self) -> AsyncConnection:
        self._enter()
        try:
            connection = await self._open_asyncio()
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
        """One connection after the other, each ended when the loop comes back for the next, or is left.

        The logger ``watershed_mw.client`` has a line for each further attempt, with its cause and the pause before it,
        and for its success. What the body raises leaves the loop: where it receives, ``except ConnectionClosed:
        continue`` goes on.
        """
        attempts = Attempts(self._backoff, self._retry, shown(self._order.url))
        while True:
            try:
                connection = await self._open_asyncio()
            except Exception as error:
                delay = attempts.after_failure(error)
                if delay is None:
                    raise
            else:
                attempts.opened()
                try:
                    yield connection
                finally:
                    await connection.end()
                delay = attempts.after_end(
                    connection.close_code or 1006, connection.close_reason or "", connection.duration
                )
                if delay is None:
                    return
            await asyncio.sleep(delay)

    async def _open_asyncio(self) -> AsyncConnection:
        order = self._order
        _check_asyncio()
        if isinstance(order.http, httpx.Client):
            raise TypeError("expected an httpx.AsyncClient for the asyncio flavour, got an httpx.Client: `with`")
        limit = asyncio.timeout(order.open_timeout)
        try:
            async with limit:
                return await self._with_either_offer(limit)
        except TimeoutError as error:
            if limit.expired():
                raise order.too_late() from error
            raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _plainly(error) from None

    async def _with_either_offer(self, limit: asyncio.Timeout) -> AsyncConnection:
        until, plain = limit.when(), self._plain
        try:
            return await self._ask(limit, plain)
        except HandshakeError as error:
            late = until is not None and asyncio.get_running_loop().time() >= until
            if plain or late or not self._order.may_be_the_offer(error):
                raise
        _logger.info(_PLAIN, shown(self._order.url))
        limit.reschedule(until)
        connection = await self._ask(limit, True)
        self._plain = True
        return connection

    async def _ask(self, limit: asyncio.Timeout, plain: bool) -> AsyncConnection:
        http = cast("httpx.AsyncClient | None", self._order.http)
        return await (self._through_ours(limit, plain) if http is None else self._through(http, limit, plain))

    async def _through(self, client: httpx.AsyncClient, limit: asyncio.Timeout, plain: bool) -> AsyncConnection:
        response = await client.send(self._order.request(client, plain), stream=True)
        if response.status_code != 101:
            raise await _refusal_within(response, limit)
        try:
            return cast(AsyncConnection, self._order.shed.connect(response))
        except BaseException:
            await response.aclose()
            raise

    async def _through_ours(self, limit: asyncio.Timeout, plain: bool) -> AsyncConnection:
        order = self._order
        hooks: dict[str, list[Any]] = {"request": [order.journey().prepare_async]}
        transport = AsyncioOpening(order.route())
        async with httpx.AsyncClient(transport=transport, event_hooks=hooks, **order.client_options()) as client:
            response = await client.send(order.request(client, plain), stream=True)
            if response.status_code != 101:
                raise await _refusal_within(response, limit)
            way, early = await AsyncioStream.take(response.extensions["network_stream"])
            try:
                return order.shed.connect(response, way, early)
            except BaseException:
                way.abort()
                raise

    # --- threads ---------------------------------------------------------------------------------------------

    def open(self) -> ThreadConnection:
        """Open it and return the connection, for threads.

        Raises:
            RuntimeError: an event loop runs in this thread, which must not block.
            Exception: as :func:`connect` says.
        """
        order = self._order
        _check_no_loop()
        if isinstance(order.http, httpx.AsyncClient):
            raise TypeError(
                "expected an httpx.Client for the threads flavour, got an httpx.AsyncClient: use `async with`"
            )
        deadline = None if order.open_timeout is None else time.monotonic() + order.open_timeout
        try:
            return self._with_either_offer_blocking(deadline)
        except TimeoutError as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise order.too_late() from error
            raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _plainly(error) from None

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
        """One connection after the other, each ended when the loop comes back for the next, or is left.

        The logger ``watershed_mw.client`` has a line for each further attempt, with its cause and the pause before it,
        and for its success. What the body raises leaves the loop: where it receives, ``except ConnectionClosed:
        continue`` goes on.
        """
        attempts = Attempts(self._backoff, self._retry, shown(self._order.url))
        while True:
            try:
                connection = self.open()
            except Exception as error:
                delay = attempts.after_failure(error)
                if delay is None:
                    raise
            else:
                attempts.opened()
                try:
                    yield connection
                finally:
                    connection.end()
                delay = attempts.after_end(
                    connection.close_code or 1006, connection.close_reason or "", connection.duration
                )
                if delay is None:
                    return
            time.sleep(delay)

    def _with_either_offer_blocking(self, deadline: float | None) -> ThreadConnection:
        plain = self._plain
        try:
            return self._ask_blocking(deadline, plain)
        except HandshakeError as error:
            late = deadline is not None and time.monotonic() >= deadline
            if plain or late or not self._order.may_be_the_offer(error):
                raise
        _logger.info(_PLAIN, shown(self._order.url))
        connection = self._ask_blocking(deadline, True)
        self._plain = True
        return connection

    def _ask_blocking(self, deadline: float | None, plain: bool) -> ThreadConnection:
        http = cast("httpx.Client | None", self._order.http)
        return self._through_ours_blocking(deadline, plain) if http is None else self._through_blocking(http, plain)

    def _through_blocking(self, client: httpx.Client, plain: bool) -> ThreadConnection:
        request = self._order.request(client, plain)
        if (limit := self._order.open_timeout) is not None:
            # Its own time-outs are for each step, and so is ours where it is shorter.
            for step, seconds in request.extensions["timeout"].items():
                request.extensions["timeout"][step] = limit if seconds is None else min(seconds, limit)
        return self._finish(client.send(request, stream=True))

    def _through_ours_blocking(self, deadline: float | None, plain: bool) -> ThreadConnection:
        order = self._order
        hooks: dict[str, list[Any]] = {"request": [order.journey().prepare]}
        transport = ThreadOpening(order.route(), deadline)
        with httpx.Client(transport=transport, event_hooks=hooks, **order.client_options()) as client:
            return self._finish(client.send(order.request(client, plain), stream=True))

    def _finish(self, response: httpx.Response) -> ThreadConnection:
        if response.status_code != 101:
            raise read_refusal_blocking(response)
        try:
            return cast(ThreadConnection, self._order.shed.connect(response))
        except BaseException:
            response.close()
            raise
