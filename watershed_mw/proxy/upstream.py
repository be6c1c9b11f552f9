"""The opening handshake with the upstream: asked in the client's name, judged, and left as a byte stream.

Its Sec-WebSocket-Accept is checked before anybody hears of a 101, so that nothing but a WebSocket server is ever
relayed to; everything else that comes is an HTTP response for the client.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import httpcore

from ..client.route import Route
from ..client.streams import AsyncioStream
from ..connection.adopt import AsyncioTransport, DetachedStreams
from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Response, check_switch
from ..errors import ConnectionClosed, HandshakeError
from ..runtime.exhaustion import is_exhausted, unavailable
from .pace import Pace
from .target import Destination

__all__ = ["Raw", "Refused", "Switched", "ask", "described", "drop"]

Raw: TypeAlias = "socket.socket | DetachedStreams"

# Bytes of a refusal's body up to which it is passed on in one piece: granian takes no second one.
_AT_ONCE: Final = 64 * 2**10


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
        """The raw socket, or what is raw over TLS, as a relay takes it.

        Raises:
            HandshakeError: the upstream has gone already (502).
        """
        try:
            return self.streams.detach(self.head)
        except ConnectionClosed as error:
            raise HandshakeError("the upstream has gone", status=502) from error

    def close(self) -> None:
        """Let the upstream go."""
        self.streams.abort()


def drop(stream: Raw) -> None:
    """Let go of a stream that no relay has taken."""
    if isinstance(stream, socket.socket):
        stream.close()
    else:
        stream[1].transport.abort()


class Refused:
    """The upstream has answered with something else.

    Attributes:
        status: HTTP status.
        fields: header fields.
        complete: whether the body has come to its end.
        pace: the time that the body has to pass to the client.
    """

    def __init__(self, response: httpcore.Response, timeout: float) -> None:
        self.complete = False
        self.pace = Pace(timeout)
        self.status = response.status
        self.fields = _fields(response)
        self._response = response
        self._timeout = timeout

    async def begin(self) -> tuple[bytes, AsyncIterator[bytes] | None]:
        """The body, where it is a short one, or its beginning with the rest that follows.

        Raises:
            HandshakeError: the upstream has broken off, or was too slow (502).
        """
        begin, rest = b"", self.body()
        try:
            async for part in rest:
                begin += part
                if len(begin) > _AT_ONCE:
                    return begin, rest
            if not self.complete:
                raise HandshakeError("the upstream broke off in its answer", status=502)
        except BaseException:
            await self.aclose()
            raise
        return begin, None

    async def body(self) -> AsyncIterator[bytes]:
        """The body, as it comes; it ends early where the upstream breaks off, falls silent, or holds no pace."""
        parts = aiter(self._response.stream)  # type: ignore[arg-type]
        try:
            while left := self.pace.left:  # a time-out of 0 ends nothing that need not wait
                async with asyncio.timeout(min(self._timeout, left)):
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
        """Let the upstream go."""
        await _close(self._response)


async def _close(response: httpcore.Response) -> None:
    await response.aclose()
    # There is no pool that could use it again, so httpcore leaves it open once the body is complete.
    await response.extensions["network_stream"].aclose()


def _fields(response: httpcore.Response) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]


def described(error: HandshakeError) -> str:
    """For logs: what the client is told, and what it is not to know."""
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
        to: where it is.
        fields: header fields of the request, those that ask for the upgrade included.
        key: the Sec-WebSocket-Key among them.
        context: for TLS with the upstream; None for one that verifies certificates.
        open_timeout: seconds that it has to answer.

    Raises:
        HandshakeError: it cannot be reached or answers nonsense (502), or does not answer in time (504); or HTTP cannot
            carry the request (400).
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
            response = await Route(context, to.unix).request(httpcore.Request(b"GET", url, headers=headers), None)
    except TimeoutError:
        raise HandshakeError("the upstream did not answer in time", status=504) from None
    except (OSError, UnicodeError) as error:  # the latter of a host whose name cannot be one
        if is_exhausted(error):
            raise unavailable(error) from error
        raise HandshakeError("the upstream cannot be reached", status=502) from error
    except ValueError:
        # Not what is wrong with it: that quotes the request, which may hold a token.
        raise HandshakeError("the request cannot be forwarded, as HTTP cannot carry it", status=400) from None
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
