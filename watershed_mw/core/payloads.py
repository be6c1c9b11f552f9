"""What an application may send, and the exact ``str`` or ``bytes`` that is sent of it.

The protocol works on exact ``str`` and ``bytes``: a subclass may change what ``encode`` or ``len`` return, and a buffer
may change while it waits to be written. Both are copied here, once, before anything else looks at them.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeAlias

from .codes import encode_text

__all__ = ["Buffer", "Sendable", "as_message", "as_ping_payload", "exact_text"]

# Names of fields in the format of a buffer (PEP 3118).
_FIELD_NAME = re.compile(":[^:]*:")


class Buffer(Protocol):
    """Whatever exports a buffer; every such object has this method from Python 3.12 on (PEP 688)."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """A view of the buffer."""


Sendable: TypeAlias = "str | Buffer"
"""What may be sent as a message."""


def as_message(data: Sendable) -> str | bytes:
    """The message that ``data`` is.

    A ``str`` is TEXT, and so is an instance of any subclass, by its characters (``markupsafe.Markup``, Django's
    ``SafeString``, a ``StrEnum`` member). Whatever exports a buffer is BINARY, by its bytes in C order (``bytes``,
    ``bytearray``, ``memoryview``, ``array.array``, ``mmap``, arrays of NumPy's).

    Raises:
        TypeError: neither of them; ``bytes(5)`` would be five zeros.
    """
    return _exact(data, "str for a TEXT message or a bytes-like object for a BINARY one")


def as_ping_payload(data: Sendable) -> bytes:
    """The payload that ``data`` is, text in UTF-8. Raises as :func:`as_message` and :func:`encode_text`."""
    payload = _exact(data, "str or a bytes-like object for the payload of a PING")
    return encode_text(payload) if isinstance(payload, str) else payload


def exact_text(text: Any) -> Any:
    """``text`` as a ``str`` that is no instance of a subclass; what is no ``str`` is returned as it is."""
    # Not str(text): a subclass may show itself as something else, as the members of a (str, Enum) do.
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
            # Their addresses in this process's memory are no message.
            raise TypeError(f"expected {expected}, got {type(data).__name__} of Python objects: encode them first")
        return view.tobytes()
