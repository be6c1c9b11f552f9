"""Paths of a proxied request, spelled as the client sent them: ``%2F`` is not a slash, and ``%70`` is not decoded.

Frameworks route by decoded paths, and WSGI has only those (PEP 3333). So the routed prefix is located in the request
target byte by byte; a path is encoded again only if the server does not keep the target.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

__all__ = ["PATH_SAFE", "VISIBLE", "may_decode_to", "path_of_target", "split_prefix"]

# Characters of a path that need no encoding (RFC 3986 section 3.3).
PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
# All visible characters except "#", which a request target cannot contain.
VISIBLE: Final = "!\"$%&'()*+,/:;<=>?@[\\]^`{|}~"

_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_ENCODED_SLASH: Final = re.compile(rb"%2[Ff]")
# The absolute form, which clients send to a proxy (RFC 9112 section 3.2.2).
_SCHEME_AND_AUTHORITY: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://[^/?#]*")


def path_of_target(target: bytes) -> bytes:
    """The path of a request target: without the query, and without the scheme and authority of the absolute form."""
    path = target.partition(b"?")[0]
    absolute = _SCHEME_AND_AUTHORITY.match(path)
    return path if absolute is None else path[absolute.end() :] or b"/"


def may_decode_to(raw: bytes, decoded: bytes) -> bool:
    """Whether a server may have decoded the path ``raw`` to ``decoded``.

    werkzeug replaces invalid UTF-8; cheroot decodes everything but ``%2F``.
    """
    if decoded in (unquote_to_bytes(raw), unquote(raw.decode("latin-1")).encode()):
        return True
    parts = _ENCODED_SLASH.split(raw)
    return len(parts) > 1 and b"%2F".join(map(unquote_to_bytes, parts)) == decoded


def split_prefix(path: str, prefix: str) -> tuple[str, str] | None:
    """Split ``path`` after its prefix and keep its spelling; None if it does not begin with the prefix.

    Args:
        path: percent-encoded path.
        prefix: percent-encoded prefix, which the path may encode differently: ``/%6d`` begins with ``/m``.
    """
    wanted = unquote_to_bytes(prefix.rstrip("/"))
    position = found = 0
    while found < len(wanted):
        encoded = _ENCODED.match(path, position)
        piece = path[position : position + 1] if encoded is None else encoded.group()
        decoded = unquote_to_bytes(piece)
        if not piece or wanted[found : found + 1] != decoded:
            return None
        position += len(piece)
        found += 1
    before, rest = path[:position], path[position:]
    if wanted and rest[:3].upper() == "%2F":
        rest = f"/{rest[3:]}"  # a router that compares decoded paths took it for the slash after the prefix
    return None if rest and wanted and not rest.startswith("/") else (before, rest)
