"""Logs each upgrade that this package refuses: one line, with the client, the path and the reason.

Query strings are left out, as they may hold tokens. Refusals by the application are not logged here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..errors import HandshakeError

_logger = logging.getLogger("watershed_mw")

__all__ = ["log_environ_refused", "log_refused", "log_scope_refused"]


def log_refused(client: str, path: str, error: HandshakeError, to: logging.Logger = _logger) -> None:
    """Log a refusal.

    Args:
        client: address and port of the client.
        path: path of the request, quoted.
        error: status and reason.
        to: the logger.
    """
    to.warning('%s - "WebSocket %s" refused with %d: %s', client or "-", path, error.status, error)


def log_scope_refused(scope: Mapping[str, Any], error: HandshakeError) -> None:
    """Log the refusal of an ASGI scope."""
    client = ":".join(str(part) for part in scope.get("client") or ())
    log_refused(client, quote(scope["path"]), error)


def log_environ_refused(environ: Mapping[str, Any], error: HandshakeError) -> None:
    """Log the refusal of a WSGI environ."""
    client = ":".join(str(environ[name]) for name in ("REMOTE_ADDR", "REMOTE_PORT") if environ.get(name))
    path = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    log_refused(client, quote(path.encode("latin-1", "replace")), error)
