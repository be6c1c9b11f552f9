"""The opening handshake for threads: httpx sends each request on a new socket; the connection keeps the last one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import httpcore
import httpx

from ...connection.threads.connection import ThreadConnection
from ...errors import HandshakeError
from ..handshake import Arguments, Offer, Requests
from ..messages import CLOSING_ERRORS, MAX_REFUSAL, as_httpx, own_stream, plain_httpx, refusal
from .network import send

__all__ = ["open_connection"]


def open_connection(arguments: Arguments, offer: Offer) -> ThreadConnection:
    """Open a connection, with one retry for a server that refuses the parameters of the compression offer.

    Args:
        arguments: those of ``connect()``.
        offer: how to offer compression; updated.

    Raises:
        RuntimeError: an event loop is running in this thread.
        Exception: as ``connect()`` documents.
    """
    _check_no_loop()
    if isinstance(arguments.http, httpx.AsyncClient):
        raise TypeError("expected an httpx.Client for the threads flavour, got an httpx.AsyncClient: use `async with`")
    deadline = None if arguments.open_timeout is None else time.monotonic() + arguments.open_timeout
    plain = offer.plain
    try:
        try:
            return _attempt(arguments, plain, deadline)
        except HandshakeError as error:
            late = deadline is not None and time.monotonic() >= deadline
            if plain or late or not arguments.should_retry_plain(error):
                raise
        connection = _attempt(arguments, True, deadline)
        offer.plain = True
        return connection
    except TimeoutError as error:
        if deadline is not None and time.monotonic() >= deadline:
            raise arguments.timed_out() from error
        raise
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise plain_httpx(error) from None


def _check_no_loop() -> None:
    # Blocking would stop the loop, which may even run the server that has to respond.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "expected a thread without a running event loop for `with`, `for` and open(), got one that runs a loop, which "
        "they would block: use `async with connect(...)`, `async for` or `await connect(...)` here"
    )


def _attempt(arguments: Arguments, plain: bool, deadline: float | None) -> ThreadConnection:
    requests = Requests(arguments, plain)
    if arguments.http is not None:
        return _attempt_through_client(cast(httpx.Client, arguments.http), requests)
    with httpx.Client(transport=_Transport(requests, deadline), **arguments.client) as client:
        return _finish(arguments, client.send(requests.first(client), stream=True))


def _attempt_through_client(client: httpx.Client, requests: Requests) -> ThreadConnection:
    """Send the request with the application's own client."""
    request = requests.first(client)
    if (limit := requests.arguments.open_timeout) is not None:
        # httpx has a timeout for each step; open_timeout shortens those that are longer.
        for step, seconds in request.extensions["timeout"].items():
            request.extensions["timeout"][step] = limit if seconds is None else min(seconds, limit)
    return _finish(requests.arguments, client.send(request, stream=True))


def _finish(arguments: Arguments, response: httpx.Response) -> ThreadConnection:
    if response.status_code != 101:
        raise _read_refusal(response)
    try:
        return cast(ThreadConnection, arguments.shed.connect(response))
    except BaseException:
        response.close()
        raise


class _Transport(httpx.BaseTransport):
    """Sends each httpx request on a new socket, until ``deadline`` of ``time.monotonic()``."""

    def __init__(self, requests: Requests, deadline: float | None) -> None:
        self._requests = requests
        self._sent = False
        self._deadline = deadline

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._sent:
            self._requests.follow_up(request)
        self._sent = True
        return as_httpx(send(self._requests.arguments.route.plan(request), self._deadline), _Body)


@dataclass(slots=True)
class _Body(httpx.SyncByteStream):
    response: httpcore.Response
    limit: int

    def __iter__(self) -> Iterator[bytes]:
        remaining = self.limit
        if not remaining:
            return
        for part in self.response.stream:  # type: ignore[union-attr]  # a synchronous one
            yield part[:remaining]
            if (remaining := remaining - len(part)) <= 0:
                return

    def close(self) -> None:
        self.response.close()
        # httpcore leaves the stream open after a complete body, for a pool to reuse.
        self.response.extensions["network_stream"].close()


def _read_refusal(response: httpx.Response) -> HandshakeError:
    """Read a refusal's body until it ends, its deadline passes, or 64 KiB have arrived; close the response."""
    body = b""
    # A truncated or malformed body is still a refusal, with the part that arrived.
    with _closing(response), _closing(own_stream(response)), suppress(*CLOSING_ERRORS):
        # Not iter_raw(): at its end the pool gives the connection to the next request.
        for part in cast(httpx.SyncByteStream, response.stream):
            body += part
            if len(body) >= MAX_REFUSAL:
                break
    return refusal(response, body)


@contextmanager
def _closing(thing: httpx.Response | httpcore.NetworkStream | None) -> Iterator[None]:
    # Not contextlib's closing: an error while closing must not replace an interrupt that passes through.
    try:
        yield
    finally:
        if thing is not None:
            with suppress(*CLOSING_ERRORS):
                thing.close()
