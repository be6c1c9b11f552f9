"""Writes to uvicorn's log: the response to each upgrade request, and the end of its connection."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import HandshakeError
from ..http.refusals import log_refused

if TYPE_CHECKING:
    from ..connection.aio.connection import AsyncioConnection

__all__ = ["RequestLog", "logger"]

logger = logging.getLogger("uvicorn.error")


class RequestLog:
    """Logs the response to one request and the end of its connection.

    Args:
        scope: the request's ASGI scope, or the part that :func:`.scope_of_refused` makes.
        with_query: whether to log the values in the query string.
    """

    __slots__ = ("_with_query", "scope")

    def __init__(self, scope: dict[str, Any], with_query: bool) -> None:
        self.scope = scope
        self._with_query = with_query

    @property
    def remote(self) -> str:
        """The client's address and port; a proxy's headers may give an address without a port."""
        client = self.scope["client"]
        if not client:
            return ""
        host, port = client
        return f"{host}:{port}" if port else str(host)

    @property
    def path(self) -> str:
        """Path and query string. Values in a query may be secrets, and are hidden by default."""
        return shown_path(self.scope, self._with_query)

    def answered(self, answer: str) -> None:
        """Log the response: ``[accepted]``, ``[detached]`` or an HTTP status."""
        if logger.isEnabledFor(logging.INFO):
            logger.info('%s - "WebSocket %s" %s', self.remote, self.path, answer)

    def refused(self, error: HandshakeError) -> None:
        """Log that this package refused the request."""
        log_refused(self.remote, self.path, error, logger)

    def closed(self, connection: AsyncioConnection) -> None:
        """Log the end of the connection."""
        if not logger.isEnabledFor(logging.INFO):
            return
        stats = connection.stats
        logger.info(
            '%s - "WebSocket %s" [closed %d] %.3f s, %d bytes received, %d bytes sent',
            self.remote,
            self.path,
            connection.close_code or 1006,
            connection.duration,
            stats.bytes_received,
            stats.bytes_sent,
        )


def shown_path(scope: dict[str, Any], with_query: bool) -> str:
    """Path and query string of a scope, with or without the query's values."""
    path = quote(scope["path"])
    if not scope["query_string"]:
        return path
    text = scope["query_string"].decode("latin-1")
    if with_query:
        return f"{path}?{quote(text, safe='=&%+;,:@/?!$()*-._~')}"
    return f"{path}?{'&'.join(map(_without_value, text.split('&')))}"


def _without_value(field: str) -> str:
    name, equals, _ = field.partition("=")
    # A field without "=" may be a value, so it is hidden.
    return f"{quote(name, safe='%+')}=***" if equals else "***"
