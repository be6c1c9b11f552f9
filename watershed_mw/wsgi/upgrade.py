"""A WSGI request that may become a WebSocket connection."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Unpack, cast, overload

from ..connection.adopt import BlockingTransport
from ..connection.limit import ConnectionLimit, Place
from ..connection.threads.connection import ThreadConnection
from ..core.handshake.negotiation import Request
from ..core.states import Role
from ..errors import ConnectionClosed, HandshakeError, LocalProtocolError
from ..http.refusals import log_environ_refused
from ..http.write import write_response
from ..options import ConnectionOptions, Options, check_options
from ..runtime.exhaustion import is_exhausted, unavailable
from ..runtime.loop_thread import check_background_loop
from ..watershed import Watershed
from .hijack import Hijack
from .responses import (
    Environ,
    Fields,
    Rejection,
    StartResponse,
    as_answer,
    closed_class,
)
from .servers import WSGIServer, hijack, release_environ, server_of
from .shutdown import watch_process

__all__ = ["EmptyBody", "WSGIUpgrade"]


class EmptyBody:
    """The empty body of an upgraded request; the server closes it when the request is over."""

    def __init__(self, upgrade: WSGIUpgrade) -> None:
        self._upgrade = upgrade

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Release the server's side of the request."""
        self._upgrade.close_dummy()
        self._upgrade.forget_server()


def _check_resources() -> None:
    """Refuse a connection that could not be served after its 101. Raises HandshakeError."""
    try:
        check_background_loop()
    except (OSError, RuntimeError, MemoryError) as error:
        raise unavailable(error) from error


class WSGIUpgrade:
    """An upgrade request that waits for the application's decision.

    Attributes:
        accepted: whether the 101 has been sent.
        failed: whether the application then answered with a 5xx status.
        sent: the application's header fields in the 101.
    """

    __slots__ = (
        "_connection",
        "_connection_limit",
        "_environ",
        "_held",
        "_options",
        "_place",
        "_shed",
        "_start_response",
        "_taken",
        "_write",
        "accepted",
        "failed",
        "sent",
        "started_body",
    )

    def __init__(
        self,
        shed: Watershed,
        options: Options,
        connection_limit: ConnectionLimit,
        environ: Environ,
        start_response: StartResponse,
    ) -> None:
        self.accepted = False
        self.failed = False
        self.sent: list[tuple[str, str]] = []
        self._held: Callable[[], Any] | None = None
        self._write: Any = None
        self.started_body = False
        self._shed = shed
        self._options = options
        self._connection_limit = connection_limit
        self._place: Place | None = None
        self._environ = environ
        self._start_response: StartResponse | None = start_response
        self._taken: Hijack | None = None
        self._connection: ThreadConnection | None = None

    @overload
    def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: Literal[False] = False,
        **options: Unpack[ConnectionOptions],
    ) -> ThreadConnection: ...

    @overload
    def accept(
        self, protocols: Sequence[str] | None = None, headers: Fields = (), *, detached: Literal[True]
    ) -> socket.socket: ...

    def accept(
        self,
        protocols: Sequence[str] | None = None,
        headers: Fields = (),
        detached: bool = False,
        **options: Unpack[ConnectionOptions],
    ) -> ThreadConnection | socket.socket:
        """Take the socket from the server and send the 101 on it.

        Args:
            protocols: supported subprotocols; the middleware's by default.
            headers: additional header fields of the response.
            detached: return the raw socket, which the caller then owns.
            options: options of this connection, such as ``ping_interval=5.0``.

        Returns:
            The connection, or the ``socket.socket``. A connection that does not run in the background is closed when
            the application returns.

        Raises:
            HandshakeError: the request is refused, or no connection is free (503). If it is not caught, the client
                gets a response with the reason.
            ConnectionClosed: the client has disconnected.
            LocalProtocolError: the request is already accepted, or the response has started.
            UnsupportedServerError: the server does not give access to its socket; nothing has been sent.
            TypeError, ValueError: an option is unknown or has an invalid value.
        """
        self._check_unanswered()
        shed, connection_limit = self._shed, self._connection_limit
        if options:
            check_options(options, ConnectionOptions.__optional_keys__, "accept()")
            shed = Watershed(**cast(Options, {**self._options, **options}))
        try:
            request, key = shed.check(self._environ)
            agreement, answer = shed.agree(request, key, protocols)
            _check_resources()
            self.sent = list(headers)
            response = write_response(101, [*answer, *self.sent])
            self._place = place = connection_limit.enter()
        except HandshakeError as error:
            log_environ_refused(self._environ, error)
            raise as_answer(error, self._environ) from None
        try:
            if detached:
                return self._detach(response)
            server, way, head = self._take()
            settings = shed.settings
            if settings.shutdown_code is not None:
                # First, as the process may stop as soon as a connection exists.
                watch_process(server, handle_signals=settings.install_signal_handlers)
            try:
                way.write(response)
            except ConnectionClosed:
                self._drop()
                raise
            self._connection = way.connection(
                Role.SERVER,
                agreement,
                settings.limits,
                settings.trace,
                self._environ,
                head,
                closed_class(self._environ),
                place.leave,  # the connection may outlive the request
                settings.shutdown_code if settings.shutdown_code != 0 else 1001,
            )
            self._connection.no_background = server.no_background(self._environ)
        finally:
            if self._connection is None:
                place.leave()
        return self._connection

    def check(self) -> tuple[Request, str]:
        """Validate the request before a proxy forwards it; returns it with its key. Raises HandshakeError."""
        try:
            return self._shed.check(self._environ)
        except HandshakeError as error:
            raise as_answer(error, self._environ) from None

    def hand_over(self, answer: list[tuple[str, str]], headers: Fields) -> socket.socket:
        """Send a 101 received from another server, and return the raw socket (proxy mode).

        Args:
            answer: header fields of the opening handshake, such as ``Sec-WebSocket-Accept``.
            headers: the other header fields.

        Raises:
            as :meth:`accept`.
        """
        self._check_unanswered()
        self.sent = list(headers)
        return self._detach(write_response(101, [*answer, *self.sent]))

    @property
    def environ(self) -> Environ:
        """The request's environ."""
        return self._environ

    @property
    def server(self) -> WSGIServer:
        """The server's row in the server table."""
        return server_of(self._environ, self._start_response)

    @property
    def target(self) -> str | None:
        """The request target as the client sent it, or None; the path in the environ is percent-decoded."""
        return self.server.target(self._environ, self._start_response)

    def client_descriptor(self) -> int:
        """A duplicate descriptor of the client's socket, which the caller closes; -1 if there is none."""
        client = self.server.client(self._environ, self._start_response)
        number = client if isinstance(client, int) else client.fileno()
        return socket.dup(number) if number >= 0 else -1

    def _check_unanswered(self) -> None:
        if self.accepted:
            raise LocalProtocolError("the request is already accepted: call accept() once")
        if self.started_body:
            raise LocalProtocolError("the response has started: call accept() before its first item")

    def _take(self) -> tuple[WSGIServer, BlockingTransport, bytes]:
        server = server_of(self._environ, self._start_response)
        try:
            self._taken = hijack(server, self._environ, self._start_response)
        except (OSError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            refusal = unavailable(error)
            log_environ_refused(self._environ, refusal)
            raise as_answer(refusal, self._environ) from error
        self.accepted = True
        return server, BlockingTransport(self._taken.sock), self._taken.head

    def _drop(self) -> None:
        if self._taken is not None:
            self._taken.sock.close()

    def _detach(self, response: bytes) -> socket.socket:
        _, way, head = self._take()
        try:
            return way.detach(head, response)
        except ConnectionClosed:
            self._drop()
            raise

    def reject(self, status: int, body: bytes = b"", headers: Fields = ()) -> Rejection:
        """An HTTP response instead of the 101, as a WSGI application to return or to call.

        Args:
            status: HTTP status, such as 403.
            body: response body.
            headers: header fields of the response.

        Raises:
            ValueError: the status or a header field is invalid.
        """
        return Rejection(status, body, headers)

    def guard(self, start_response: StartResponse) -> StartResponse:
        """``start_response`` for the application: deferred until the response starts, as ``accept`` may still follow.

        It has no effect after ``accept``.
        """

        def guarded(*args: Any) -> Any:
            if self.accepted:
                # Flask and Django turn an exception in the handler into such a response.
                self.failed = str(args[0]).startswith("5")
                return lambda data: None
            if self.started_body or (self._held is not None and len(args) < 3):
                self.begin_response()
                return start_response(*args)  # the server checks a second call
            self._held = functools.partial(start_response, *args)
            return write

        def write(data: bytes) -> Any:
            return self.begin_response()(data)

        return guarded

    def begin_response(self) -> Any:
        """Start the HTTP response, after which ``accept`` is refused; returns the server's ``write``."""
        if not self.started_body:
            self.started_body = True
            if self._held is not None:
                self._write = self._held()
        return self._write

    def end(self, reason: str = "", *, code: int, wait: bool = True) -> None:
        """Close the connection when the application has returned or raised, unless it runs in the background."""
        connection = self._connection
        if connection is not None and not connection.in_background:
            if code == 1000:
                connection.warn_if_never_run()
            ended = False
            try:
                if wait:
                    connection.end(reason, code=code)
                    ended = True
            except ConnectionClosed:
                ended = True  # it is closed already
            finally:
                if not ended:
                    # This thread must not wait, or was interrupted: another one closes, and frees the place.
                    connection.end_in_thread(reason, code=code)

    def revive_dummy(self) -> None:
        """Prepare the dummy for the response that the server is about to write."""
        if self._taken is not None:
            self._taken.revive_dummy()

    def close_dummy(self) -> None:
        """Close the dummy, whose server side is closed or about to be."""
        if self._taken is not None:
            self._taken.close_dummy()

    def forget_server(self) -> None:
        """Drop references to the server's objects: the request is over, and the connection may outlive it."""
        release_environ(self._environ)
        # These form a reference cycle, which only the garbage collector would break.
        self._environ, self._start_response, self._held, self._write = {}, None, None, None
        self._taken = self._connection = self._place = None
