"""One WSGI request that may become a WebSocket connection."""

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
    """The empty body of a request whose socket has gone; the server closes it when it is done."""

    def __init__(self, upgrade: WSGIUpgrade) -> None:
        self._upgrade = upgrade

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """The server is done."""
        self._upgrade.close_dummy()
        self._upgrade.forget_server()


def _check_resources() -> None:
    """Refuse what would hang after its 101. Raises HandshakeError."""
    try:
        check_background_loop()
    except (OSError, RuntimeError, MemoryError) as error:
        raise unavailable(error) from error


class WSGIUpgrade:
    """One upgrade request that waits for the application's decision.

    Attributes:
        accepted: whether it has been answered with the 101.
        failed: whether the application said, after that, that it had failed.
        sent: the application's header fields of the 101.
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
        """Answer with the 101, on the socket that is taken from the server.

        Args:
            protocols: subprotocols that are supported here; the middleware's own unless given.
            headers: further header fields of the answer.
            detached: return the raw socket, which is then the caller's own.
            options: options of this connection alone, such as ``ping_interval=5.0``.

        Returns:
            the connection, or the ``socket.socket``. When the application returns, a connection that
            does not run in the background is ended.

        Raises:
            HandshakeError: the request is refused, or there is no room for it (503); where it is not caught, the
                client is told why.
            ConnectionClosed: the client has gone.
            LocalProtocolError: the request has been accepted before, or a response to it has begun.
            UnsupportedServerError: the server cannot give its socket; nothing has been answered.
            TypeError, ValueError: an option is unknown or cannot have its value.
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
                # First: the process may stop as soon as there is something to end.
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
                place.leave,  # it may live on when the request is over
                settings.shutdown_code if settings.shutdown_code != 0 else 1001,
            )
            self._connection.no_background = server.no_background(self._environ)
        finally:
            if self._connection is None:
                place.leave()
        return self._connection

    def check(self) -> tuple[Request, str]:
        """Judge the request, and return it with its key, before a proxy forwards it. Raises HandshakeError."""
        try:
            return self._shed.check(self._environ)
        except HandshakeError as error:
            raise as_answer(error, self._environ) from None

    def hand_over(self, answer: list[tuple[str, str]], headers: Fields) -> socket.socket:
        """Answer with the 101 that another server has given, and return the raw socket (proxy mode).

        Args:
            answer: fields of the opening handshake itself, such as ``Sec-WebSocket-Accept``.
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
        """The server's row in the table of servers."""
        return server_of(self._environ, self._start_response)

    @property
    def target(self) -> str | None:
        """The request target as the client sent it, where the server keeps it; the environ's path is decoded."""
        return self.server.target(self._environ, self._start_response)

    def client_descriptor(self) -> int:
        """The client's socket by a descriptor of its own, which the caller closes; -1 where it cannot be had."""
        client = self.server.client(self._environ, self._start_response)
        number = client if isinstance(client, int) else client.fileno()
        return socket.dup(number) if number >= 0 else -1

    def _check_unanswered(self) -> None:
        if self.accepted:
            raise LocalProtocolError("expected one accept for a request, got a second one")
        if self.started_body:
            raise LocalProtocolError("expected accept before the first item of the response, got it afterwards")

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
        """The HTTP response to give instead of the 101, as a WSGI application to return or to call.

        Args:
            status: HTTP status, e.g. 403.
            body: body of the response.
            headers: header fields of the response.

        Raises:
            ValueError: there is no such status, or a header field cannot be written.
        """
        return Rejection(status, body, headers)

    def guard(self, start_response: StartResponse) -> StartResponse:
        """``start_response`` as the application gets it: held back until the response begins, as an accept may follow.

        Once the socket has gone it has no effect.
        """

        def guarded(*args: Any) -> Any:
            if self.accepted:
                # Flask and Django turn an exception of the handler into such a response.
                self.failed = str(args[0]).startswith("5")
                return lambda data: None
            if self.started_body or (self._held is not None and len(args) < 3):
                self.begin_response()
                return start_response(*args)  # the server is the judge of a second call
            self._held = functools.partial(start_response, *args)
            return write

        def write(data: bytes) -> Any:
            return self.begin_response()(data)

        return guarded

    def begin_response(self) -> Any:
        """An HTTP response goes out, so nothing can be accepted any more; the server's ``write``."""
        if not self.started_body:
            self.started_body = True
            if self._held is not None:
                self._write = self._held()
        return self._write

    def end(self, reason: str = "", *, code: int, wait: bool = True) -> None:
        """The application has returned or raised: end the connection unless it lives on elsewhere."""
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
                ended = True  # It had ended by itself.
            finally:
                if not ended:
                    # This thread must not wait, or has been interrupted: the end and the place are due all the same.
                    connection.end_in_thread(reason, code=code)

    def revive_dummy(self) -> None:
        """The server is about to go on."""
        if self._taken is not None:
            self._taken.revive_dummy()

    def close_dummy(self) -> None:
        """The server has closed its side, or is about to."""
        if self._taken is not None:
            self._taken.close_dummy()

    def forget_server(self) -> None:
        """The server is done with the request, whose connection may live on: let go of all that is the server's."""
        release_environ(self._environ)
        # It was all in a circle, which only the garbage collector would break.
        self._environ, self._start_response, self._held, self._write = {}, None, None, None
        self._taken = self._connection = self._place = None
