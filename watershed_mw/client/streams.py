"""The streams under the opening handshake: what httpcore speaks HTTP over, and the connection takes over afterwards.

httpcore is given its network by us, as its documentation provides for, for two reasons: the data path shall be the
event loop's own transport, or the bare socket, with nothing of HTTP around it; and each stream has one deadline for all
that is waited for, however slowly a server trickles. Errors of the network stay what they are: OSErrors. Where the
package aiofastnet is installed TLS is its, which costs less, and on asyncio's own loops plain streams are as well.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any, cast

import httpcore

try:
    import aiofastnet
except ImportError:
    aiofastnet = None  # type: ignore[assignment]

from ..connection.adopt import AsyncioTransport
from ..errors import HandshakeError, UnsupportedServerError
from .alpn import check_http11, offering_http11
from .happy_eyeballs import connect_first, connect_first_blocking, resolve, resolve_blocking
from .socks import Dialogue

__all__ = [
    "AsyncioStream",
    "ThreadStream",
    "connect_asyncio",
    "connect_threads",
    "is_faster",
]

# What the HTTP layer may hold of a server that floods before the handshake is over.
_BUFFER = 64 * 2**10


def _stream_ended() -> HandshakeError:
    return HandshakeError("expected the SOCKS proxy to connect, got the end of its stream", status=502, body=b"")


class _Inbox(asyncio.Protocol):
    """Keeps what comes until somebody asks for it."""

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
        # Whoever takes the transport decides what becomes of the other direction, where there is one: TLS has none.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self._error = exc
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, size: int) -> bytes:
        """Some bytes, empty at the end of the stream. Raises OSError where it broke."""
        while not self.data:
            if self._error is not None:
                raise self._error
            if self.eof:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self.data[:size])
        del self.data[:size]
        # Only below the mark: a transport may bring more at once than is asked for here, and would get ahead a bit each
        # time. One of aiofastnet's with TLS cannot be asked any more once it has closed.
        if len(self.data) <= _BUFFER and not self.transport.is_closing():
            self.transport.resume_reading()
        return data


class AsyncioStream(httpcore.AsyncNetworkStream):
    """A stream of the running event loop; whoever waits for it sets the deadline (``asyncio.timeout``)."""

    def __init__(self, inbox: _Inbox, faster: bool) -> None:
        self._inbox = inbox
        self._faster = faster
        self._taken = False

    @classmethod
    async def take(cls, stream: Any) -> tuple[AsyncioTransport, bytes]:
        """Take the transport from under a response's network stream, and what HTTP has read past the response head.

        What the HTTP layer closes from now on stays open.
        """
        inner = stream.get_extra_info("asyncio_stream")
        assert isinstance(inner, cls)
        inner._taken = True
        inbox = inner._inbox
        if not inbox.transport.is_closing():
            inbox.transport.pause_reading()
        head = await stream.read(_BUFFER)  # this one has nothing to add any more
        return AsyncioTransport(inbox.transport, eof=inbox.eof), head + bytes(inbox.data)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's own
        """Some bytes; empty at the end of the stream, or once it has been taken."""
        if self._taken:
            return b""
        async with asyncio.timeout(timeout):
            return await self._inbox.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it all; there is one request head to write, which waits for nothing."""
        if self._inbox.transport.is_closing():
            raise httpcore.WriteError("the stream is closed")  # there may be an answer to read all the same
        if buffer:
            self._inbox.transport.write(buffer)

    async def talk(self, dialogue: Dialogue) -> None:
        """Write and read as a dialogue asks, to its end. Raises as that, and HandshakeError where the stream ends."""
        data, size = next(dialogue)
        while True:
            await self.write(data)
            answer = b""
            while len(answer) < size:
                if not (part := await self.read(size - len(answer))):
                    raise _stream_ended()
                answer += part
            try:
                data, size = dialogue.send(answer)
            except StopIteration:
                return

    async def aclose(self) -> None:
        """Drop the stream, unless it has been taken; nobody waits for a server that does not let go."""
        if not self._taken:
            self._inbox.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncioStream:
        """Speak TLS from now on."""
        inbox = self._inbox
        try:
            async with asyncio.timeout(timeout):
                if inbox.transport.is_closing():
                    raise ConnectionResetError("the server has gone before the TLS handshake")
                if inbox.data:
                    # A proxy's, or somebody's on the way to it: later they would be taken for the server's answer.
                    raise ConnectionAbortedError("expected nothing before the TLS handshake, got bytes without TLS")
                with offering_http11(ssl_context):
                    secured = await self._secure(ssl_context, server_hostname)
            if secured is None:  # so asyncio has it when the peer has gone meanwhile
                raise ConnectionResetError("the server has gone during the TLS handshake")
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
        """What httpcore and httpx ask for; ``"asyncio_stream"`` gives this object, whatever is around it."""
        if info == "asyncio_stream":
            return self
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._inbox.transport.get_extra_info(names.get(info, info))


def is_faster(contexts: Iterable[ssl.SSLContext]) -> bool:
    """Whether aiofastnet is there, and may speak TLS with each of these contexts.

    It takes what OpenSSL knows of a context, and passes by what a subclass does in its own way, as truststore's does.
    """
    return aiofastnet is not None and all(  # type: ignore[redundant-expr]
        getattr(context.wrap_bio, "__module__", None) == "ssl" and context.sslobject_class.__module__ == "ssl"
        for context in contexts
    )


async def connect_asyncio(host: str, port: int, unix: str | None = None, *, faster: bool) -> AsyncioStream:
    """Connect to a host, by name or by address of either kind, or to a Unix socket.

    Args:
        host: name or address.
        port: TCP port.
        unix: path of a Unix socket, in place of the two.
        faster: what :func:`is_faster` says of the contexts that TLS will be started with.

    Raises:
        OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    if unix is not None:
        _, inbox = await loop.create_unix_connection(_Inbox, unix)
        return AsyncioStream(inbox, faster)
    sock = await connect_first(await resolve(host, port))
    try:
        if isinstance(loop, asyncio.BaseEventLoop) and faster:
            # Not on uvloop: libuv tells a reader of an error once, so that a reset behind bytes would go unnoticed.
            _, inbox = await aiofastnet.create_connection(loop, _Inbox, sock=sock)
        else:
            _, inbox = await loop.create_connection(_Inbox, sock=sock)
    except BaseException:
        sock.close()
        raise
    return AsyncioStream(inbox, faster)


class ThreadStream(httpcore.NetworkStream):
    """A blocking stream on a socket with one deadline for everything.

    Args:
        sock: plain or TLS socket.
        deadline: time of ``time.monotonic()``; None for no limit.
    """

    def __init__(self, sock: socket.socket, deadline: float | None) -> None:
        self._socket = sock
        self._deadline = deadline

    def _wait_at_most(self, timeout: float | None) -> None:
        left = _left(self._deadline)
        self._socket.settimeout(left if timeout is None or (left is not None and left < timeout) else timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; empty at the end of the stream."""
        self._wait_at_most(timeout)
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write it all."""
        if not buffer:
            return  # httpcore's empty body, which would find out that the server has gone, and keep it from read()
        self._wait_at_most(timeout)
        try:
            self._socket.sendall(buffer)
        except ConnectionError as error:
            raise httpcore.WriteError(error) from error  # there may be an answer to read all the same

    def talk(self, dialogue: Dialogue) -> None:
        """As :meth:`AsyncioStream.talk`."""
        data, size = next(dialogue)
        while True:
            self.write(data)
            answer = b""
            while len(answer) < size:
                if not (part := self.read(size - len(answer))):
                    raise _stream_ended()
                answer += part
            try:
                data, size = dialogue.send(answer)
            except StopIteration:
                return

    def close(self) -> None:
        """Close the socket, unless it has been taken."""
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> ThreadStream:
        """Speak TLS from now on.

        Raises:
            OSError: the TLS handshake failed.
            HandshakeError: the server has chosen another protocol than HTTP/1.1.
            UnsupportedServerError: this stream is TLS already, inside of which a socket cannot speak it.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self.close()
            raise UnsupportedServerError(
                "expected a proxy that is spoken to without TLS (http://), as a blocking socket has no TLS inside of "
                "TLS: use such a proxy, or the asyncio flavour"
            )
        self._wait_at_most(timeout)
        try:
            # In two steps, so that whatever interrupts the handshake leaves us the socket to close.
            with offering_http11(ssl_context):
                tls = ssl_context.wrap_socket(
                    self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
                )
            self._socket = tls
            tls.do_handshake()
            check_http11(tls)
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and httpx ask for."""
        if info == "socket":
            return self._socket
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        if info == "client_addr":
            return self._socket.getsockname()
        return self._socket.getpeername() if info == "server_addr" else None


def connect_threads(host: str, port: int, unix: str | None = None, *, deadline: float | None = None) -> ThreadStream:
    """Connect as :func:`connect_asyncio`, until ``deadline``, which holds for the stream as well. Raises OSError."""
    if unix is not None:
        return ThreadStream(_connected(unix, deadline), deadline)
    return ThreadStream(connect_first_blocking(resolve_blocking(host, port), deadline), deadline)


def _connected(unix: str, deadline: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_left(deadline))
        sock.connect(unix)
    except BaseException:
        sock.close()
        raise
    return sock


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline. Raises TimeoutError when there are none."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for the opening handshake is over")
    return left
