"""Negotiating permessage-deflate (RFC 7692 section 7.1): the four parameters, on both sides.

The server accepts the first offer that it supports and skips the others (section 5.1); the client refuses a response
that its offer does not allow. The compression itself is in :mod:`~watershed_mw.core.deflate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import HandshakeError
from .headers import ExtensionOffer, shown

__all__ = ["DeflateOptions", "DeflateParameters", "accept_offer", "check_answer", "make_offer", "with_plain_offer"]

NAME = "permessage-deflate"


@dataclass(frozen=True, slots=True)
class DeflateOptions:
    """Settings of this end for permessage-deflate; the defaults suit many small messages.

    Args:
        window_bits: largest LZ77 window of either end, base-2 logarithm of bytes, 9 to 15; default 12 (4 KiB). A
            connection that compresses in both directions takes about 50 KiB of memory, or 80 KiB if the client does not
            support ``client_max_window_bits``.
        memory_level: zlib's ``memLevel``, 1 to 9; default 5.
        level: zlib's compression level, 0 to 9, or -1 for zlib's default, which is 6; default 2. The performance page
            shows times and ratios.
        context_takeover: whether to keep the window between messages, for a better ratio; default True.
        threshold: messages shorter than this many bytes are sent uncompressed; default 64.
    """

    window_bits: int = 12
    memory_level: int = 5
    level: int = 2
    context_takeover: bool = True
    threshold: int = 64

    def __post_init__(self) -> None:
        # zlib does not support deflating with a window of 256 bytes: it silently uses 512 instead.
        if not 9 <= self.window_bits <= 15:
            raise ValueError(f"expected window_bits from 9 to 15, got {self.window_bits!r}")
        if not 1 <= self.memory_level <= 9:
            raise ValueError(f"expected memory_level from 1 to 9, got {self.memory_level!r}")
        if not -1 <= self.level <= 9:
            raise ValueError(f"expected level from -1 to 9, got {self.level!r}")
        if self.threshold < 0:
            raise ValueError(f"expected a threshold of 0 bytes or more, got {self.threshold!r}")


@dataclass(frozen=True, slots=True)
class DeflateParameters:
    """The negotiated parameters (RFC 7692 section 7.1), from the point of view of this end.

    ``local_*`` applies to what this end compresses, ``remote_*`` to what the peer compresses. zlib does not support a
    ``local_max_window_bits`` of 8: this end then sends uncompressed, which is always allowed (section 6).
    """

    local_no_context_takeover: bool = False
    remote_no_context_takeover: bool = False
    local_max_window_bits: int = 15
    remote_max_window_bits: int = 15
    options: DeflateOptions = DeflateOptions()


# Connections with the same parameters share one object.
_agreed = lru_cache(64)(DeflateParameters)


@dataclass(frozen=True, slots=True)
class _Parameters:
    """A parsed offer or response. A window of 0 means that the parameter has no value."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None


_VALUELESS = 0


def accept_offer(offers: Sequence[ExtensionOffer], options: DeflateOptions) -> tuple[DeflateParameters, str] | None:
    """The parameters that a server accepts, and its Sec-WebSocket-Extensions value; None if no offer is acceptable.

    An offer with an unknown, repeated or out-of-range parameter is declined and not an error (section 7.1).
    """
    for name, pairs in offers:
        if name != NAME:
            continue
        try:
            offer = _parse(pairs, client_bits_need_value=False)
        except HandshakeError:
            continue
        local_bits = min(options.window_bits, offer.server_max_window_bits or 15)
        if local_bits < 9:
            continue  # zlib does not support 2**8: section 7.1.2.1 requires to decline
        remote_bits = 15
        answer = [NAME]
        local_no_takeover = offer.server_no_context_takeover or not options.context_takeover
        remote_no_takeover = offer.client_no_context_takeover or not options.context_takeover
        if local_no_takeover:
            answer.append("server_no_context_takeover")
        if remote_no_takeover:
            answer.append("client_no_context_takeover")
        if offer.server_max_window_bits is not None:
            # Section 7.1.2.1 allows this parameter without an offer, so that the client can use a small window. Some
            # clients refuse parameters that they have not offered; without it they use 2**15, which works as well.
            answer.append(f"server_max_window_bits={local_bits}")
        if offer.client_max_window_bits is not None:
            remote_bits = min(options.window_bits, offer.client_max_window_bits or 15)
            answer.append(f"client_max_window_bits={remote_bits}")
        return _agreed(local_no_takeover, remote_no_takeover, local_bits, remote_bits, options), "; ".join(answer)
    return None


def make_offer(options: DeflateOptions) -> str:
    """The Sec-WebSocket-Extensions value that a client sends to offer permessage-deflate.

    If ``options`` demand something of the server, a second offer follows without it: some servers accept the first
    offer but omit what it demands, which is then a response to the second (RFC 7692 section 5).
    """
    anything = f"{NAME}; client_max_window_bits"
    offer = [NAME]
    if not options.context_takeover:
        offer += ["server_no_context_takeover", "client_no_context_takeover"]
    if options.window_bits < 15:
        offer.append(f"server_max_window_bits={options.window_bits}")
    offer.append(
        "client_max_window_bits" if options.window_bits == 15 else f"client_max_window_bits={options.window_bits}"
    )
    wanted = "; ".join(offer)
    return wanted if wanted == anything else f"{wanted}, {anything}"


def with_plain_offer(fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """The header fields of a request with its offer's parameters removed; None if it has none.

    A server has to decline a parameter that it does not know (section 5.1). Some refuse the request instead, with 400.
    """
    plain = [(name, NAME if name.lower() == "sec-websocket-extensions" else value) for name, value in fields]
    return None if plain == list(fields) else plain


def check_answer(
    answers: Sequence[ExtensionOffer], offers: Sequence[ExtensionOffer], options: DeflateOptions
) -> DeflateParameters | None:
    """The parameters that result from the server's response; None if the server chose no extension.

    Raises:
        HandshakeError: an extension or parameter was not offered, or is out of range.
    """
    if not answers:
        return None
    if len(answers) > 1:
        raise HandshakeError(f"expected at most one extension in the response, got {len(answers)}")
    name, pairs = answers[0]
    offered = [parameters for offered_name, parameters in offers if offered_name == name == NAME]
    if not offered:
        raise HandshakeError(f"expected an extension that was offered, got {shown(name)}")
    answer = _parse(pairs, client_bits_need_value=True)
    refusals = []
    for parameters in offered:
        try:
            offer = _parse(parameters, client_bits_need_value=False)
        except HandshakeError as error:
            refusals.append(str(error))  # from the application; a server can only decline it
            continue
        refusal = _not_allowed(answer, offer)
        if refusal is None:
            break
        refusals.append(refusal)
    else:
        raise HandshakeError(refusals[0])
    return DeflateParameters(
        local_no_context_takeover=answer.client_no_context_takeover or not options.context_takeover,
        remote_no_context_takeover=answer.server_no_context_takeover,
        # The offer is binding, whether or not the response repeats it (section 7.1.2.2).
        local_max_window_bits=min(
            options.window_bits, offer.client_max_window_bits or 15, answer.client_max_window_bits or 15
        ),
        remote_max_window_bits=answer.server_max_window_bits or 15,
        options=options,
    )


def _not_allowed(answer: _Parameters, offer: _Parameters) -> str | None:
    """Why ``offer`` does not allow ``answer`` (RFC 7692 section 7.1), or None if it does."""
    if offer.server_no_context_takeover and not answer.server_no_context_takeover:
        return "expected server_no_context_takeover in the response, as offered, got none"
    if offer.server_max_window_bits is not None and (
        answer.server_max_window_bits is None or answer.server_max_window_bits > offer.server_max_window_bits
    ):
        return (
            f"expected server_max_window_bits of at most {offer.server_max_window_bits} in the response, "
            f"got {answer.server_max_window_bits}"
        )
    # A larger value than offered is harmless: the server may ignore ours (section 7.1.2.2).
    if answer.client_max_window_bits is not None and offer.client_max_window_bits is None:
        return "client_max_window_bits in the response was not offered"
    return None


def _parse(pairs: Sequence[tuple[str, str | None]], *, client_bits_need_value: bool) -> _Parameters:
    parsed: dict[str, bool | int] = {}
    for name, value in pairs:
        if name in parsed:
            raise HandshakeError(f"expected each {NAME} parameter once, got {shown(name)} again")
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                raise HandshakeError(f"expected {name} without a value, got {shown(value)}")
            parsed[name] = True
        elif name == "client_max_window_bits" and value is None and not client_bits_need_value:
            parsed[name] = _VALUELESS
        elif name in ("server_max_window_bits", "client_max_window_bits"):
            parsed[name] = _window_bits(name, value)
        else:
            raise HandshakeError(f"expected a parameter of {NAME}, got {shown(name)}")
    return _Parameters(**parsed)  # type: ignore[arg-type]


def _window_bits(name: str, value: str | None) -> int:
    # Section 7.1.2.1: "a decimal integer value without leading zeroes between 8 to 15 inclusive".
    if value not in ("8", "9", "10", "11", "12", "13", "14", "15"):
        raise HandshakeError(f"expected {name} from 8 to 15, got {'no value' if value is None else shown(value)}")
    return int(value)
