"""Refused opening handshakes and disconnected clients as Django exceptions.

Django turns these into responses and logs a warning. Without them, any client could make it log a crash of the
application with a traceback and mail its administrators.
"""

from __future__ import annotations

from django.core.exceptions import BadRequest, PermissionDenied

from .errors import ConnectionClosed, HandshakeError

__all__ = ["ClientLeft", "HandshakeForbidden", "HandshakeRefused", "refused"]


class ClientLeft(ConnectionClosed, BadRequest):
    """A :class:`~watershed_mw.ConnectionClosed` that may leave a view; its response is discarded."""


class HandshakeRefused(HandshakeError, BadRequest):
    """A :class:`~watershed_mw.HandshakeError` that may leave a view: Django responds with 400, whatever its status."""


class HandshakeForbidden(HandshakeError, PermissionDenied):
    """The same for status 403, for which Django has a page."""


def refused(error: HandshakeError) -> HandshakeError:
    """``error`` as an exception that Django handles."""
    kind = HandshakeForbidden if error.status == 403 else HandshakeRefused
    return kind(str(error), status=error.status, headers=error.headers)
