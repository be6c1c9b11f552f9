"""One message to many connections, encoded once.

Connections that are ending are skipped, and a slow one delays no other: each treats the message as one of its own
``send``.
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

    Connections that are ending are skipped. Those of the running event loop send the same bytes, made once (a
    client's are masked with a key of its own); where permessage-deflate was agreed on, they are compressed once for
    each distinct window and level, without reference to earlier messages. A slow peer
    delays no other, and is dropped when ``max_unsent_bytes`` have piled up for it.

    Connections of other threads, and those over the messages of another ASGI server, are sent the message by their own
    ``send``. That of a :class:`~watershed_mw.ThreadConnection` waits until the kernel has taken the message, and so do
    those after it: give such connections to ``run_in_background``, or have a thread for each.

    Args:
        connections: they are listed at first, so a set may change meanwhile.
        message: one message.

    Raises:
        LocalProtocolError: the text cannot be encoded; nothing has been sent.
        TypeError: neither text nor bytes, or not all are connections; nothing has been sent.
        UnsupportedServerError: an empty message, and a server that cannot send one; the others have been sent it.
    """
    shared = PreparedMessage(checked_message(message))
    members = tuple(connections)
    for member in members:
        if not issubclass(type(member), WatershedConnection):  # a weakref.proxy says of itself that it is an instance
            raise TypeError(f"expected connections to broadcast to, got {type(member).__name__} among them")
    failure: UnsupportedServerError | None = None
    for connection in members:
        try:
            connection._send_prepared(shared)
        except ConnectionClosed:
            pass  # it has ended in just this moment
        except UnsupportedServerError as error:
            failure = error
    if failure is not None:
        raise failure
