"""The WSGI middleware: gives the application an upgrade object for each upgrade request.

Other requests pass through untouched. Nothing is sent before the application decides; an application that ignores the
upgrade object responds as usual. :mod:`watershed_mw.wsgi.hijack` takes the socket from the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from ..connection.limit import ConnectionLimit
from ..errors import ConnectionClosed, HandshakeError
from ..http.adapt import http_version
from ..http.target import environ_to_origin_form
from ..options import Options
from ..runtime.interrupts import failure, is_interrupt
from ..watershed import Watershed
from .responses import (
    Environ,
    Rejection,
    StartResponse,
    WSGIApp,
    close_body,
    started_body,
)
from .upgrade import EmptyBody, WSGIUpgrade

__all__ = ["WatershedWSGI", "asks_for_upgrade"]


class WatershedWSGI:
    """WSGI middleware: upgrade requests get ``environ["watershed"]``, a :class:`WSGIUpgrade`.

    Args:
        app: the WSGI application.
        options: see :class:`~watershed_mw.Options`.

    Raises:
        TypeError, ValueError: an option is unknown or has an invalid value.
    """

    def __init__(self, app: WSGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self.options = options
        self.shed = Watershed(**options)
        self.connection_limit = ConnectionLimit(self.shed.settings.max_connections)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not asks_for_upgrade(environ):
            return self.app(environ, start_response)
        environ_to_origin_form(environ)
        upgrade = WSGIUpgrade(self.shed, self.options, self.connection_limit, environ, start_response)
        environ["watershed"] = upgrade
        try:
            body = started_body(self.app(environ, upgrade.guard(start_response)))
            if not upgrade.accepted:
                upgrade.begin_response()
                return body
            try:
                for _ in body:
                    pass  # a generator's code runs here
            finally:
                close_body(body)
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
                # The process is shutting down: do not delay it.
                upgrade.end("the server stops", code=self.shed.settings.shutdown_code or 1001, wait=False)
            else:
                upgrade.end(code=1011)
            # Discard the server's error response, which would otherwise fill the dummy socket, as nothing reads it.
            upgrade.revive_dummy()
            upgrade.close_dummy()
            if interrupted or not upgrade.accepted:
                raise
            raised = failure(error)  # sys.exit() in a handler must not end the server or one of its threads
            if raised is error:
                raise
            raise raised from error
        upgrade.end(code=1011 if upgrade.failed else 1000)
        # The server treats this as an ordinary request: it logs it, and writes its response to the dummy.
        upgrade.revive_dummy()
        start_response("101 Switching Protocols", upgrade.sent)
        return EmptyBody(upgrade)


def _is_timeout(error: BaseException) -> bool:
    """Whether ``error`` is a gevent or eventlet timeout: not an ``Exception``, but it ends only this request."""
    kind = type(error)
    return kind.__name__ == "Timeout" and kind.__module__.partition(".")[0] in ("gevent", "eventlet")


def asks_for_upgrade(environ: Environ) -> bool:
    """Whether this looks like an opening handshake; ``accept`` validates it.

    HTTP/2 requests do not count, as they share their socket with other requests.
    """
    tokens = environ.get("HTTP_UPGRADE", "").lower().split(",")
    return (
        environ["REQUEST_METHOD"] == "GET"
        and http_version(environ) == "1.1"
        and "websocket" in (token.strip(" \t") for token in tokens)
    )
