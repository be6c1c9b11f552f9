"""Streams of asyncio under the opening handshake: connected, secured, and taken over by the connection afterwards.

httpcore speaks HTTP over a stream of this module, as its documentation provides for. The connection thereby gets the
event loop's own transport, with no HTTP layer around it, and network errors stay OSErrors. The caller sets the one
deadline for all of it (``asyncio.timeout``), however slowly a server sends.

The package aiofastnet, where it is installed, makes TLS faster, and plain streams on asyncio's own loops.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

try:
    import aiofastnet
except ImportError:
    aiofastnet = None  # type: ignore[assignment]

from ...connection.adopt import AsyncioTransport
from .. import happy_eyeballs
from ..alpn import check_http11, offering_http11
from ..messages import plain_httpcore
from ..route import Way, check_tunnel
from ..socks import Dialogue, stream_ended

__all__ = ["AsyncioStream", "connect", "is_faster", "send"]

# Bytes that are buffered for the HTTP layer, which a server could flood before the handshake ends.
_BUFFER = 64 * 2**10


async def send(way: Way) -> httpcore.Response:
    """Send a request on a stream of its own, and return the response, whose ``network_stream`` is that stream.

    Raises:
        OSError: the server or its proxy cannot be reached, or the stream broke.
        HandshakeError: what came is not HTTP (502), or the proxy refused.
        ValueError: HTTP cannot carry the request.
    """
    stream: AsyncioStream | None = None
    try:
        contexts = [step[0] for step in (way.proxy_tls, way.tls) if step is not None]
        stream = await connect(way.host, way.port, way.unix, faster=is_faster(contexts))
        if way.proxy_tls is not None:
            await stream.start_tls(*way.proxy_tls)
        if way.socks is not None:
            await stream.talk(way.socks)
        if way.tunnel is not None:
            proxy = httpcore.AsyncHTTP11Connection(way.tunnel.url.origin, stream)
            check_tunnel(await proxy.handle_async_request(way.tunnel))
        if way.tls is not None:
            await stream.start_tls(*way.tls)
        server = httpcore.AsyncHTTP11Connection(way.request.url.origin, stream)
        return await server.handle_async_request(way.request)
    except BaseException as error:
        if stream is not None:
            await stream.aclose()
        if (plain := plain_httpcore(error)) is not error:
            raise plain from error
        raise


async def connect(host: str, port: int, unix: str | None = None, *, faster: bool) -> AsyncioStream:
    """Connect to a host, given by name or address, or to a Unix socket.

    Args:
        host: name or address.
        port: TCP port.
        unix: path of a Unix socket, which replaces host and port.
        faster: what :func:`is_faster` says of the contexts that TLS will be started with.

    Raises:
        OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    if unix is not None:
        _, inbox = await loop.create_unix_connection(_Inbox, unix)
        return AsyncioStream(inbox, faster)
    sock = await happy_eyeballs.connect(host, port)
    try:
        if isinstance(loop, asyncio.BaseEventLoop) and faster:
            # Not on uvloop: libuv reports an error once, so that a reset behind bytes would be lost.
            _, inbox = await aiofastnet.create_connection(loop, _Inbox, sock=sock)
        else:
            _, inbox = await loop.create_connection(_Inbox, sock=sock)
    except BaseException:
        sock.close()
        raise
    return AsyncioStream(inbox, faster)


def is_faster(contexts: Iterable[ssl.SSLContext]) -> bool:
    """Whether aiofastnet is installed, and may speak TLS with each of these contexts.

    It uses the OpenSSL object inside a context, and bypasses what a subclass overrides, such as truststore's.
    """
    return aiofastnet is not None and all(  # type: ignore[redundant-expr]
        getattr(context.wrap_bio, "__module__", None) == "ssl" and context.sslobject_class.__module__ == "ssl"
        for context in contexts
    )


class _Inbox(asyncio.Protocol):
    """Buffers received bytes until they are read."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.transport: asyncio.Transport
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > _BUFFER:
            self.transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        self.eof = True
        self._wake_reader()
        # The write direction stays open for the transport's next owner; TLS cannot half-close.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self._error = exc
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end of the stream. Raises OSError if the stream broke."""
        while not self.data:
            if self._error is not None:
                raise self._error
            if self.eof:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self.data[:size])
        del self.data[:size]
        # Only below the bound: a transport may deliver more at once than is read here, and the buffer would grow with
        # each read. aiofastnet's TLS transport raises once it is closed.
        if len(self.data) <= _BUFFER and not self.transport.is_closing():
            self.transport.resume_reading()
        return data


class AsyncioStream(httpcore.AsyncNetworkStream):
    """A stream of the running event loop; the caller sets the deadline (``asyncio.timeout``)."""

    def __init__(self, inbox: _Inbox, faster: bool) -> None:
        self._inbox = inbox
        self._faster = faster
        self._taken = False

    @classmethod
    async def take(cls, stream: Any) -> tuple[AsyncioTransport, bytes]:
        """Take the transport from under a response's network stream, and the bytes behind the response head.

        The HTTP layer can no longer close it.
        """
        inner = stream.get_extra_info("asyncio_stream")
        assert isinstance(inner, cls)
        inner._taken = True
        inbox = inner._inbox
        if not inbox.transport.is_closing():
            inbox.transport.pause_reading()
        head = await stream.read(_BUFFER)  # what h11 has read too far; a taken stream adds nothing to it
        return AsyncioTransport(inbox.transport, eof=inbox.eof), head + bytes(inbox.data)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's own
        """At most ``max_bytes`` bytes; none at the end of the stream, or once it has been taken."""
        if self._taken:
            return b""
        async with asyncio.timeout(timeout):
            return await self._inbox.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it without waiting: a request head fits into any write buffer."""
        if self._inbox.transport.is_closing():
            raise httpcore.WriteError("the stream is closed")  # an answer may still be there to be read
        if buffer:
            self._inbox.transport.write(buffer)

    async def talk(self, dialogue: Dialogue) -> None:
        """Carry a dialogue out. Raises as the dialogue does, and HandshakeError if the stream ends."""
        data, size = next(dialogue)
        while True:
            await self.write(data)
            answer = b""
            while len(answer) < size:
                if not (part := await self.read(size - len(answer))):
                    raise stream_ended()
                answer += part
            try:
                data, size = dialogue.send(answer)
            except StopIteration:
                return

    async def aclose(self) -> None:
        """Drop the stream, unless it has been taken; an unresponsive server is not waited for."""
        if not self._taken:
            self._inbox.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncioStream:
        """Speak TLS from now on, on this same stream.

        Raises:
            OSError: the TLS handshake failed.
            HandshakeError: the server has chosen another protocol than HTTP/1.1.
        """
        inbox = self._inbox
        try:
            async with asyncio.timeout(timeout):
                if inbox.transport.is_closing():
                    raise ConnectionResetError("the server closed the stream before the TLS handshake")
                if inbox.data:
                    # Sent by a proxy, or by an attacker on the way: they would later pass for the server's answer.
                    raise ConnectionAbortedError("expected nothing before the TLS handshake, got plain-text bytes")
                with offering_http11(ssl_context):
                    secured = await self._secure(ssl_context, server_hostname)
            if secured is None:  # asyncio returns None if the peer has closed meanwhile
                raise ConnectionResetError("the server closed the stream during the TLS handshake")
            inbox.transport = secured
            check_http11(secured.get_extra_info("ssl_object"))
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _secure(self, context: ssl.SSLContext, name: str | None) -> asyncio.Transport | None:
        loop, inbox = asyncio.get_running_loop(), self._inbox
        if self._faster:  # on top of any loop's transport
            return await aiofastnet.start_tls(loop, inbox.transport, inbox, context, server_hostname=name)
        return await loop.start_tls(inbox.transport, inbox, context, server_hostname=name)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and httpx ask for; ``"asyncio_stream"`` gives this object through any wrapper."""
        if info == "asyncio_stream":
            return self
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._inbox.transport.get_extra_info(names.get(info, info))
