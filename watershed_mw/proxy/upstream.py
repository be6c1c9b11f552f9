"""The upstream's side of the opening handshake: sends the request, and returns a byte stream or an HTTP response.

Sec-WebSocket-Accept is checked before the client gets its 101, so the proxy relays to WebSocket servers only. Responses
other than 101 are forwarded to the client.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import httpcore

from ..client.aio.network import AsyncioStream, send
from ..client.route import Route
from ..connection.adopt import AsyncioTransport, DetachedStreams
from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Response, check_switch
from ..errors import ConnectionClosed, HandshakeError
from ..runtime.exhaustion import is_exhausted, unavailable
from .pace import Pace
from .target import Destination

__all__ = ["CUT_OFF", "Raw", "Refused", "Switched", "ask", "described", "drop"]

Raw: TypeAlias = "socket.socket | DetachedStreams"

CUT_OFF: Final = "cut off an upstream's refusal: its body ended early, or one side was too slow"
"""Logged by the ASGI and the WSGI proxy."""

# A refusal's body of at most this many bytes is forwarded in one piece, as granian accepts only one.
_SHORT_BODY: Final = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Switched:
    """The upstream has switched to WebSocket.

    Attributes:
        fields: header fields of its 101.
        streams: the transport to it.
        head: bytes that came with the 101.
    """

    fields: list[tuple[str, str]]
    streams: AsyncioTransport
    head: bytes

    def detach(self) -> Raw:
        """Detach the raw stream for a relay: a socket, or a reader and a writer over TLS.

        Raises:
            HandshakeError: the upstream has disconnected (502).
        """
        try:
            return self.streams.detach(self.head)
        except ConnectionClosed as error:
            raise HandshakeError("the upstream disconnected after its 101", status=502) from error

    def close(self) -> None:
        """Abort the connection to the upstream."""
        self.streams.abort()


def drop(stream: Raw) -> None:
    """Close a stream that no relay has taken over."""
    if isinstance(stream, socket.socket):
        stream.close()
    else:
        stream[1].transport.abort()


class Refused:
    """The upstream has not switched, and its HTTP response goes to the client.

    Attributes:
        status: HTTP status.
        fields: header fields.
        complete: whether the whole body has been read.
        pace: the time limit for forwarding the body.
    """

    def __init__(self, response: httpcore.Response, timeout: float) -> None:
        self.complete = False
        self.pace = Pace(timeout)
        self.status = response.status
        self.fields = _fields(response)
        self._response = response
        self._timeout = timeout

    async def begin(self) -> tuple[bytes, AsyncIterator[bytes] | None]:
        """Read the beginning of the body: all of a short body and None, or a part and an iterator over the rest.

        Raises:
            HandshakeError: the body ended early, or arrived too slowly (502).
        """
        begin, rest = b"", self.body()
        try:
            async for part in rest:
                begin += part
                if len(begin) > _SHORT_BODY:
                    return begin, rest
            if not self.complete:
                raise HandshakeError("the upstream did not complete its response", status=502)
        except BaseException:
            await self.aclose()
            raise
        return begin, None

    async def body(self) -> AsyncIterator[bytes]:
        """The body, streamed; it ends early if the upstream disconnects, stalls, or is too slow."""
        parts = aiter(self._response.stream)  # type: ignore[arg-type]
        try:
            while remaining := self.pace.remaining:  # at 0, asyncio.timeout() would not stop a read that does not block
                async with asyncio.timeout(min(self._timeout, remaining)):
                    part = await anext(parts)
                yield part
                self.pace.passed(len(part))
        except StopAsyncIteration:
            self.complete = True
        except (OSError, httpcore.ProtocolError):
            pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection to the upstream."""
        await _close(self._response)


async def _close(response: httpcore.Response) -> None:
    await response.aclose()
    # Without a pool, httpcore leaves the connection open after a complete body.
    await response.extensions["network_stream"].aclose()


def _fields(response: httpcore.Response) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]


def described(error: HandshakeError) -> str:
    """The error as text for logs: what the client gets, plus the cause, which the client does not get."""
    return f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)


async def ask(
    to: Destination,
    fields: list[tuple[str, str]],
    key: str,
    *,
    context: ssl.SSLContext | None,
    open_timeout: float,
) -> Switched | Refused:
    """Ask the upstream for the upgrade.

    Args:
        to: the upstream, and the request target there.
        fields: header fields of the request, including those that ask for the upgrade.
        key: the Sec-WebSocket-Key among them.
        context: for TLS with the upstream; None for a default one, which verifies certificates.
        open_timeout: seconds until the response head.

    Raises:
        HandshakeError: no connection, or no valid response (502); no response in time (504); a request that HTTP cannot
            carry (400); or this machine is out of resources (503).
    """
    url = httpcore.URL(
        scheme=to.url.raw_scheme,
        host=to.url.raw_host,
        port=to.url.port or (443 if to.url.scheme == "https" else 80),
        target=to.target.encode("ascii"),
    )
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    try:
        async with asyncio.timeout(open_timeout):
            request = httpcore.Request(b"GET", url, headers=headers)
            response = await send(Route(context, to.unix).plan_to(request))
    except TimeoutError:
        raise HandshakeError("the upstream did not answer in time", status=504) from None
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        if is_exhausted(error):
            raise unavailable(error) from error
        raise HandshakeError("the upstream cannot be reached", status=502) from error
    except ValueError:
        # Without the cause, which quotes the request and may thus contain a token.
        raise HandshakeError(
            "the request cannot be forwarded: a header field or the target is not valid HTTP", status=400
        ) from None
    except HandshakeError as error:
        raise HandshakeError("the upstream does not answer with HTTP", status=502) from error
    if response.status != 101 and 200 <= response.status < 600:
        return Refused(response, open_timeout)
    answered = _fields(response)
    try:
        check_switch(Response(101, Headers(answered)), key)
    except HandshakeError as error:
        await _close(response)
        raise HandshakeError("the upstream does not answer with WebSocket", status=502) from error
    streams, head = await AsyncioStream.take(response.extensions["network_stream"])
    return Switched(answered, streams, head)
