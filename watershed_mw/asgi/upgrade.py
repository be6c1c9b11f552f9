"""The upgrade object: a WebSocket request that waits for the application's decision."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, Self, Unpack, cast, overload

from ..connection.adopt import DetachedStreams
from ..connection.aio.api import AsyncConnection
from ..core.handshake.headers import check_outgoing
from ..core.handshake.negotiation import Agreement, Request
from ..errors import HandshakeError, LocalProtocolError
from ..http.adapt import as_request
from ..http.refusals import log_scope_refused
from ..http.write import check_status
from ..options import ConnectionOptions, check_options
from .backends import Answer, backend_of
from .channels import App, Channels, Fields, Receive, Scope, Send, Stage
from .policy import UpgradePolicy
from .servers import TEST_CLIENT, ASGIServer, with_handshake

__all__ = ["ASGIUpgrade"]


class ASGIUpgrade:
    """An upgrade request that waits for the application's decision."""

    # No __dict__: an instance lives as long as its connection.
    __slots__ = (
        "_as_request",
        "_backend",
        "_channels",
        "_connection",
        "_key",
        "_request",
        "_scope",
        "policy",
    )

    def __init__(self, policy: UpgradePolicy, scope: Scope, receive: Receive, send: Send) -> None:
        self.policy = policy
        self._scope = scope
        self._channels = Channels(receive, send)
        self._backend = backend_of(policy, scope, self._channels)
        self._request: Request | None = None
        self._key = ""
        self._connection: AsyncConnection | None = None
        self._as_request: Any = scope

    def __deepcopy__(self, memo: object) -> Self:
        """The same object: applications copy scopes, but a request can be answered only once."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: applications pickle scopes, and the process that unpickles one cannot answer the request."""
        return type(None), ()

    @property
    def accepted(self) -> bool:
        """Whether the 101 has been sent."""
        return self._channels.stage is Stage.ACCEPTED

    @property
    def refused(self) -> bool:
        """Whether the request has been refused."""
        return self._channels.stage is Stage.REFUSED

    @property
    def over(self) -> bool:
        """Whether the client has disconnected or was sent a Close, so that :class:`ConnectionClosed` is expected."""
        connection = self._connection
        return connection is None or not connection.sending

    @property
    def native(self) -> bool:
        """Whether frames bypass ASGI messages after the accept."""
        return self._backend.native

    @property
    def server(self) -> ASGIServer:
        """The server and its limitations."""
        return self._backend.server

    @property
    def key(self) -> str:
        """The request's Sec-WebSocket-Key, until it is answered; empty over HTTP/2."""
        return self._key

    @property
    def request(self) -> Request:
        """The request, checked."""
        # Dropped after the answer: a connection may live for hours, and the scope holds the request as well.
        return self._request or as_request(self._scope)

    def check(self) -> None:
        """Check the request. Raises :class:`HandshakeError`."""
        request: Any = self._scope
        if self.server is TEST_CLIENT:
            request = with_handshake(as_request(request))
        self._request, self._key = self.policy.shed.check(request)

    def through(self, receive: Receive, send: Send, request: Any = None) -> Self:
        """Send the answer through these channels instead of the middleware's own; returns this object.

        With the handler's own channels, every middleware in between sees the answer and can add headers to it:
        ``scope["watershed"].through(receive, send)``, or ``.through(websocket.receive, websocket.send)`` with
        Starlette. :class:`~watershed_mw.starlette.WatershedRoute` does this itself.

        Args:
            receive, send: the handler's ASGI channels.
            request: the connection's ``request``; by default the scope.
        """
        self._channels.receive, self._channels.send = receive, send
        self._as_request = self._scope if request is None else request
        return self

    @overload
    async def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: Literal[False] = False,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncConnection: ...

    @overload
    async def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), *, detached: Literal[True]
    ) -> socket.socket | DetachedStreams: ...

    async def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: bool = False,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncConnection | socket.socket | DetachedStreams:
        """Answer with the 101.

        Args:
            protocols: supported subprotocols; the middleware's by default.
            headers: additional header fields of the response.
            detached: return the raw stream, which the caller then owns: the non-blocking ``socket.socket`` or, for
                TLS, a (StreamReader, StreamWriter) pair. Both have ``.head``.
            options: options of this connection, such as ``ping_interval=5.0``.

        Returns:
            the connection, or the raw stream.

        Raises:
            HandshakeError: no common subprotocol; the client has been refused.
            ConnectionClosed: the client has disconnected.
            LocalProtocolError: the request is already answered.
            UnsupportedServerError: the server does not support this; no answer has been sent.
            TypeError, ValueError: an option is unknown or has an invalid value, or a header field is invalid; no answer
                has been sent.
        """
        self._check_unanswered("accept")
        check_options(options, ConnectionOptions.__optional_keys__, "accept()")
        headers = list(headers)
        check_outgoing(headers)
        try:
            agreement, _ = self.policy.shed.agree(self.request, self._key, protocols)
        except HandshakeError as error:
            await self.refuse(error)
            raise
        if not detached:
            return await self._accept(agreement, headers, options)
        try:
            return await self._backend.detach(self._answer(agreement, headers), options)
        except HandshakeError as error:
            await self.refuse(error)
            raise

    async def accept_as(
        self, subprotocol: str | None, headers: Fields = (), **options: Unpack[ConnectionOptions]
    ) -> AsyncConnection:
        """As :meth:`accept`, with a subprotocol, or none, that another server has chosen. Raises as that."""
        self._check_unanswered("accept")
        headers = list(headers)
        check_outgoing(headers)
        return await self._accept(Agreement(subprotocol), headers, options)

    async def _accept(
        self, agreement: Agreement, headers: list[tuple[str, str]], options: ConnectionOptions
    ) -> AsyncConnection:
        answer = self._answer(agreement, headers)
        self._connection = await self._backend.accept(answer, options, self._as_request)
        return self._connection

    async def hand_over(self, answer: list[tuple[str, str]], headers: Fields, relay: Callable[[Any], Any]) -> None:
        """Answer with a 101 received from another server, and hand the raw stream to a relay (proxy mode).

        Args:
            answer: header fields of the opening handshake, such as ``Sec-WebSocket-Accept``.
            headers: the other header fields.
            relay: called with the socket or the streams; the relay that it returns is closed when uvicorn stops.

        Raises:
            UnsupportedServerError: the server has no raw stream, see :attr:`native`; no answer has been sent.
            ConnectionClosed: the client has disconnected.
        """
        self._check_unanswered("hand_over")
        headers = list(headers)
        check_outgoing(headers)
        subprotocol = next((value for name, value in answer if name.lower() == "sec-websocket-protocol"), None)
        await self._backend.hand_over(self._answer(Agreement(subprotocol), headers), answer, relay)

    def _answer(self, agreement: Agreement, headers: list[tuple[str, str]]) -> Answer:
        return Answer(agreement, headers, partial(self._send_answer, agreement, headers))

    async def _send_answer(self, agreement: Agreement, headers: list[tuple[str, str]]) -> None:
        await self.take_connect()
        await self._channels.accept(agreement.subprotocol, headers)
        self._request, self._key = None, ""

    def _check_unanswered(self, what: str) -> None:
        if self.accepted or self.refused:
            raise LocalProtocolError(f"expected one answer to a request, got {what} after another one")

    async def reject(self, status: int, body: bytes | AsyncIterable[bytes] = b"", headers: Fields = ()) -> None:
        """Answer with an HTTP response instead of the 101.

        Args:
            status: 200 to 599; a server without the ``websocket.http.response`` extension sends 403.
            body: response body, complete or in parts.
            headers: header fields of the response.

        Raises:
            LocalProtocolError: the request is already answered.
            ValueError: the status or a header field is invalid; no answer has been sent.
        """
        self._check_unanswered("reject")
        check_status(status)
        headers = list(headers)
        check_outgoing(headers)
        parts = None if isinstance(body, bytes) else aiter(body)
        # The first part comes first: if the body raises there, no answer has started, and the server sends a 500.
        first = cast(bytes, body) if parts is None else await anext(parts, b"")
        await self.take_connect()
        if "websocket.http.response" in (self._scope.get("extensions") or {}):
            await self._channels.respond(status, headers, first, parts)
        else:
            await self._channels.close()

    async def refuse(self, error: HandshakeError, *, log: bool = True) -> None:
        """Refuse with the status, header fields and body of ``error``, and log it unless the caller does."""
        if log:
            log_scope_refused(self._scope, error)
        fields = self._backend.response_fields(error)
        await self.reject(error.status, error.body, [*fields, ("content-type", "text/plain; charset=utf-8")])

    def abort(self) -> None:
        """Reset the client's connection in the middle of an answer, or leave that to the server where it must be."""
        self._backend.reset()

    async def wait_disconnected(self) -> None:
        """Wait until the client disconnects, or the server refuses it; between :meth:`take_connect` and the answer.

        Cancel it before the answer: only one task may receive at a time.
        """
        await self._channels.wait_disconnected()

    async def take_connect(self) -> None:
        """Receive ``websocket.connect`` unless the application has. Raises ConnectionClosed on a disconnect."""
        if not self._backend.connect_received:
            await self._channels.take_connect()

    def serve(self, app: App) -> Awaitable[None]:
        """Run the application, and close what it leaves open."""
        return self._backend.serve(app, self._scope, self._channels)
