"""Header fields for the handshake: a small multi-mapping, and the grammars of the values.

Values are taken as the HTTP layer parsed them, and parsed by their grammar alone (RFC 9110 section 5.6, RFC 6455
section 9.1), in linear time. A value that does not match the grammar raises
:class:`~watershed_mw.errors.HandshakeError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Final, TypeAlias

from ...errors import HandshakeError

__all__ = [
    "REQUEST_FIELDS",
    "RESPONSE_FIELDS",
    "ExtensionOffer",
    "Headers",
    "HeadersLike",
    "check_incoming",
    "check_outgoing",
    "is_host",
    "is_token",
    "parse_extensions",
    "parse_tokens",
    "shown",
]

# Fields that the opening handshake sets; an application's are dropped (RFC 6455 sections 4.1 and 4.2.2).
REQUEST_FIELDS: Final = frozenset(
    {"connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"}
)
RESPONSE_FIELDS: Final = frozenset(
    {
        *("connection", "upgrade", "content-length", "transfer-encoding"),
        *("sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol"),
    }
)

HeadersLike: TypeAlias = "Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]"

ExtensionOffer: TypeAlias = "tuple[str, tuple[tuple[str, str | None], ...]]"
"""An extension's name and its ordered parameters, each with its value or None (RFC 6455 section 9.1)."""

# RFC 9110 section 5.6.2. Every alternative below starts with a different character, so that matching never backtracks
# and takes linear time.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SPACE = re.compile(r"[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BACKSLASH = re.compile(r"\\(.)")
# A line end within a value would inject a header field.
_BEYOND_LATIN_1 = re.compile(r"[^\x00-\xff]")
_FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 9110 section 7.2: uri-host [ ":" port ], of RFC 3986 section 3.2.2. The zone of an IPv6 address (RFC 6874) means
# nothing to a server, but some clients send it. Commas are not allowed: WSGI servers join repeated fields with them.
_HOST = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?)\]|\[v[0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+\]"
    r"|(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?",
    re.ASCII,
)


def shown(value: str) -> str:
    """``value`` for an error message: quoted, printable and short."""
    return ascii(value if len(value) <= 60 else value[:60] + "...")


def is_token(value: str) -> bool:
    """Whether ``value`` is a token (RFC 9110 section 5.6.2), as every subprotocol name must be."""
    return _TOKEN.fullmatch(value) is not None


def is_host(value: str) -> bool:
    """Whether ``value`` is a valid Host field: a host with an optional port (RFC 9110 section 7.2)."""
    match = _HOST.fullmatch(value)
    if match is None or match["address"] is None:
        return match is not None
    try:
        IPv6Address(match["address"])
    except ValueError:
        return False
    return True


class Headers:
    """An immutable list of header fields, looked up by case-insensitive name; fields may repeat.

    Args:
        fields: a mapping of names to values, or (name, value) pairs, as ``str`` or as ``bytes``, which are decoded as
            ISO-8859-1 so that no byte is lost.
    """

    __slots__ = ("_extensions", "_fields", "_repeated", "_values")

    def __init__(self, fields: HeadersLike = ()) -> None:
        # Most callers pass a list, for which isinstance() is much cheaper than for the abstract Mapping.
        pairs = fields.items() if not isinstance(fields, (list, tuple)) and isinstance(fields, Mapping) else fields
        # Every handshake runs this: the conversions are inline, as calls would double their cost.
        self._fields = tuple(
            [
                (
                    (name.decode("latin-1") if isinstance(name, bytes) else _text(name)).lower(),
                    value.decode("latin-1") if isinstance(value, bytes) else _text(value),
                )
                for name, value in pairs
            ]
        )
        # A handshake looks up some fifteen names: one pass builds the table for all of them.
        self._values = dict(self._fields)
        self._repeated: dict[str, list[str]] = {}
        if len(self._values) < len(self._fields):
            for name, value in self._fields:
                self._repeated.setdefault(name, []).append(value)
        self._extensions: list[ExtensionOffer] | None = None  # once they have been parsed

    def get_all(self, name: str) -> list[str]:
        """Every value of the field called ``name`` (lower case), in order; empty when there is none."""
        if self._repeated:
            return self._repeated.get(name, []).copy()
        value = self._values.get(name)
        return [] if value is None else [value]

    def get_one(self, name: str) -> str | None:
        """The one value of the field called ``name`` (lower case), or None.

        Raises:
            HandshakeError: the field came more than once, status 400.
        """
        if self._repeated and (count := len(self._repeated.get(name, ()))) > 1:
            raise HandshakeError(f"expected one {name} header, got {count}: send it once")
        return self._values.get(name)

    def get(self, name: str, default: str = "") -> str:
        """All values of ``name`` (any case) joined by a comma, as HTTP allows, or ``default``."""
        name = name.lower()
        if name in self._repeated:
            return ", ".join(self._repeated[name])
        return self._values.get(name, default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    def __repr__(self) -> str:
        return f"Headers({list(self._fields)!r})"


def _text(value: str | bytearray | memoryview) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


def check_outgoing(fields: HeadersLike) -> Headers:
    """Validate header fields that are to be sent.

    Raises:
        ValueError: a name is not a token, or a value contains a control character such as CR or LF.
    """
    headers = Headers(fields)
    for name, value in headers:
        if not is_token(name):
            raise ValueError(f"expected a token as the name of a header, got {shown(name)}")
        if value.isascii() and value.isprintable():
            continue  # the usual case, which is cheap to detect
        if _FORBIDDEN_IN_VALUE.search(value):
            raise ValueError(
                f"expected printable characters, got a control character in the value of header {name}: {shown(value)}"
            )
        if _BEYOND_LATIN_1.search(value):
            raise ValueError(f"expected ISO-8859-1 characters in header {name}, got {shown(value)}")
    return headers


def check_incoming(headers: Headers) -> None:
    """Refuse control characters, which some HTTP parsers let pass and which cannot be forwarded (RFC 9110 section 5.5).

    Raises:
        HandshakeError: a value contains a control character, status 400.
    """
    # One check for all values: nearly every request is printable ASCII.
    values = "".join([value for _, value in headers])
    if (values.isascii() and values.isprintable()) or not _FORBIDDEN_IN_VALUE.search(values):
        return
    name = next(name for name, value in headers if _FORBIDDEN_IN_VALUE.search(value))
    raise HandshakeError(f"expected printable characters, got a control character in the value of header {shown(name)}")


def parse_tokens(headers: Headers, name: str) -> list[str]:
    """The comma-separated tokens of every field called ``name`` (lower case), in order.

    Raises:
        HandshakeError: an element is not a token, status 400.
    """
    tokens = []
    for value in headers.get_all(name):
        # A token cannot contain a comma, so splitting implements the grammar (RFC 9110 section 5.6.1).
        for element in value.split(","):
            token = element.strip(" \t")
            if not token:
                continue  # Section 5.6.1.2: "A recipient MUST parse and ignore [...] empty list elements".
            if not is_token(token):
                raise HandshakeError(f"expected comma-separated tokens in header {name}, got {shown(token)}")
            tokens.append(token)
    return tokens


def parse_extensions(headers: Headers) -> list[ExtensionOffer]:
    """The Sec-WebSocket-Extensions fields as (name, parameters) in order (RFC 6455 section 9.1).

    Raises:
        HandshakeError: a value does not match the grammar, status 400.
    """
    # Parsed once: the request is validated first, and negotiated later.
    if headers._extensions is None:
        offers: list[ExtensionOffer] = []
        for value in headers.get_all("sec-websocket-extensions"):
            _parse_value(value, offers)
        headers._extensions = offers
    return headers._extensions.copy()


def _parse_value(value: str, offers: list[ExtensionOffer]) -> None:
    position = 0
    while True:
        position = _skip(value, position)
        if position < len(value) and value[position] != ",":
            offer, position = _parse_extension(value, position)
            offers.append(offer)
        if position >= len(value):
            return
        if value[position] != ",":
            raise _malformed(value, position)
        position += 1


def _parse_extension(value: str, position: int) -> tuple[ExtensionOffer, int]:
    name, position = _parse_token(value, position)
    parameters: list[tuple[str, str | None]] = []
    position = _skip(value, position)
    while value[position : position + 1] == ";":
        parameter, position = _parse_token(value, _skip(value, position + 1))
        position = _skip(value, position)
        argument: str | None = None
        if value[position : position + 1] == "=":
            argument, position = _parse_argument(value, _skip(value, position + 1))
            position = _skip(value, position)
        parameters.append((parameter, argument))
    return (name, tuple(parameters)), position


def _parse_token(value: str, position: int) -> tuple[str, int]:
    match = _TOKEN.match(value, position)
    if match is None:
        raise _malformed(value, position)
    return match.group(), match.end()


def _parse_argument(value: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(value, position)
    if quoted is None:
        return _parse_token(value, position)
    argument = _BACKSLASH.sub(r"\1", quoted.group(1))
    # Section 9.1: "the value after quoted-string unescaping MUST conform to the 'token' ABNF".
    if not is_token(argument):
        raise _malformed(value, position)
    return argument, quoted.end()


def _skip(value: str, position: int) -> int:
    match = _SPACE.match(value, position)
    assert match is not None
    return match.end()


def _malformed(value: str, position: int) -> HandshakeError:
    return HandshakeError(
        "expected extensions as 'name; parameter=value, ...' in header sec-websocket-extensions, "
        f"got {shown(value[position:])} at character {position + 1}"
    )
