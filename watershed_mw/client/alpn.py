"""ALPN (RFC 7301) of an opening handshake: http/1.1 alone is offered, and nothing else is spoken into.

A context of the caller's may offer h2, as httpx has one do that it was given with ``http2=True``. Where the ALPN of a
context could be had only for all its connections, and cannot be read back, this module finds out what it offers by the
greeting that it would send, has it offer http/1.1 for as long as a handshake of this client begins, and then lets it
offer again what it did before.
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
# Contexts that are made to offer http/1.1: how many handshakes need it so, and what they offered before.
_held: dict[ssl.SSLContext, tuple[int, list[str]]] = {}


@contextmanager
def offering_http11(context: ssl.SSLContext) -> Iterator[None]:
    """Within the block ``context`` offers http/1.1 alone, or no protocol at all where it offered none."""
    changed = _hold(context)
    try:
        yield
    finally:
        if changed:
            _let_go(context)


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


def _let_go(context: ssl.SSLContext) -> None:
    with _lock:
        count, before = _held[context]
        if count > 1:
            _held[context] = count - 1, before
            return
        del _held[context]
        if offers(context) == [HTTP11]:  # else somebody has set another list meanwhile, which is theirs to keep
            context.set_alpn_protocols(before)


def offers(context: ssl.SSLContext) -> list[str]:
    """The protocols that a client's context offers; empty also where that cannot be found out."""
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return _protocols_in_hello(sent.read())
    except Exception:  # noqa: BLE001  # a context that speaks TLS in a way of its own: what is chosen is checked
        pass
    return []


def _protocols_in_hello(record: bytes) -> list[str]:
    """The protocols in a ClientHello (RFC 8446 section 4.1.2) that OpenSSL has written in one record."""
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
    """Refuse to speak HTTP/1.1 into another protocol that the server has chosen.

    Args:
        tls: the ``ssl.SSLObject`` or ``ssl.SSLSocket`` after its handshake; None where nobody knows it.

    Raises:
        HandshakeError: with status 505, which is not tried again.
    """
    chosen = None if tls is None else tls.selected_alpn_protocol()
    if chosen not in (None, HTTP11):
        raise HandshakeError(
            f"expected a server that speaks http/1.1 within TLS, got one that has chosen {chosen!r} by ALPN: give "
            "ssl= a context of its own, which does not offer that",
            status=505,
            body=b"",
        )
