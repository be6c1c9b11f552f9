"""Header fields that many requests have in common, kept once: each connection would keep 2 KiB of a browser's head.

Only fields whose values recur and do not identify a client are kept, within bounds that a client cannot move.
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
# All browsers of a year and the hosts of one server are fewer; together some 200 KiB at worst.
_MOST_FIELDS = 512
_MOST_BYTES = 256

_known: dict[Field, Field] = {}


def share_fields(fields: MutableSequence[Field]) -> None:
    """Replace the fields in a scope's list of header fields by equal ones that are known already."""
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
                _known.clear()  # Common fields come back with the next requests.
            _known[field] = field
