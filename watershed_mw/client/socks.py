"""The dialogue with a SOCKS5 proxy (RFC 1928, RFC 1929), without I/O.

The package socksio writes the requests. Its reader needs each reply in one piece, so replies are read here.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

import httpx

from ..errors import HandshakeError

__all__ = ["Dialogue", "socks_dialogue", "stream_ended"]

Dialogue: TypeAlias = Generator[tuple[bytes, int], bytes, None]
"""Yields the bytes to write and the number of bytes to read, and is sent the bytes read."""

_NO_AUTHENTICATION, _PASSWORD = 0, 2
_ADDRESS_SIZES = {1: 4, 4: 16}
_NAME = 3
_MAX_CREDENTIAL = 255


def socks_dialogue(proxy: httpx.Proxy, host: str, port: int) -> Dialogue:
    """Ask ``proxy`` to connect to ``host``; the proxy resolves the name.

    Raises:
        HandshakeError: the proxy refuses (502), or does not speak SOCKS5.
        ValueError: the credentials are too long for a SOCKS5 request.
    """
    from socksio import socks5

    auth = proxy.raw_auth
    method = _NO_AUTHENTICATION if auth is None else _PASSWORD
    reply = yield socks5.SOCKS5AuthMethodsRequest([socks5.SOCKS5AuthMethod(bytes([method]))]).dumps(), 2
    if reply != bytes([5, method]):
        raise _refused(f"no authentication by method {method}" if reply[0] == 5 else "another protocol than SOCKS5")
    if auth is not None:
        if max(map(len, auth)) > _MAX_CREDENTIAL:
            raise ValueError(
                f"expected a user name and a password of at most {_MAX_CREDENTIAL} bytes each for a SOCKS proxy"
            )
        reply = yield socks5.SOCKS5UsernamePasswordRequest(*auth).dumps(), 2
        if reply[1] != 0:
            raise _refused("wrong user or password")
    connect = socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port))
    version, code, _, kind = yield connect.dumps(), 4
    if version != 5:
        raise _refused("another protocol than SOCKS5")
    if code != 0:
        known = {reply.value[0]: reply.name.replace("_", " ").lower() for reply in socks5.SOCKS5ReplyCode}
        raise _refused(known.get(code, f"reply {code}"))
    if kind == _NAME:
        size = (yield b"", 1)[0]
    elif kind in _ADDRESS_SIZES:
        size = _ADDRESS_SIZES[kind]
    else:
        raise _refused(f"an address of type {kind}")
    yield b"", size + 2  # skips the address and port that the proxy connects from


def stream_ended() -> HandshakeError:
    """The error for a stream that ends during the dialogue."""
    return HandshakeError("expected the SOCKS proxy to connect, got the end of its stream", status=502, body=b"")


def _refused(what: str) -> HandshakeError:
    return HandshakeError(f"expected the SOCKS proxy to connect, got: {what}", status=502, body=b"")
