"""asyncio streams for the opening handshake: connect, start TLS, and hand the transport over to the connection.

httpcore speaks HTTP over these streams, through its documented interface for network streams. So the connection gets
the event loop's own transport, with no HTTP layer around it, and network errors stay OSErrors. The caller sets a single
deadline for everything (``asyncio.timeout``), which a server that sends slowly cannot extend.

If the package aiofastnet is installed, it speeds up TLS, and plain streams on asyncio's own loops.
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
from ..route import ConnectPlan, check_tunnel
from ..socks import Dialogue, stream_ended

__all__ = ["AsyncioStream", "connect", "send", "supports_aiofastnet"]

# Bytes buffered for the HTTP layer before reading is paused: a server could flood it before the handshake ends.
_BUFFER = 64 * 2**10


async def send(plan: ConnectPlan) -> httpcore.Response:
    """Send a request on a new stream, and return the response, whose ``network_stream`` is that stream.

    Raises:
        OSError: the server or its proxy cannot be reached, or the stream broke.
        HandshakeError: the response is not HTTP (502), or the proxy refused.
        ValueError: HTTP cannot carry the request.
    """
    stream: AsyncioStream | None = None
    try:
        contexts = [step[0] for step in (plan.proxy_tls, plan.tls) if step is not None]
        stream = await connect(plan.host, plan.port, plan.unix, faster=supports_aiofastnet(contexts))
        if plan.proxy_tls is not None:
            await stream.start_tls(*plan.proxy_tls)
        if plan.socks is not None:
            await stream.talk(plan.socks)
        if plan.tunnel is not None:
            proxy = httpcore.AsyncHTTP11Connection(plan.tunnel.url.origin, stream)
            check_tunnel(await proxy.handle_async_request(plan.tunnel))
        if plan.tls is not None:
            await stream.start_tls(*plan.tls)
        server = httpcore.AsyncHTTP11Connection(plan.request.url.origin, stream)
        return await server.handle_async_request(plan.request)
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
        faster: the result of :func:`supports_aiofastnet` for the contexts that TLS will use.

    Raises:
        OSError: the host cannot be reached.
    """
    loop = asyncio.get_running_loop()
    if unix is not None:
        _, inbox = await loop.create_unix_connection(_Inbox, unix)
        return AsyncioStream(inbox, faster)
    sock = await happy_eyeballs.connect(host, port)
    try:
        if isinstance(loop, asyncio.BaseEventLoop) and faster:
            # Not on uvloop: libuv reports an error only once, so a reset that follows bytes would be lost.
            _, inbox = await aiofastnet.create_connection(loop, _Inbox, sock=sock)
        else:
            _, inbox = await loop.create_connection(_Inbox, sock=sock)
    except BaseException:
        sock.close()
        raise
    return AsyncioStream(inbox, faster)


def supports_aiofastnet(contexts: Iterable[ssl.SSLContext]) -> bool:
    """Whether aiofastnet is installed and supports all of these contexts.

    It uses the OpenSSL object inside a context, which bypasses the overrides of a subclass, such as truststore's.
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
        # Keep the write direction open for the transport's next owner; TLS cannot half-close.
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
        # Only below the bound: a transport may deliver more at once than this read took, and the buffer would grow with
        # each read. aiofastnet's TLS transport raises if it is closed.
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
        """Take the transport away from a response's network stream, with the bytes that follow the response head.

        The HTTP layer can no longer close it.
        """
        inner = stream.get_extra_info("asyncio_stream")
        assert isinstance(inner, cls)
        inner._taken = True
        inbox = inner._inbox
        if not inbox.transport.is_closing():
            inbox.transport.pause_reading()
        head = await stream.read(_BUFFER)  # what h11 read past the head; a taken stream adds nothing to it
        return AsyncioTransport(inbox.transport, eof=inbox.eof), head + bytes(inbox.data)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's own
        """At most ``max_bytes`` bytes; none at the end of the stream, or once it has been taken."""
        if self._taken:
            return b""
        async with asyncio.timeout(timeout):
            return await self._inbox.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write without waiting: a request head fits into any write buffer."""
        if self._inbox.transport.is_closing():
            raise httpcore.WriteError("the stream is closed")  # httpcore then reads a response that may have arrived
        if buffer:
            self._inbox.transport.write(buffer)

    async def talk(self, dialogue: Dialogue) -> None:
        """Carry out a dialogue. Raises as the dialogue does, and HandshakeError if the stream ends."""
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
        """Abort the transport, unless it has been taken: an orderly close could wait for an unresponsive server."""
        if not self._taken:
            self._inbox.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncioStream:
        """Start TLS on this stream.

        Raises:
            OSError: the TLS handshake failed.
            HandshakeError: the server chose a protocol other than HTTP/1.1.
        """
        inbox = self._inbox
        try:
            async with asyncio.timeout(timeout):
                if inbox.transport.is_closing():
                    raise ConnectionResetError("the server closed the stream before the TLS handshake")
                if inbox.data:
                    # From a proxy or a man in the middle: they would later be taken for the server's response.
                    raise ConnectionAbortedError("expected nothing before the TLS handshake, got plain-text bytes")
                with offering_http11(ssl_context):
                    secured = await self._secure(ssl_context, server_hostname)
            if secured is None:  # asyncio returns None if the peer closed during the handshake
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
        """Transport details for httpcore and httpx; ``"asyncio_stream"`` gives this object through any wrapper."""
        if info == "asyncio_stream":
            return self
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._inbox.transport.get_extra_info(names.get(info, info))
