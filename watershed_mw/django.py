"""A refused opening handshake, and a client that leaves, as Django's kind of exception.

Django answers them and logs a warning. Otherwise it would log a crash of the application, with a
traceback and a mail to its administrators, at any stranger's pleasure.
"""

from __future__ import annotations

from django.core.exceptions import BadRequest, PermissionDenied

from .errors import ConnectionClosed, HandshakeError

__all__ = ["ClientLeft", "HandshakeForbidden", "HandshakeRefused", "refused"]


class ClientLeft(ConnectionClosed, BadRequest):
    """A :class:`~watershed_mw.ConnectionClosed` that leaves a view; its response goes nowhere."""


class HandshakeRefused(HandshakeError, BadRequest):
    """A :class:`~watershed_mw.HandshakeError` that leaves a view: Django answers 400, whatever the status."""


class HandshakeForbidden(HandshakeError, PermissionDenied):
    """The same where the status is 403, which Django has a page for."""


def refused(error: HandshakeError) -> HandshakeError:
    """``error`` as Django understands it."""
    kind = HandshakeForbidden if error.status == 403 else HandshakeRefused
    return kind(str(error), status=error.status, headers=error.headers)
