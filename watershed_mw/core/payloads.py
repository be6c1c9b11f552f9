"""Conversion of what an application sends to exactly ``str`` or ``bytes``.

The protocol requires exact types: a subclass may override ``encode`` or ``__len__``, and a mutable buffer may change
before it is written. Both are copied here, before anything else uses them.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeAlias

from .codes import encode_text

__all__ = ["Buffer", "Sendable", "as_message", "as_ping_payload", "exact_text"]

# Field names in the format of a buffer (PEP 3118).
_FIELD_NAME = re.compile(":[^:]*:")


class Buffer(Protocol):
    """An object that exports a buffer; from Python 3.12 on, every such object has this method (PEP 688)."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """A view of the buffer."""


Sendable: TypeAlias = "str | Buffer"
"""The types of messages that can be sent."""


def as_message(data: Sendable) -> str | bytes:
    """``data`` as a message.

    A ``str`` is TEXT, instances of subclasses included (``markupsafe.Markup``, Django's ``SafeString``, members of a
    ``StrEnum``). An object that exports a buffer is BINARY, with its bytes in C order (``bytes``, ``bytearray``,
    ``memoryview``, ``array.array``, ``mmap``, NumPy arrays).

    Raises:
        TypeError: it is of another type.
    """
    return _exact(data, "str for a TEXT message or a bytes-like object for a BINARY one")


def as_ping_payload(data: Sendable) -> bytes:
    """``data`` as the payload of a PING, text in UTF-8. Raises as :func:`as_message` and :func:`encode_text`."""
    payload = _exact(data, "str or a bytes-like object for the payload of a PING")
    return encode_text(payload) if isinstance(payload, str) else payload


def exact_text(text: Any) -> Any:
    """``text`` as exactly ``str`` if it is an instance of a subclass; other types are returned unchanged."""
    # Not str(text): a subclass may override __str__, as a (str, Enum) does.
    return str.__str__(text) if isinstance(text, str) else text


def _exact(data: Sendable, expected: str) -> str | bytes:
    if isinstance(data, str):
        return str.__str__(data)
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"expected {expected}, got {type(data).__name__}: encode it first") from None
    with view:
        if "O" in view.format and "O" in _FIELD_NAME.sub("", view.format):
            # Its bytes are addresses in this process.
            raise TypeError(f"expected {expected}, got {type(data).__name__} of Python objects: encode them first")
        return view.tobytes()
