"""Negotiating permessage-deflate (RFC 7692 section 7.1): the four parameters, on both sides.

The server takes the first offer that it can serve and silently passes over those that it cannot
(section 5.1); the client refuses every answer that its offer does not allow. No compression
happens here: what was agreed on is handed to :mod:`~watershed_mw.core.deflate`.
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
    """What this end wants of permessage-deflate; the defaults suit many small messages.

    Args:
        window_bits: largest LZ77 window that either end may use, base-2 logarithm of bytes,
            9 to 15; default 12 (4 KiB): some 50 KiB of memory where both directions are compressed, and some 80 where
            the client does not let its own window be limited (``client_max_window_bits``).
        memory_level: zlib's ``memLevel``, 1 to 9; default 5.
        level: zlib's compression level, 0 to 9, or -1 for zlib's own choice, which is 6; default 2. Measured with the
            other defaults, as microseconds for each message and bytes before to bytes after:

            =====================  =========  =========  =========  =========
            messages               level 1    level 2    level 3    level 6
            =====================  =========  =========  =========  =========
            JSON of 60 B           2.2, 2.40  2.2, 2.47  2.3, 2.59  2.6, 2.78
            JSON of 170 B          3.6, 2.88  3.7, 2.96  3.8, 3.01  4.9, 3.19
            JSON of 512 B          7.3, 3.48  7.2, 3.70  7.5, 3.80  8.9, 4.30
            JSON of 4 KiB          24, 4.20   24, 4.53   27, 4.66   39, 5.35
            JSON of 64 KiB         316, 4.29  311, 4.64  348, 4.79  550, 5.48
            words, 1 KiB           12, 2.56   14, 2.63   16, 2.70   28, 2.77
            Python source, 8 KiB   72, 3.42   75, 3.55   83, 3.61   133, 4.02
            =====================  =========  =========  =========  =========
        context_takeover: keep the window between messages for a better ratio; default True.
        threshold: messages shorter than this many bytes go uncompressed; default 64.
    """

    window_bits: int = 12
    memory_level: int = 5
    level: int = 2
    context_takeover: bool = True
    threshold: int = 64

    def __post_init__(self) -> None:
        # zlib cannot deflate with a window of 256 bytes: it silently takes 512 instead.
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
    """What both ends agreed on (RFC 7692 section 7.1), seen from this end.

    ``local_*`` governs what this end compresses, ``remote_*`` what the peer does. A ``local_max_window_bits`` of 8 is
    more than zlib can do: this end then sends uncompressed, as it may with any message (section 6).
    """

    local_no_context_takeover: bool = False
    remote_no_context_takeover: bool = False
    local_max_window_bits: int = 15
    remote_max_window_bits: int = 15
    options: DeflateOptions = DeflateOptions()


# Thousands of connections agree on the same.
_agreed = lru_cache(64)(DeflateParameters)


@dataclass(frozen=True, slots=True)
class _Parameters:
    """One offer or answer, parsed. A window of 0 means that the parameter came without a value."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None


_VALUELESS = 0


def accept_offer(offers: Sequence[ExtensionOffer], options: DeflateOptions) -> tuple[DeflateParameters, str] | None:
    """What a server agrees on, and its Sec-WebSocket-Extensions value; None when no offer fits.

    An offer with an unknown, repeated or out-of-range parameter is declined, not an error:
    section 7.1 has the server decline it.
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
            continue  # zlib cannot deflate with 2**8; declining is all that section 7.1.2.1 leaves.
        remote_bits = 15
        answer = [NAME]
        local_no_takeover = offer.server_no_context_takeover or not options.context_takeover
        remote_no_takeover = offer.client_no_context_takeover or not options.context_takeover
        if local_no_takeover:
            answer.append("server_no_context_takeover")
        if remote_no_takeover:
            answer.append("client_no_context_takeover")
        if offer.server_max_window_bits is not None:
            # Section 7.1.2.1 lets a server say so unasked, for the client's inflater to be small, but some clients
            # refuse each parameter that they have not offered: without it they inflate with 2**15, which is fine.
            answer.append(f"server_max_window_bits={local_bits}")
        if offer.client_max_window_bits is not None:
            remote_bits = min(options.window_bits, offer.client_max_window_bits or 15)
            answer.append(f"client_max_window_bits={remote_bits}")
        return _agreed(local_no_takeover, remote_no_takeover, local_bits, remote_bits, options), "; ".join(answer)
    return None


def make_offer(options: DeflateOptions) -> str:
    """The Sec-WebSocket-Extensions value with which a client offers permessage-deflate.

    Where ``options`` ask something of the server, an offer without that comes second: some servers take the first one
    and answer without what it asks for, which then is the answer to the second (RFC 7692 section 5).
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
    """The header fields of a request with an offer that has no parameters in place of one that has; None without one.

    Section 5.1 has a server decline a parameter that it does not know. Some refuse the request instead, with a 400.
    """
    plain = [(name, NAME if name.lower() == "sec-websocket-extensions" else value) for name, value in fields]
    return None if plain == list(fields) else plain


def check_answer(
    answers: Sequence[ExtensionOffer], offers: Sequence[ExtensionOffer], options: DeflateOptions
) -> DeflateParameters | None:
    """What a client agreed on by the server's answer; None when the server chose no extension.

    Raises:
        HandshakeError: an extension or parameter that was not offered, or that is out of range.
    """
    if not answers:
        return None
    if len(answers) > 1:
        raise HandshakeError(f"expected at most one extension in the answer, got {len(answers)}")
    name, pairs = answers[0]
    offered = [parameters for offered_name, parameters in offers if offered_name == name == NAME]
    if not offered:
        raise HandshakeError(f"expected no extension that was not offered, got {shown(name)}")
    answer = _parse(pairs, client_bits_need_value=True)
    refusals = []
    for parameters in offered:
        try:
            offer = _parse(parameters, client_bits_need_value=False)
        except HandshakeError as error:
            refusals.append(str(error))  # an application's own, which a server can only decline
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
        # What the offer promised is kept, whether the answer repeats it or not (section 7.1.2.2).
        local_max_window_bits=min(
            options.window_bits, offer.client_max_window_bits or 15, answer.client_max_window_bits or 15
        ),
        remote_max_window_bits=answer.server_max_window_bits or 15,
        options=options,
    )


def _not_allowed(answer: _Parameters, offer: _Parameters) -> str | None:
    """Why ``offer`` does not allow ``answer`` (RFC 7692 section 7.1), or None where it does."""
    if offer.server_no_context_takeover and not answer.server_no_context_takeover:
        return "expected server_no_context_takeover in the answer, as it was offered; got none"
    if offer.server_max_window_bits is not None and (
        answer.server_max_window_bits is None or answer.server_max_window_bits > offer.server_max_window_bits
    ):
        return (
            f"expected server_max_window_bits of at most {offer.server_max_window_bits} in the answer, "
            f"got {answer.server_max_window_bits}"
        )
    # More than was offered is harmless: section 7.1.2.2 lets the server ignore our value.
    if answer.client_max_window_bits is not None and offer.client_max_window_bits is None:
        return "expected no client_max_window_bits in the answer, as it was not offered"
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
