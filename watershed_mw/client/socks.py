"""The dialogue with a SOCKS5 proxy (RFC 1928, RFC 1929), without I/O; a reply may come in any number of pieces.

Requests are written by the package socksio; its reader takes only what comes in one piece.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

import httpx

from ..errors import HandshakeError

__all__ = ["Dialogue", "socks_dialogue"]

Dialogue: TypeAlias = Generator[tuple[bytes, int], bytes, None]
"""Yields what to write, and how many bytes to read then, which it is sent."""

_NO_AUTHENTICATION, _PASSWORD = 0, 2
_ADDRESS_SIZES = {1: 4, 4: 16}
_NAME = 3
_MOST = 255


def socks_dialogue(proxy: httpx.Proxy, host: str, port: int) -> Dialogue:
    """Ask ``proxy`` to connect to ``host``, whose name it resolves.

    Raises:
        HandshakeError: the proxy does not (502), or speaks something else.
        ValueError: the proxy's credentials do not fit into a request.
    """
    from socksio import socks5

    auth = proxy.raw_auth
    method = _NO_AUTHENTICATION if auth is None else _PASSWORD
    reply = yield socks5.SOCKS5AuthMethodsRequest([socks5.SOCKS5AuthMethod(bytes([method]))]).dumps(), 2
    if reply != bytes([5, method]):
        raise _refused(f"no authentication by method {method}" if reply[0] == 5 else "something else than SOCKS5")
    if auth is not None:
        if max(map(len, auth)) > _MOST:
            raise ValueError(f"expected a user and a password of at most {_MOST} bytes each for a SOCKS proxy")
        reply = yield socks5.SOCKS5UsernamePasswordRequest(*auth).dumps(), 2
        if reply[1] != 0:
            raise _refused("wrong user or password")
    connect = socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port))
    version, code, _, kind = yield connect.dumps(), 4
    if version != 5:
        raise _refused("something else than SOCKS5")
    if code != 0:
        known = {reply.value[0]: reply.name.replace("_", " ").lower() for reply in socks5.SOCKS5ReplyCode}
        raise _refused(known.get(code, f"reply {code}"))
    if kind == _NAME:
        size = (yield b"", 1)[0]
    elif kind in _ADDRESS_SIZES:
        size = _ADDRESS_SIZES[kind]
    else:
        raise _refused(f"an address of kind {kind}")
    yield b"", size + 2  # where the proxy has connected from, which nobody needs


def _refused(what: str) -> HandshakeError:
    return HandshakeError(f"expected the SOCKS proxy to connect, got: {what}", status=502, body=b"")
