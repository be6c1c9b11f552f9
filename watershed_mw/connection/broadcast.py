"""One message to many connections, encoded once.

Connections that are ending are skipped, and a slow one delays no other: each handles the message like its own ``send``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.payloads import Sendable
from ..core.prepared import PreparedMessage
from ..errors import ConnectionClosed, UnsupportedServerError
from .base import WatershedConnection, checked_message

__all__ = ["broadcast"]


def broadcast(connections: Iterable[WatershedConnection], message: Sendable) -> None:
    """Send one message to many connections: ``str`` as TEXT, bytes-like as BINARY.

    Connections that are ending are skipped. Those of the running event loop share one encoding of the message (a
    client masks it with its own key); with permessage-deflate it is compressed once for each distinct window and level,
    without reference to earlier messages. A slow peer delays no other, and is dropped above ``max_unsent_bytes`` unsent
    bytes.

    Connections of other threads, and those over ASGI messages, use their own ``send``. That of a
    :class:`~watershed_mw.ThreadConnection` blocks until the kernel has accepted the message, which delays the
    connections after it: hand such connections over to ``run_in_background``, or use a thread for each.

    Args:
        connections: copied first, so a set may change meanwhile.
        message: one message.

    Raises:
        LocalProtocolError: the text cannot be encoded; nothing has been sent.
        TypeError: neither text nor bytes, or not all are connections; nothing has been sent.
        UnsupportedServerError: the message is empty, and a server cannot send that; the others have sent it.
    """
    shared = PreparedMessage(checked_message(message))
    members = tuple(connections)
    for member in members:
        if not issubclass(type(member), WatershedConnection):  # isinstance() would accept a weakref.proxy
            raise TypeError(f"expected connections to broadcast to, got {type(member).__name__} among them")
    failure: UnsupportedServerError | None = None
    for connection in members:
        try:
            connection._send_prepared(shared)
        except ConnectionClosed:
            pass  # it has just ended
        except UnsupportedServerError as error:
            failure = error
    if failure is not None:
        raise failure
