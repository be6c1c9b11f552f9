"""The opening handshake on asyncio: httpx sends each request on a new stream; the connection keeps the last one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

import httpcore
import httpx

from ...connection.aio.api import AsyncConnection
from ...errors import HandshakeError
from ..handshake import Arguments, Offer, Requests
from ..messages import CLOSING_ERRORS, MAX_REFUSAL, as_httpx, own_stream, plain_httpx, refusal
from .network import AsyncioStream, send

__all__ = ["open_connection"]


async def open_connection(arguments: Arguments, offer: Offer) -> AsyncConnection:
    """Open a connection, with one retry for a server that refuses the parameters of the compression offer.

    Args:
        arguments: those of ``connect()``.
        offer: how to offer compression; updated.

    Raises:
        RuntimeError: no asyncio event loop is running.
        Exception: as ``connect()`` documents.
    """
    _check_asyncio()
    if isinstance(arguments.http, httpx.Client):
        raise TypeError("expected an httpx.AsyncClient for the asyncio flavour, got an httpx.Client: use `with`")
    limit = asyncio.timeout(arguments.open_timeout)
    try:
        async with limit:
            until, plain = limit.when(), offer.plain
            try:
                return await _attempt(arguments, plain, limit)
            except HandshakeError as error:
                late = until is not None and asyncio.get_running_loop().time() >= until
                if plain or late or not arguments.should_retry_plain(error):
                    raise
            limit.reschedule(until)
            connection = await _attempt(arguments, True, limit)
            offer.plain = True
            return connection
    except TimeoutError as error:
        if limit.expired():
            raise arguments.timed_out() from error
        raise
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise plain_httpx(error) from None


def _check_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "expected a running asyncio event loop for `async with`, got none: under trio, use `with connect(...)` in "
            "a thread"
        ) from None


async def _attempt(arguments: Arguments, plain: bool, limit: asyncio.Timeout) -> AsyncConnection:
    requests = Requests(arguments, plain)
    if arguments.http is not None:
        return await _attempt_through_client(cast(httpx.AsyncClient, arguments.http), requests, limit)
    async with httpx.AsyncClient(transport=_Transport(requests), **arguments.client) as client:
        response = await client.send(requests.first(client), stream=True)
        if response.status_code != 101:
            raise await _read_refusal(response, limit)
        transport, early = await AsyncioStream.take(response.extensions["network_stream"])
        try:
            return arguments.shed.connect(response, transport, early, requests.key)
        except BaseException:
            transport.abort()
            raise


async def _attempt_through_client(
    client: httpx.AsyncClient, requests: Requests, limit: asyncio.Timeout
) -> AsyncConnection:
    """Send the request with the application's own client."""
    response = await client.send(requests.first(client), stream=True)
    if response.status_code != 101:
        raise await _read_refusal(response, limit)
    try:
        return cast(AsyncConnection, requests.arguments.shed.connect(response))
    except BaseException:
        await response.aclose()
        raise


class _Transport(httpx.AsyncBaseTransport):
    """Sends each httpx request on a new stream."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._sent = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._sent:
            self._requests.follow_up(request)
        self._sent = True
        return as_httpx(await send(self._requests.arguments.route.plan(request)), _Body)


@dataclass(slots=True)
class _Body(httpx.AsyncByteStream):
    response: httpcore.Response
    limit: int

    async def __aiter__(self) -> AsyncIterator[bytes]:
        remaining = self.limit
        if not remaining:
            return
        async for part in self.response.stream:  # type: ignore[union-attr]  # an asynchronous one
            yield part[:remaining]
            if (remaining := remaining - len(part)) <= 0:
                return

    async def aclose(self) -> None:
        await self.response.aclose()
        # httpcore leaves the stream open after a complete body, for a pool to reuse.
        await self.response.extensions["network_stream"].aclose()


async def _read_refusal(response: httpx.Response, limit: asyncio.Timeout) -> HandshakeError:
    """Read a refusal's body until it ends, ``limit`` expires, or 64 KiB have arrived; close the response."""
    # A body that arrives too slowly must not turn the refusal into a timeout, which would be retried.
    until = limit.when()
    limit.reschedule(None)
    body = b""
    async with _closing(response), _closing(own_stream(response)):
        # A truncated or malformed body is still a refusal, with the part that arrived.
        with suppress(*CLOSING_ERRORS):
            async with asyncio.timeout_at(until):
                # Not aiter_raw(): at its end the pool gives the connection to the next request.
                async for part in cast(httpx.AsyncByteStream, response.stream):
                    body += part
                    if len(body) >= MAX_REFUSAL:
                        break
    return refusal(response, body)


@asynccontextmanager
async def _closing(thing: httpx.Response | httpcore.AsyncNetworkStream | None) -> AsyncIterator[None]:
    # Not contextlib's aclosing: an error while closing must not replace a cancellation that passes through.
    try:
        yield
    finally:
        if thing is not None:
            with suppress(*CLOSING_ERRORS):
                await thing.aclose()
