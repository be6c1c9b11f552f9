"""A WebSocket test client for WSGI applications, without a server.

The application runs in this process, on a socket pair. A test gets what a client would get: the connection, or the
refusal with its status and body.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

from werkzeug.test import Client

from .connection.threads.connection import ThreadConnection
from .errors import ConnectionClosed, HandshakeError
from .options import ClientOptions, check_options
from .watershed import Watershed

__all__ = ["TestConnection", "connect"]

_READ_SIZE = 64 * 2**10


class TestConnection(ThreadConnection):
    """A client connection with a default timeout."""

    __slots__ = ()  # a ThreadConnection becomes one
    __test__ = False  # not a test class for pytest

    @property
    def timeout(self) -> float:
        """Seconds that ``receive`` and iteration wait by default."""
        return float(self.state.timeout)

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self.state.timeout = seconds

    def receive(self, timeout: float | None = None) -> str | bytes:
        """As in the base class; raises :class:`TimeoutError` after :attr:`timeout` seconds by default."""
        return super().receive(self.timeout if timeout is None else timeout)


@contextlib.contextmanager
def connect(
    client: Client,
    path: str,
    *,
    protocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
    timeout: float = 5.0,
    **options: Unpack[ClientOptions],
) -> Iterator[TestConnection]:
    """Open a WebSocket through a werkzeug or Flask test client, with its cookies.

    Leaving ``with connect(app.test_client(), "/echo") as connection:`` closes the connection, waits for the application
    to return, and re-raises its exception.

    Args:
        client: ``app.test_client()``, or ``werkzeug.test.Client(app)``.
        path: path and query string.
        protocols: subprotocols to offer.
        headers: additional header fields of the request.
        timeout: seconds to wait for the response, a message, the application's Close, and the application's return.
        options: options of the connection at this end.

    Raises:
        HandshakeError: the application refused, with the response's ``status``, ``headers`` and ``body``.
        TimeoutError: one of these took too long.
    """
    check_options(options, ClientOptions.__optional_keys__, "connect()")
    options.setdefault("close_timeout", timeout)
    shed = Watershed(**options)
    key = shed.generate_key()
    fields = [*shed.request_headers(key, protocols), *headers]
    ours, theirs = socket.socketpair()
    client = _for_another_thread(client)
    response: Future[Any] = Future()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as rfile:
            environ = {"werkzeug.socket": theirs, "wsgi.input": rfile, "SERVER_PROTOCOL": "HTTP/1.1"}
            try:
                answer = client.open(path, headers=fields, environ_overrides=environ, buffered=True)
                response.set_result(answer)
            except BaseException as error:  # noqa: BLE001  # raised in the test's thread
                response.set_exception(error)

    thread = threading.Thread(target=serve, name="watershed-test", daemon=True)
    with ours:
        ours.settimeout(timeout)
        thread.start()
        head = b""
        while b"\r\n\r\n" not in head:
            data = ours.recv(_READ_SIZE)
            if not data:
                raise _refusal(response.result(timeout))
            head += data
        end = head.index(b"\r\n\r\n") + 4
        connection = shed.connect(head[:end], ours, head[end:], key, request=dict(fields))
        connection.__class__ = TestConnection
        assert isinstance(connection, TestConnection)
        connection.timeout = timeout
        try:
            yield connection
        except ConnectionClosed as closed:
            connection.end()
            if (error := response.exception(timeout)) is not None:
                raise error from closed  # the reason for the close
            raise
        finally:
            connection.end()
        response.result(timeout)


def _for_another_thread(client: Client) -> Client:
    """A copy of ``client`` with the same cookies, for a request from another thread.

    Within a ``with`` block, Flask's client keeps the context of its last request, in the thread that made it.
    """
    client = copy.copy(client)
    if hasattr(client, "preserve_context"):
        vars(client).update(preserve_context=False, _new_contexts=[], _context_stack=contextlib.ExitStack())
    return client


def _refusal(response: Any) -> HandshakeError:
    error = HandshakeError(
        f"expected the application to accept the upgrade, got {response.status}",
        status=response.status_code,
        headers=list(response.headers),
    )
    error.body = response.get_data()
    return error
