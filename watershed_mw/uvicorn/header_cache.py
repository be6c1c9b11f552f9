"""Shares header fields that many requests have in common: otherwise each connection would keep 2 KiB of a browser's.

Only fields whose values recur and do not identify a client are shared, and a client cannot make the cache grow beyond
its bounds.
"""

from __future__ import annotations

from collections.abc import MutableSequence

__all__ = ["share_fields"]

Field = tuple[bytes, bytes]

_RECURRING = frozenset(
    {
        *(b"host", b"connection", b"upgrade", b"origin", b"user-agent", b"pragma", b"cache-control"),
        *(b"accept", b"accept-encoding", b"accept-language", b"sec-websocket-version", b"sec-websocket-extensions"),
        *(b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-gpc", b"dnt"),
        *(b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"via"),
    }
)
# The values identify a client, and some are secrets: only the names are shared.
_NAMES = {
    name: name
    for name in (
        *(b"sec-websocket-key", b"sec-websocket-protocol", b"cookie", b"authorization"),
        *(b"x-forwarded-for", b"x-real-ip", b"forwarded", b"x-request-id"),
    )
}
# More than a year's browsers and the hosts of one server need; at most about 200 KiB together.
_MOST_FIELDS = 512
_MOST_BYTES = 256

_known: dict[Field, Field] = {}


def share_fields(fields: MutableSequence[Field]) -> None:
    """Replace the fields in a scope's list of header fields with equal ones from the cache."""
    for index, field in enumerate(fields):
        known = _known.get(field)
        if known is not None:
            fields[index] = known
            continue
        name, value = field
        if name not in _RECURRING:
            fields[index] = (_NAMES.get(name, name), value)
        elif len(value) <= _MOST_BYTES:
            if len(_known) >= _MOST_FIELDS:
                _known.clear()  # common fields return with the next requests
            _known[field] = field
