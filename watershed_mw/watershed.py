"""The factory: makes connections from upgrade requests and 101 responses, on sockets and asyncio transports.

Requests and responses are given parsed or as raw heads; :mod:`watershed_mw.core.handshake.negotiation` checks them. The
transport determines the flavour of the returned connection.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, Unpack, overload

from .connection.adopt import (
    AsyncioTransport,
    AsyncTransportLike,
    BlockingTransport,
    DetachedStreams,
    drain_request,
    way_of,
)
from .connection.aio.api import AsyncConnection
from .connection.threads.connection import ThreadConnection
from .core.handshake.extensions import DeflateOptions, make_offer
from .core.handshake.headers import Headers, HeadersLike
from .core.handshake.negotiation import (
    Agreement,
    Request,
    check_request,
    check_response,
    check_subprotocols,
    negotiate,
    offered_subprotocols,
    select_subprotocol,
)
from .core.states import Role
from .errors import ConnectionClosed, HandshakeError, UnsupportedServerError
from .http.adapt import as_request, as_response
from .http.parse import read_request_head, read_response_head
from .http.target import host_and_target
from .http.write import write_head, write_refusal, write_response
from .options import Options, Settings
from .sockets.httpx_stream import NetworkStreamTransport, is_network_stream, stream_of, take_socket

__all__ = [
    "Watershed",
]

Fields: TypeAlias = Iterable[tuple[str, str]]

# For an offer that the application wrote itself while compression is off in these settings.
_DEFLATE = DeflateOptions()


class Watershed:
    """Accepts and opens WebSocket connections (RFC 6455) on sockets and asyncio transports.

    One object serves any number of connections, in any thread. It takes only keyword options, all with safe defaults:
    see :class:`~watershed_mw.Options` and :class:`~watershed_mw.Limits`.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option has an invalid value.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self._settings = Settings.of(options)

    @property
    def settings(self) -> Settings:
        """The options, checked and with defaults filled in."""
        return self._settings

    # --- server --------------------------------------------------------------------------------------

    def check(self, request: Any) -> tuple[Request, str]:
        """Check an upgrade request (RFC 6455 section 4.2.1) without answering it.

        Returns:
            the request and its Sec-WebSocket-Key.

        Raises:
            HandshakeError: with status 400, 403 (origin), 405 or 426.
        """
        parsed = as_request(request)
        return parsed, check_request(parsed, self._settings.origins)

    def agree(
        self, request: Request, key: str, protocols: Sequence[str] | None = None
    ) -> tuple[Agreement, list[tuple[str, str]]]:
        """Choose subprotocol and compression, and return them with the header fields of the 101.

        Raises:
            HandshakeError: no common subprotocol, or a malformed offer; status 400.
        """
        supported = self._settings.protocols if protocols is None else check_subprotocols(protocols)
        subprotocol = select_subprotocol(offered_subprotocols(request.headers), supported)
        return negotiate(request, key, subprotocol=subprotocol, deflate=self._settings.deflate)

    @overload
    def accept(
        self,
        request: Any,
        sock: socket.socket,
        head: bytes = b"",
        detached: Literal[False] = False,
        protocols: Sequence[str] | None = None,
        *,
        headers: Fields = (),
        refuse: bool = True,
    ) -> ThreadConnection: ...

    @overload
    def accept(
        self,
        request: Any,
        sock: AsyncTransportLike,
        head: bytes = b"",
        detached: Literal[False] = False,
        protocols: Sequence[str] | None = None,
        *,
        headers: Fields = (),
        refuse: bool = True,
    ) -> AsyncConnection: ...

    @overload
    def accept(
        self,
        request: Any,
        sock: socket.socket,
        head: bytes = b"",
        *,
        detached: Literal[True],
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        refuse: bool = True,
    ) -> socket.socket: ...

    @overload
    def accept(
        self,
        request: Any,
        sock: AsyncTransportLike,
        head: bytes = b"",
        *,
        detached: Literal[True],
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        refuse: bool = True,
    ) -> socket.socket | DetachedStreams: ...

    def accept(
        self,
        request: Any,
        sock: socket.socket | AsyncTransportLike,
        head: bytes = b"",
        detached: bool = False,
        protocols: Sequence[str] | None = None,
        *,
        headers: Fields = (),
        refuse: bool = True,
    ) -> ThreadConnection | AsyncConnection | socket.socket | DetachedStreams:
        """Answer an upgrade request with the 101, and return the connection (RFC 6455 section 4.2.2).

        Args:
            request: raw request head, WSGI environ, ASGI scope, object with ``headers`` and a method
                (a handler of ``http.server``, a request of a web framework), or mapping of headers.
            sock: connected socket or TLS socket; or, with a running event loop, an asyncio transport,
                a StreamWriter, or a (StreamReader, StreamWriter) pair.
            head: bytes already read past the request head, except those that a StreamReader, or the ``rfile`` of an
                ``http.server`` handler, still holds.
            detached: return the raw socket itself, which first returns the bytes of ``head``.
            protocols: supported subprotocols; the factory's by default.
            headers: additional header fields of the response, such as ``("Set-Cookie", ...)``.
            refuse: send a refusal on ``sock`` before raising it.

        Returns:
            a :class:`ThreadConnection` for a socket, an :class:`AsyncConnection` for an asyncio
            transport; when ``detached`` a ``socket.socket``, or for an asyncio transport with TLS a
            (StreamReader, StreamWriter) pair.

        Raises:
            HandshakeError: the request was refused; only the refusal has been written.
            ValueError: a header field or subprotocol cannot be sent.
            ConnectionClosed: the peer closed the connection before the answer could be written.
            UnsupportedServerError: ``detached`` with a transport that has no socket.
        """
        way = way_of(sock)
        method = "GET"
        try:
            if isinstance(request, (bytes, bytearray, memoryview)):
                request, early = read_request_head(bytes(request))
                head = early + head
            head += drain_request(request)
            method = as_request(request).method
            parsed, key = self.check(request)
            agreement, answer = self.agree(parsed, key, protocols)
        except HandshakeError as error:
            if refuse:
                with contextlib.suppress(ConnectionClosed):  # a peer that has closed needs no response
                    way.write(write_refusal(error, method))
            raise
        response = write_response(101, [*answer, *headers])
        if detached:
            way.check_detachable()
            return way.detach(head, response)
        way.write(response)
        return way.connection(Role.SERVER, agreement, self._settings.limits, self._settings.trace, request, head)

    # --- client --------------------------------------------------------------------------------------

    @staticmethod
    def generate_key() -> str:
        """A Sec-WebSocket-Key: base64 of 16 random bytes (RFC 6455 section 4.1, point 7)."""
        return base64.b64encode(os.urandom(16)).decode("ascii")

    def request_headers(self, key: str, protocols: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """The header fields of a client's upgrade request, except ``Host`` (section 4.1).

        Args:
            key: a key of :meth:`generate_key`, which :meth:`connect` needs as well.
            protocols: subprotocols to offer, in order of preference; default those of the factory.
        """
        offered = self._settings.protocols if protocols is None else check_subprotocols(protocols)
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key),
            ("Sec-WebSocket-Version", "13"),
        ]
        if offered:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(offered)))
        if self._settings.deflate is not None:
            headers.append(("Sec-WebSocket-Extensions", make_offer(self._settings.deflate)))
        return headers

    def request_head(
        self, url: str, key: str, protocols: Sequence[str] | None = None, *, headers: Fields = ()
    ) -> bytes:
        """The raw head of an upgrade request for ``url`` (section 4.1).

        Args:
            url: ``ws://``, ``wss://``, ``http://`` or ``https://`` URL.
            key: a key of :meth:`generate_key`.
            protocols: subprotocols to offer; default those of the factory.
            headers: further header fields.

        Raises:
            ValueError: not such a URL, or a header field that cannot be sent.
        """
        host, target = host_and_target(url)
        return write_head(f"GET {target} HTTP/1.1", [("Host", host), *self.request_headers(key, protocols), *headers])

    @overload
    def connect(
        self,
        response: Any,
        sock: socket.socket,
        head: bytes = b"",
        key: str = "",
        detached: Literal[False] = False,
        *,
        request: bytes | HeadersLike | None = None,
    ) -> ThreadConnection: ...

    @overload
    def connect(
        self,
        response: Any,
        sock: AsyncTransportLike,
        head: bytes = b"",
        key: str = "",
        detached: Literal[False] = False,
        *,
        request: bytes | HeadersLike | None = None,
    ) -> AsyncConnection: ...

    @overload
    def connect(
        self,
        response: Any,
        sock: socket.socket,
        head: bytes = b"",
        key: str = "",
        *,
        detached: Literal[True],
        request: bytes | HeadersLike | None = None,
    ) -> socket.socket: ...

    @overload
    def connect(
        self,
        response: Any,
        sock: AsyncTransportLike,
        head: bytes = b"",
        key: str = "",
        *,
        detached: Literal[True],
        request: bytes | HeadersLike | None = None,
    ) -> socket.socket | DetachedStreams: ...

    @overload
    def connect(
        self,
        response: Any,
        sock: None = None,
        head: bytes = b"",
        key: str = "",
        detached: bool = False,
        *,
        request: bytes | HeadersLike | None = None,
    ) -> Any: ...

    def connect(
        self,
        response: Any,
        sock: Any = None,
        head: bytes = b"",
        key: str = "",
        detached: bool = False,
        *,
        request: bytes | HeadersLike | None = None,
    ) -> ThreadConnection | AsyncConnection | socket.socket | DetachedStreams:
        """Check a server's 101, and return the client's connection (RFC 6455 section 4.1).

        ::

            with client.stream("GET", url, headers=shed.request_headers(shed.generate_key())) as response:
                with shed.connect(response) as conn:
                    ...

        Args:
            response: raw response head, object with ``status_code`` and ``headers`` such as
                ``httpx.Response``, or (status, headers).
            sock: as in :meth:`accept`, or a network stream of httpx; may be left out for a streamed httpx response,
                which has its own. An asynchronous response is closed with the connection, a blocking one immediately.
            head: bytes already read past the response head.
            key: the Sec-WebSocket-Key that was sent; default that of the response's request.
            detached: return the raw socket itself.
            request: the request head, or its header fields, as sent; the response may choose only from their offers.
                The default is the request of an httpx response; without one, the factory's subprotocols count as
                offered, and no extension does.

        Returns:
            as :meth:`accept`: a response of ``httpx.Client`` counts as a socket, one of ``httpx.AsyncClient`` as a
            transport.

        Raises:
            HandshakeError: the response is no valid upgrade; nothing has been written. It has the response's status
                and, for httpx, the ``response`` itself, with its body unread.
            TypeError: ``sock`` is not a transport, or missing.
            UnsupportedServerError: ``detached`` with a transport that has no socket, or a blocking stream without one.
        """
        if isinstance(response, (bytes, bytearray, memoryview)):
            response, early = read_response_head(bytes(response))
            head = early + head
        if request is None:
            request = getattr(getattr(response, "request", None), "headers", None)
        offered = Headers() if request is None else _offered(request)
        settings = self._settings
        try:
            agreement = check_response(
                as_response(response),
                key or offered.get("sec-websocket-key"),
                offered=offered,
                protocols=settings.protocols if request is None else (),
                deflate=settings.deflate or _DEFLATE,
            )
        except HandshakeError as error:
            if hasattr(response, "extensions"):
                error.response = response
                error.headers = tuple(Headers(response.headers))
            raise
        way, early = _transport_of(response, sock, detached)
        head = early + head
        if detached:
            way.check_detachable()
            return way.detach(head)
        return way.connection(Role.CLIENT, agreement, settings.limits, settings.trace, response, head)


def _offered(request: bytes | HeadersLike) -> Headers:
    return read_request_head(request)[0].headers if isinstance(request, bytes) else Headers(request)


def _transport_of(response: Any, sock: Any, detached: bool) -> tuple[BlockingTransport | AsyncioTransport, bytes]:
    """The transport for the connection, and bytes already read from it."""
    if isinstance(sock, AsyncioTransport):
        return sock, b""
    if sock is not None and not is_network_stream(sock):
        return way_of(sock), b""
    stream = stream_of(response) if sock is None else sock
    if hasattr(stream, "aclose"):
        if detached:
            raise UnsupportedServerError(
                "expected a stream with a socket for detached, got an async one: use httpx.Client"
            )
        return AsyncioTransport(NetworkStreamTransport(stream, getattr(response, "aclose", None))), b""
    taken, early = take_socket(stream)
    if hasattr(response, "close"):
        response.close()  # frees the connection's slot in the client's pool
    return BlockingTransport(taken), early
