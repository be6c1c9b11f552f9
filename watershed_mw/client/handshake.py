"""The opening handshake as one HTTP request: what is sent, how httpx sends it, and what a refusal looks like.

httpx decides about redirects, cookies and authentication; this module's transports give it a connection of its own
for each request, whose stream the WebSocket connection takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import httpcore
import httpx

from ..errors import HandshakeError
from ..watershed import Watershed
from .route import Route

__all__ = [
    "AsyncioOpening",
    "Journey",
    "ThreadOpening",
    "as_http_url",
    "read_refusal",
    "read_refusal_blocking",
    "shown",
]

# Bytes of a refusal's or a redirect's body that are read: a page of some server, or what an API says.
_MOST_OF_A_REFUSAL = 64 * 2**10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BROKEN_OFF = (httpx.HTTPError, httpcore.ProtocolError, OSError)
# What goes to another origin: what httpx itself says, the opening handshake, and what names no user.
_HARMLESS = frozenset({
    "accept", "accept-encoding", "accept-language", "connection", "cookie", "host", "origin", "upgrade", "user-agent",
    "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version",
})  # fmt: skip
_OF_THE_BODY = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


def as_http_url(url: str | httpx.URL) -> httpx.URL:
    """A WebSocket URL as the URL of the HTTP request that opens it (RFC 6455 section 3).

    Raises:
        ValueError: it is none, or has a fragment.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        # Not what came, which httpx quotes: it may hold a password, and who knows where.
        fault = str(error).partition("'")[0].rstrip(" :,")
        raise ValueError(f"expected a URL such as wss://host/path, got another one: {fault}") from None
    if parsed.scheme not in _SCHEMES or not parsed.host:
        # Without "//" what should be the host is part of the path, and so is a password.
        got = f"{parsed.scheme}:..." if "@" in parsed.path else shown(parsed)
        raise ValueError(f"expected a URL such as wss://host/path, got {got!r}")
    if parsed.fragment:
        raise ValueError(f"expected a URL without a fragment (RFC 6455 section 3), got {shown(parsed)!r} with one")
    return parsed.copy_with(scheme=_SCHEMES[parsed.scheme])


def shown(url: httpx.URL) -> str:
    """A URL for errors and logs: without credentials, and without query and fragment, which may hold a token."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


class Journey:
    """What each request of one opening handshake must carry and must not do, the redirected ones as well.

    Args:
        shed: makes the keys.
        url: where the first request goes.
        headers: those that the application gave. They are for the same origin alone, and only until another one has
            been visited, which could send us back wherever it likes.
        fixed: whether the way leads to one server alone, so that no other can be meant.
        follow: names of fields that may go to another origin all the same, besides those of a browser.
    """

    def __init__(
        self, shed: Watershed, url: httpx.URL, headers: httpx.Headers, *, fixed: bool, follow: Iterable[str] = ()
    ) -> None:
        self._shed = shed
        self._url = url
        self._secrets = {name: headers[name] for name in ("cookie", "authorization") if name in headers}
        self._fixed = fixed
        self._follow = _HARMLESS.union(name.lower() for name in follow)

    def prepare(self, request: httpx.Request) -> None:
        """Make the request ready, just before it is sent; httpx has dropped what was not for this origin.

        Raises:
            HandshakeError: a redirect that is not followed: away from HTTP, from TLS to none, or from the one server.
        """
        url = request.url
        if url.scheme in ("ws", "wss"):
            request.url = url = url.copy_with(scheme=_SCHEMES[url.scheme])
        if url.scheme not in ("http", "https") or not url.host:
            raise HandshakeError(f"expected a redirect to a server of HTTP, got one to {shown(url)}", status=302)
        if self._url.scheme == "https" and url.scheme != "https":
            raise HandshakeError(f"expected no redirect from TLS to none, got one to {shown(url)}", status=302)
        same = _origin(url) == _origin(self._url)
        if self._fixed and not same:
            raise HandshakeError(
                f"expected no redirect away from the server behind the Unix socket, got one to {shown(url)}", status=302
            )
        if not same:
            self._secrets.clear()
            # Nobody knows which of an application's fields holds a key. httpx has left a Cookie that is for this one.
            for name in set(request.headers) - self._follow:
                del request.headers[name]
        if "authorization" in self._secrets:
            # httpx drops it where only the name of the scheme differs.
            request.headers.setdefault("authorization", self._secrets["authorization"])
        if "cookie" in self._secrets:
            # httpx drops it on every redirect, and adds what servers have set on the way, which is the newer.
            request.headers["cookie"] = _merged(request.headers.get("cookie", ""), self._secrets["cookie"])
        # A nonce for each connection (section 4.1, point 7), and a redirect leads to another one.
        request.headers["Sec-WebSocket-Key"] = self._shed.generate_key()

    async def prepare_async(self, request: httpx.Request) -> None:
        """As :meth:`prepare`."""
        self.prepare(request)


def _merged(newer: str, older: str) -> str:
    """Two values of a Cookie field as one; of cookies that are in both those of the first."""
    pairs = {pair.partition("=")[0].strip(): pair.strip() for pair in f"{older};{newer}".split(";") if pair.strip()}
    return "; ".join(pairs.values())


def _as_httpcore(request: httpx.Request) -> httpcore.Request:
    url = request.url
    target = httpcore.URL(
        scheme=url.raw_scheme,
        host=url.raw_host,
        port=url.port or (443 if url.scheme == "https" else 80),
        target=url.raw_path,
    )
    return httpcore.Request(request.method, target, headers=request.headers.raw, extensions=request.extensions)


def _arguments(response: httpcore.Response) -> dict[str, Any]:
    # Nobody inflates 64 KiB of a stranger's: no compression was asked for.
    headers = [field for field in response.headers if field[0].lower() != b"content-encoding"]
    return {"status_code": response.status, "headers": headers, "extensions": response.extensions}


def _readable(response: httpcore.Response) -> int:
    """How many bytes of a body are of interest: httpx would read a redirect's to its end before it goes on."""
    located = any(name.lower() == b"location" for name, _ in response.headers)
    return 0 if located and response.status in _REDIRECTS else _MOST_OF_A_REFUSAL


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self._size = _readable(response)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._size
        if not left:
            return
        async for part in self._response.stream:  # type: ignore[union-attr]  # this one can be awaited
            yield part[:left]
            if (left := left - len(part)) <= 0:
                return

    async def aclose(self) -> None:
        await self._response.aclose()
        # There is no pool that could use it again, so httpcore leaves it open once the body is complete.
        await self._response.extensions["network_stream"].aclose()


class AsyncioOpening(httpx.AsyncBaseTransport):
    """Sends each request on a stream of the running event loop; the response's ``network_stream`` has it.

    Args:
        route: the way to the servers.
    """

    def __init__(self, route: Route) -> None:
        self._route = route

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises as :meth:`Route.request`."""
        response = await self._route.request(_as_httpcore(request), self._route.proxy_for(request.url))
        return httpx.Response(**_arguments(response), stream=_AsyncBody(response))


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self._size = _readable(response)

    def __iter__(self) -> Iterator[bytes]:
        left = self._size
        if not left:
            return
        for part in self._response.stream:  # type: ignore[union-attr]  # this one cannot
            yield part[:left]
            if (left := left - len(part)) <= 0:
                return

    def close(self) -> None:
        self._response.close()
        self._response.extensions["network_stream"].close()


class ThreadOpening(httpx.BaseTransport):
    """Sends each request on a socket; the response's ``network_stream`` has it.

    Args:
        route: the way to the servers.
        deadline: time of ``time.monotonic()`` by which the opening handshake has to be over; None for no limit.
    """

    def __init__(self, route: Route, deadline: float | None) -> None:
        self._route = route
        self._deadline = deadline

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises as :meth:`Route.request`."""
        proxy = self._route.proxy_for(request.url)
        response = self._route.request_blocking(_as_httpcore(request), proxy, self._deadline)
        return httpx.Response(**_arguments(response), stream=_Body(response))


# --- refusals -----------------------------------------------------------------------------------------------


async def read_refusal(response: httpx.Response, until: float | None) -> HandshakeError:
    """What a server that did not switch has to say, at most 64 KiB of it; the response is closed.

    Args:
        response: the answer, of which the head has been read.
        until: time of the event loop at which what has come by then is enough.
    """
    body = b""
    async with _aclosing(response), _aclosing(_own_stream(response)):
        # A server that sends less than it has announced, or nonsense: what came is what there is.
        with suppress(*_BROKEN_OFF):
            async with asyncio.timeout_at(until):
                # Not aiter_raw(), at whose end the pool has the connection back, and gives it to somebody else.
                async for part in cast(httpx.AsyncByteStream, response.stream):
                    body += part
                    if len(body) >= _MOST_OF_A_REFUSAL:
                        break
    return _refusal(response, body)


def read_refusal_blocking(response: httpx.Response) -> HandshakeError:
    """As :func:`read_refusal`, until the stream's own deadline."""
    body = b""
    with _closing(response), _closing(_own_stream(response)), suppress(*_BROKEN_OFF):
        for part in cast(httpx.SyncByteStream, response.stream):
            body += part
            if len(body) >= _MOST_OF_A_REFUSAL:
                break
    return _refusal(response, body)


def _own_stream(response: httpx.Response) -> Any:
    # It is closed before the response: a client's pool would use it for the next handshake. Many servers close after a
    # refusal without announcing it, and what is sent behind that gets no answer. HTTP/2 has others' requests on it.
    return response.extensions.get("network_stream") if response.http_version.startswith("HTTP/1") else None


# Not contextlib's: what goes wrong while closing must not take the place of a cancellation, say, that passes by.


@asynccontextmanager
async def _aclosing(thing: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if thing is not None:
            with suppress(*_BROKEN_OFF):
                await thing.aclose()


@contextmanager
def _closing(thing: Any) -> Iterator[None]:
    try:
        yield
    finally:
        if thing is not None:
            with suppress(*_BROKEN_OFF):
                thing.close()


def _refusal(response: httpx.Response, body: bytes) -> HandshakeError:
    body = body[:_MOST_OF_A_REFUSAL]
    # It is not decoded, as bytes of a stranger would inflate, and there may be less of it than was announced.
    headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _OF_THE_BODY]
    whole = httpx.Response(
        response.status_code, headers=headers, content=body, request=response.request, history=response.history
    )
    said = f" {response.reason_phrase}" if response.reason_phrase else ""
    return HandshakeError(
        f"expected status 101 (Switching Protocols), got {response.status_code}{said} from {shown(response.url)}",
        status=response.status_code,
        headers=headers,
        body=body,
        response=whole,
    )
