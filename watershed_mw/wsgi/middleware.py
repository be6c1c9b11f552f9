"""The WSGI door: a middleware that gives the application an upgrade object, and the socket with it.

Everything but upgrade requests passes untouched, and nothing is answered before the application
decides: one that ignores the upgrade answers as ever. How the socket is taken from the server is
:mod:`watershed_mw.wsgi.hijack`'s business.
"""

from __future__ import annotations

import functools
import itertools
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Literal, TypeAlias, Unpack, cast, overload

from ..connection.adopt import BlockingTransport
from ..connection.limit import Place, Room
from ..connection.threads.connection import ThreadConnection
from ..core.handshake.headers import check_outgoing
from ..core.handshake.negotiation import Request
from ..core.states import Role
from ..errors import ConnectionClosed, HandshakeError, LocalProtocolError
from ..http.adapt import check_status, environ_to_origin_form, http_version, write_response
from ..http.refusals import log_environ_refused
from ..runtime.exhaustion import is_exhausted, unavailable
from ..runtime.interrupts import failure, is_interrupt
from ..runtime.loop_thread import check_background_loop
from ..watershed import ConnectionOptions, Options, Watershed, check_options
from .hijack import Takeover
from .servers import WSGIServer, let_go, server_of, take_over
from .shutdown import catch_signals, watch_process

__all__ = ["Rejection", "WSGIUpgrade", "WatershedWSGI", "asks_for_upgrade"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]
Fields: TypeAlias = Iterable[tuple[str, str]]

# Flask and whatever else is made of werkzeug leaves its mark in the environ; Django is known by being there.
_DJANGO = "django.core.handlers.wsgi"


class WatershedWSGI:
    """WSGI middleware: upgrade requests get ``environ["watershed"]``, a :class:`WSGIUpgrade`.

    Args:
        app: the WSGI application.
        options: see :class:`~watershed_mw.Options`.

    Raises:
        TypeError, ValueError: an option is unknown or cannot have its value.
    """

    def __init__(self, app: WSGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self.options = options
        self.shed = Watershed(**options)
        self.room = Room(self.shed.settings.max_connections)
        if self.shed.settings.shutdown_code is not None:
            catch_signals()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not asks_for_upgrade(environ):
            return self.app(environ, start_response)
        environ_to_origin_form(environ)
        upgrade = WSGIUpgrade(self, environ, start_response)
        environ["watershed"] = upgrade
        try:
            body = _begun(self.app(environ, upgrade.guard(start_response)))
            if not upgrade.accepted:
                upgrade.begin_response()
                return body
            try:
                for _ in body:
                    pass  # An application may be a generator, whose code this is.
            finally:
                _close(body)
        except ConnectionClosed:
            if not upgrade.accepted:
                raise
        except BaseException as error:
            if isinstance(error, HandshakeError) and not upgrade.accepted:
                return Rejection.of(error)(environ, start_response)
            interrupted = is_interrupt(error)
            if _is_timeout(error):
                upgrade.end(code=1011, wait=False)
            elif interrupted:
                # The process is on its way out, and must not be held up.
                upgrade.end("the server stops", code=self.shed.settings.shutdown_code or 1001, wait=False)
            else:
                upgrade.end(code=1011)
            # What the server makes of the exception goes nowhere, and must not fill a dummy that nobody reads.
            upgrade.revive_dummy()
            upgrade.close_dummy()
            if interrupted or not upgrade.accepted:
                raise
            raised = failure(error)  # a sys.exit() must end neither the server nor one of its threads
            if raised is error:
                raise
            raise raised from error
        upgrade.end(code=1011 if upgrade.failed else 1000)
        # To the server this was a request like any other; it writes its answer to the dummy, and logs it.
        upgrade.revive_dummy()
        start_response("101 Switching Protocols", upgrade.sent)
        return _Nothing(upgrade)


def _is_timeout(error: BaseException) -> bool:
    """Whether it is a timeout of gevent's or eventlet's, which are no Exceptions and concern one request alone."""
    kind = type(error)
    return kind.__name__ == "Timeout" and kind.__module__.partition(".")[0] in ("gevent", "eventlet")


def asks_for_upgrade(environ: Environ) -> bool:
    """Whether this could be an opening handshake at all; ``accept`` is the judge of the rest.

    HTTP/2 requests never are: their socket carries others' requests, too.
    """
    tokens = environ.get("HTTP_UPGRADE", "").lower().split(",")
    return (
        environ["REQUEST_METHOD"] == "GET"
        and http_version(environ) == "1.1"
        and "websocket" in (token.strip(" \t") for token in tokens)
    )


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


class _Begun:
    """The body of an application that has produced its first item already."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._items = itertools.chain(first, rest)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        """As the application's own body."""
        _close(self._body)


def _begun(body: Iterable[bytes]) -> Iterable[bytes]:
    """``body`` with its first item asked for, as an application that is a generator does nothing before."""
    try:
        rest = iter(body)
        first = list(itertools.islice(rest, 1))
    except BaseException:
        _close(body)  # PEP 3333: however the iteration ends
        raise
    return _Begun(first, rest, body)


class _Nothing:
    """The empty body of a request whose socket has gone; the server closes it when it is done."""

    def __init__(self, upgrade: WSGIUpgrade) -> None:
        self._upgrade = upgrade

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """The server is done."""
        self._upgrade.close_dummy()
        self._upgrade.forget_server()


class Rejection:
    """A WSGI application that answers with one plain response; Flask takes it as a view's result.

    Args:
        status: HTTP status.
        body: body of the response.
        headers: header fields; Content-Length is added.

    Raises:
        ValueError: there is no such status, or a header field cannot be written.
    """

    def __init__(self, status: int, body: bytes = b"", headers: Fields = ()) -> None:
        check_status(status)
        self.status = status
        self.body = body
        self.headers = list(headers)
        check_outgoing(self.headers)

    @classmethod
    def of(cls, error: HandshakeError) -> Rejection:
        """The response that tells of ``error``."""
        # Hop-by-hop fields are the server's alone to send (PEP 3333).
        fields = [pair for pair in error.headers if pair[0].lower() not in ("connection", "upgrade")]
        # An error of another connection, that the application opens, may hold the 101 that was wrong there.
        status = error.status if error.status >= 200 else 502
        return cls(status, error.body, [*fields, ("Content-Type", "text/plain; charset=utf-8")])

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        fields = [pair for pair in self.headers if pair[0].lower() != "content-length"]
        if self.status in (204, 304):  # no body, and no length of one (RFC 9110 section 8.6)
            start_response(f"{self.status} {phrase}", fields)
            return []
        start_response(f"{self.status} {phrase}", [*fields, ("Content-Length", str(len(self.body)))])
        return [self.body]


def _as_answer(error: HandshakeError, environ: Environ) -> HandshakeError:
    """``error`` as the application's framework understands it: as an answer, not as a crash to log."""
    if "werkzeug.request" in environ:
        from ..werkzeug import HandshakeRefused

        return HandshakeRefused(error, Rejection.of(error).headers)
    if _DJANGO in sys.modules:
        from ..django import refused

        return refused(error)
    return error


def _closed_class(environ: Environ) -> type[ConnectionClosed]:
    """What ``send`` and ``receive`` raise after the end: to a framework, too, a client that leaves is no crash."""
    if "werkzeug.request" in environ:
        from ..werkzeug import ClientLeft

        return ClientLeft
    if _DJANGO in sys.modules:
        from .. import django

        return django.ClientLeft
    return ConnectionClosed


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
        "_begun",
        "_connection",
        "_environ",
        "_held",
        "_middleware",
        "_place",
        "_start_response",
        "_taken",
        "_write",
        "accepted",
        "failed",
        "sent",
    )

    def __init__(self, middleware: WatershedWSGI, environ: Environ, start_response: StartResponse) -> None:
        self.accepted = False
        self.failed = False
        self.sent: list[tuple[str, str]] = []
        self._held: Callable[[], Any] | None = None
        self._write: Any = None
        self._begun = False
        self._middleware = middleware
        self._place: Place | None = None
        self._environ = environ
        self._start_response: StartResponse | None = start_response
        self._taken: Takeover | None = None
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
        shed, room = self._middleware.shed, self._middleware.room
        if options:
            check_options(options, ConnectionOptions.__optional_keys__, "accept()")
            shed = Watershed(**cast(Options, {**self._middleware.options, **options}))
        try:
            request, key = shed.check(self._environ)
            agreement, answer = shed.agree(request, key, protocols)
            _check_resources()
            self.sent = list(headers)
            response = write_response(101, [*answer, *self.sent])
            self._place = place = room.enter()
        except HandshakeError as error:
            log_environ_refused(self._environ, error)
            raise _as_answer(error, self._environ) from None
        try:
            if detached:
                return self._detach(response)
            server, way, head = self._take()
            settings = shed.settings
            if settings.shutdown_code is not None:
                watch_process(server.stopping)  # first: the process may stop as soon as there is something to end
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
                _closed_class(self._environ),
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
            return self._middleware.shed.check(self._environ)
        except HandshakeError as error:
            raise _as_answer(error, self._environ) from None

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
        if self._begun:
            raise LocalProtocolError("expected accept before the first item of the response, got it afterwards")

    def _take(self) -> tuple[WSGIServer, BlockingTransport, bytes]:
        server = server_of(self._environ, self._start_response)
        try:
            self._taken = take_over(server, self._environ, self._start_response)
        except (OSError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            refusal = unavailable(error)
            log_environ_refused(self._environ, refusal)
            raise _as_answer(refusal, self._environ) from error
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
            if self._begun or (self._held is not None and len(args) < 3):
                self.begin_response()
                return start_response(*args)  # the server is the judge of a second call
            self._held = functools.partial(start_response, *args)
            return write

        def write(data: bytes) -> Any:
            return self.begin_response()(data)

        return guarded

    def begin_response(self) -> Any:
        """An HTTP response goes out, so nothing can be accepted any more; the server's ``write``."""
        if not self._begun:
            self._begun = True
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
                    connection.end_elsewhere(reason, code=code)

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
        let_go(self._environ)
        # It was all in a circle, which only the garbage collector would break.
        self._environ, self._start_response, self._held, self._write = {}, None, None, None
        self._taken = self._connection = self._place = None
