"""ALPN (RFC 7301) for the opening handshake: only http/1.1 is offered, and no other protocol is accepted.

The application's context may offer h2, for example after httpx has used it with ``http2=True``. Python sets ALPN per
context, not per connection, and cannot read it back. So this module reads the offer from a ClientHello that the context
writes, sets http/1.1 while a handshake of this client starts, and restores the offer afterwards.
"""

from __future__ import annotations

import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import HandshakeError

__all__ = ["check_http11", "offering_http11"]

HTTP11: Final = "http/1.1"
_ALPN_EXTENSION = 16

_lock = threading.Lock()
# Contexts switched to http/1.1: the number of handshakes that need it, and the offer to restore.
_held: dict[ssl.SSLContext, tuple[int, list[str]]] = {}


@contextmanager
def offering_http11(context: ssl.SSLContext) -> Iterator[None]:
    """Make ``context`` offer only http/1.1 within the block; a context without an offer stays unchanged."""
    changed = _hold(context)
    try:
        yield
    finally:
        if changed:
            _release(context)


def _hold(context: ssl.SSLContext) -> bool:
    with _lock:
        count, before = _held.get(context, (0, []))
        if not count:
            before = offers(context)
            if all(name == HTTP11 for name in before):
                return False
        _held[context] = count + 1, before
        context.set_alpn_protocols([HTTP11])
    return True


def _release(context: ssl.SSLContext) -> None:
    with _lock:
        count, before = _held[context]
        if count > 1:
            _held[context] = count - 1, before
            return
        del _held[context]
        if offers(context) == [HTTP11]:  # else the application has set another list meanwhile
            context.set_alpn_protocols(before)


def offers(context: ssl.SSLContext) -> list[str]:
    """The protocols that a client's context offers; empty if it offers none or that cannot be determined."""
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return _protocols_in_hello(sent.read())
    except Exception:  # noqa: BLE001  # a subclass with its own TLS: the server's choice is checked later
        pass
    return []


def _protocols_in_hello(record: bytes) -> list[str]:
    """The protocols in a ClientHello (RFC 8446 section 4.1.2) that OpenSSL wrote as one record."""
    position = 5 + 4 + 2 + 32  # headers of the record and of the message, version, random
    position += 1 + record[position]  # session
    position += 2 + int.from_bytes(record[position : position + 2])  # cipher suites
    position += 1 + record[position] + 2  # compression methods, length of the extensions
    while position + 4 <= len(record):
        kind, size = struct.unpack_from("!HH", record, position)
        position += 4
        if kind == _ALPN_EXTENSION:
            return list(_names(record[position + 2 : position + size]))
        position += size
    return []


def _names(data: bytes) -> Iterator[str]:
    while data:
        size = data[0]
        yield data[1 : 1 + size].decode("latin-1")
        data = data[1 + size :]


def check_http11(tls: Any) -> None:
    """Check that the server chose HTTP/1.1 or no protocol.

    Args:
        tls: the ``ssl.SSLObject`` or ``ssl.SSLSocket`` after its handshake; None if unknown.

    Raises:
        HandshakeError: the server chose another protocol; status 505, which is not retried.
    """
    chosen = None if tls is None else tls.selected_alpn_protocol()
    if chosen not in (None, HTTP11):
        raise HandshakeError(
            f"expected the server to choose http/1.1 by ALPN, got {chosen!r}: pass ssl= a separate context that does "
            "not offer it",
            status=505,
            body=b"",
        )
