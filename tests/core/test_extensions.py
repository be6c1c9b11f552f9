"""core/handshake/extensions.py: negotiating permessage-deflate (RFC 7692 sections 5 and 7.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watershed_mw.core.handshake.extensions import (
    DeflateOptions,
    DeflateParameters,
    accept_offer,
    check_answer,
    make_offer,
)
from watershed_mw.core.handshake.headers import ExtensionOffer, Headers, parse_extensions
from watershed_mw.errors import HandshakeError

FULL = DeflateOptions(window_bits=15)
BITS_OUT_OF_RANGE = ["0", "7", "16", "999", "08", "-8", "+9", "9.0", "1_0", "x", "٩"]
NAME = "permessage-deflate"


def parsed(*values: str) -> list[ExtensionOffer]:
    """Sec-WebSocket-Extensions fields, parsed."""
    return parse_extensions(Headers([("Sec-WebSocket-Extensions", value) for value in values]))


def answer_to(offer: str, options: DeflateOptions = FULL) -> str | None:
    """A server's response to ``offer``, or None if it declines."""
    agreed = accept_offer(parsed(offer), options)
    return None if agreed is None else agreed[1]


def agreed_by(answer: str, offer: str, options: DeflateOptions = FULL) -> DeflateParameters | None:
    """The parameters of a client that sent ``offer`` and got ``answer``."""
    return check_answer(parsed(answer), parsed(offer), options)


def bits(local: int, remote: int, **others: Any) -> DeflateParameters:
    """Parameters that differ from the default in their windows."""
    return DeflateParameters(local_max_window_bits=local, remote_max_window_bits=remote, **others)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("window_bits", range(9, 16), [8, 0, 16, -15]),
        ("memory_level", range(1, 10), [0, 10]),
        ("level", range(-1, 10), [-2, 10]),
        ("threshold", [0, 1, 10**6], [-1]),
    ],
)
def test_options_are_checked_when_they_are_set(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(dataclasses.replace(FULL, **{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"expected .*{name}.* {'of 0 bytes or more' if value == -1 else ''}"):
            dataclasses.replace(FULL, **{name: value})


def test_default_options_are_the_documented_ones() -> None:
    assert DeflateOptions() == DeflateOptions(12, 5, 2, True, 64)


# --- the server's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offer, answer, expected",
    [
        (f"{NAME}", f"{NAME}", bits(15, 15)),
        (
            f"{NAME}; server_no_context_takeover",
            f"{NAME}; server_no_context_takeover",
            bits(15, 15, local_no_context_takeover=True),
        ),
        (
            f"{NAME}; client_no_context_takeover",
            f"{NAME}; client_no_context_takeover",
            bits(15, 15, remote_no_context_takeover=True),
        ),
        (f"{NAME}; server_max_window_bits=10", f"{NAME}; server_max_window_bits=10", bits(10, 15)),
        (f"{NAME}; server_max_window_bits=15", f"{NAME}; server_max_window_bits=15", bits(15, 15)),
        (f"{NAME}; client_max_window_bits", f"{NAME}; client_max_window_bits=15", bits(15, 15)),
        (f"{NAME}; client_max_window_bits=10", f"{NAME}; client_max_window_bits=10", bits(15, 10)),
        (f"{NAME}; client_max_window_bits=8", f"{NAME}; client_max_window_bits=8", bits(15, 8)),
        (f'{NAME}; client_max_window_bits="10"', f"{NAME}; client_max_window_bits=10", bits(15, 10)),
        (
            (
                f"{NAME}; client_max_window_bits=9; server_max_window_bits=11; "
                "client_no_context_takeover; server_no_context_takeover"
            ),
            (
                f"{NAME}; server_no_context_takeover; client_no_context_takeover; "
                "server_max_window_bits=11; client_max_window_bits=9"
            ),
            bits(11, 9, local_no_context_takeover=True, remote_no_context_takeover=True),
        ),
        # The example of RFC 7692 section 7.1.3: the second offer is the fallback of the first.
        (
            f"{NAME}; client_max_window_bits; server_max_window_bits=10, {NAME}; client_max_window_bits",
            f"{NAME}; server_max_window_bits=10; client_max_window_bits=15",
            bits(10, 15),
        ),
        (f"unknown, {NAME}", f"{NAME}", bits(15, 15)),
    ],
)
def test_server_accepts_an_offer(offer: str, answer: str, expected: DeflateParameters) -> None:
    expected = dataclasses.replace(expected, options=FULL)
    assert accept_offer(parsed(offer), FULL) == (expected, answer)


@pytest.mark.parametrize(
    "offer, answer, windows",
    [
        # Its own window is small all the same, but an answer has no server_max_window_bits that was not offered: some
        # clients refuse it, and whatever inflates with 2**15 inflates this.
        (f"{NAME}", f"{NAME}", (12, 15)),
        (f"{NAME}; client_max_window_bits", f"{NAME}; client_max_window_bits=12", (12, 12)),
        (
            f"{NAME}; server_max_window_bits=15; client_max_window_bits=15",
            f"{NAME}; server_max_window_bits=12; client_max_window_bits=12",
            (12, 12),
        ),
        (
            f"{NAME}; server_max_window_bits=9; client_max_window_bits=9",
            f"{NAME}; server_max_window_bits=9; client_max_window_bits=9",
            (9, 9),
        ),
    ],
)
def test_server_requests_its_own_smaller_windows(offer: str, answer: str, windows: tuple[int, int]) -> None:
    agreed = accept_offer(parsed(offer), DeflateOptions(window_bits=12))
    assert agreed is not None
    assert agreed[1] == answer
    assert (agreed[0].local_max_window_bits, agreed[0].remote_max_window_bits) == windows


def test_server_without_context_takeover_disables_it_in_both_directions() -> None:
    agreed = accept_offer(parsed(NAME), DeflateOptions(window_bits=15, context_takeover=False))
    assert agreed is not None
    assert agreed[1] == f"{NAME}; server_no_context_takeover; client_no_context_takeover"
    assert agreed[0].local_no_context_takeover
    assert agreed[0].remote_no_context_takeover


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "unknown",
        "Permessage-Deflate",
        "x-webkit-deflate-frame",
        f"{NAME}; unknown",
        f"{NAME}; Server_no_context_takeover",
        f"{NAME}; server_no_context_takeover=1",
        f"{NAME}; client_no_context_takeover=true",
        f"{NAME}; server_no_context_takeover; server_no_context_takeover",
        f"{NAME}; client_max_window_bits; client_max_window_bits",
        f"{NAME}; client_max_window_bits=9; client_max_window_bits=10",
        f"{NAME}; server_max_window_bits",
        f"{NAME}; server_max_window_bits=8",  # legal, but zlib cannot deflate with it
    ],
)
def test_server_declines_unsupported_offers(offer: str) -> None:
    assert answer_to(offer) is None
    assert answer_to(f"{offer}, {NAME}") == NAME


@pytest.mark.parametrize("parameter", ["server_max_window_bits", "client_max_window_bits"])
@pytest.mark.parametrize("value", BITS_OUT_OF_RANGE)
def test_server_declines_windows_out_of_range(parameter: str, value: str) -> None:
    # Not through the header's grammar, which some of these would not pass.
    assert accept_offer([(NAME, ((parameter, value),))], FULL) is None


def test_server_accepts_the_first_supported_of_a_thousand_offers() -> None:
    offers = ", ".join(f"{NAME}; server_max_window_bits={value}" for value in [0, 7, 16, 999] * 250)
    assert answer_to(f"{offers}, {NAME}; server_max_window_bits=9") == f"{NAME}; server_max_window_bits=9"


# --- the client's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, offer",
    [
        (FULL, f"{NAME}; client_max_window_bits"),
        (
            DeflateOptions(),
            f"{NAME}; server_max_window_bits=12; client_max_window_bits=12, {NAME}; client_max_window_bits",
        ),
        (
            DeflateOptions(window_bits=9, context_takeover=False),
            (
                f"{NAME}; server_no_context_takeover; client_no_context_takeover; "
                f"server_max_window_bits=9; client_max_window_bits=9, {NAME}; client_max_window_bits"
            ),
        ),
    ],
)
def test_client_offers_its_options(options: DeflateOptions, offer: str) -> None:
    assert make_offer(options) == offer


def test_client_accepts_the_answer_to_an_offer_beside_an_unknown_one() -> None:
    """An application's own offers: a server declines those it does not know, and accepts the next."""
    assert agreed_by(f"{NAME}", f"{NAME}; x=08, {NAME}") == agreed_by(f"{NAME}", f"{NAME}")
    with pytest.raises(HandshakeError, match="expected a parameter of permessage-deflate, got 'x'"):
        agreed_by(f"{NAME}", f"{NAME}; x=08")


def test_client_accepts_the_answer_of_a_server_that_ignores_its_demands() -> None:
    offers = parsed(make_offer(DeflateOptions()))
    agreed = check_answer(parsed(f"{NAME}; server_no_context_takeover"), offers, DeflateOptions())
    assert agreed is not None
    assert (agreed.remote_max_window_bits, agreed.local_max_window_bits) == (15, 12)


@pytest.mark.parametrize(
    "offer, answer, expected",
    [
        (f"{NAME}", f"{NAME}", bits(15, 15)),
        (f"{NAME}; client_max_window_bits", f"{NAME}", bits(15, 15)),
        (f"{NAME}; client_max_window_bits", f"{NAME}; client_max_window_bits=10", bits(10, 15)),
        (f"{NAME}; client_max_window_bits=12", f"{NAME}; client_max_window_bits=12", bits(12, 15)),
        (f"{NAME}; client_max_window_bits=12", f"{NAME}; client_max_window_bits=9", bits(9, 15)),
        # zlib cannot deflate with it, so nothing is deflated.
        (f"{NAME}; client_max_window_bits", f"{NAME}; client_max_window_bits=8", bits(8, 15)),
        # The offer is a promise, which the server may ignore (RFC 7692 section 7.1.2.2): it is kept all the same.
        (f"{NAME}; client_max_window_bits=12", f"{NAME}", bits(12, 15)),
        (f"{NAME}; client_max_window_bits=12", f"{NAME}; client_max_window_bits=15", bits(12, 15)),
        (f"{NAME}", f"{NAME}; server_max_window_bits=8", bits(15, 8)),
        (f"{NAME}; server_max_window_bits=12", f"{NAME}; server_max_window_bits=10", bits(15, 10)),
        (
            f"{NAME}",
            f"{NAME}; server_no_context_takeover; client_no_context_takeover",
            bits(15, 15, local_no_context_takeover=True, remote_no_context_takeover=True),
        ),
        (
            f"{NAME}; client_no_context_takeover",
            f"{NAME}",
            bits(15, 15),
        ),
        # What the first offer does not allow the second may.
        (f"{NAME}; server_max_window_bits=10, {NAME}", f"{NAME}; server_max_window_bits=14", bits(15, 14)),
    ],
)
def test_client_accepts_an_answer_that_its_offer_allows(offer: str, answer: str, expected: DeflateParameters) -> None:
    assert agreed_by(answer, offer) == dataclasses.replace(expected, options=FULL)


def test_client_limits_its_window_and_takeover_to_what_the_answer_allows() -> None:
    options = DeflateOptions(window_bits=11, context_takeover=False)
    agreed = agreed_by(NAME, NAME, options)
    assert agreed == bits(11, 15, local_no_context_takeover=True, options=options)


def test_no_extension_in_the_answer_means_no_compression() -> None:
    assert agreed_by("", NAME) is None
    assert agreed_by("", "") is None


@pytest.mark.parametrize(
    "offer, answer, message",
    [
        ("", NAME, "expected an extension that was offered, got 'permessage-deflate'"),
        (NAME, "unknown", "expected an extension that was offered, got 'unknown'"),
        ("unknown", "unknown", "expected an extension that was offered, got 'unknown'"),
        (NAME, "Permessage-Deflate", "expected an extension that was offered, got 'Permessage-Deflate'"),
        (NAME, f"{NAME}, {NAME}", "expected at most one extension in the response, got 2"),
        (NAME, f"{NAME}; unknown", "expected a parameter of permessage-deflate, got 'unknown'"),
        (
            NAME,
            f"{NAME}; server_no_context_takeover; server_no_context_takeover",
            "expected each permessage-deflate parameter once, got 'server_no_context_takeover' again",
        ),
        (
            NAME,
            f"{NAME}; client_no_context_takeover=1",
            "expected client_no_context_takeover without a value, got '1'",
        ),
        (
            NAME,
            f"{NAME}; server_max_window_bits",
            "expected server_max_window_bits from 8 to 15, got no value",
        ),
        (
            f"{NAME}; client_max_window_bits",
            f"{NAME}; client_max_window_bits",
            "expected client_max_window_bits from 8 to 15, got no value",
        ),
        (
            NAME,
            f"{NAME}; client_max_window_bits=15",
            "client_max_window_bits in the response was not offered",
        ),
        (
            f"{NAME}; server_max_window_bits=10",
            f"{NAME}; server_max_window_bits=11",
            "expected server_max_window_bits of at most 10 in the response, got 11",
        ),
        (
            f"{NAME}; server_max_window_bits=10",
            NAME,
            "expected server_max_window_bits of at most 10 in the response, got None",
        ),
        (
            f"{NAME}; server_no_context_takeover",
            NAME,
            "expected server_no_context_takeover in the response, as offered, got none",
        ),
        (
            # The error reports the first refusal, of the preferred offer.
            f"{NAME}; server_max_window_bits=10, {NAME}; server_max_window_bits=9",
            f"{NAME}; server_max_window_bits=12",
            "expected server_max_window_bits of at most 10 in the response, got 12",
        ),
    ],
)
def test_client_refuses_an_answer_that_its_offer_does_not_allow(offer: str, answer: str, message: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        agreed_by(answer, offer)
    assert str(caught.value) == message


@pytest.mark.parametrize("parameter", ["server_max_window_bits", "client_max_window_bits"])
@pytest.mark.parametrize("value", BITS_OUT_OF_RANGE)
def test_client_refuses_windows_out_of_range(parameter: str, value: str) -> None:
    # CVE-2026-1526: they must not reach zlib.
    offers = parsed(f"{NAME}; client_max_window_bits")
    with pytest.raises(HandshakeError, match=f"expected {parameter} from 8 to 15, got "):
        check_answer([(NAME, ((parameter, value),))], offers, FULL)


# --- both together --------------------------------------------------------------------------------

options = st.builds(DeflateOptions, window_bits=st.integers(9, 15), context_takeover=st.booleans())


@given(options, options)
def test_both_ends_agree_on_the_same_parameters(client: DeflateOptions, server: DeflateOptions) -> None:
    offers = parsed(make_offer(client))
    agreed = accept_offer(offers, server)
    assert agreed is not None
    of_server, answer = agreed
    of_client = check_answer(parsed(answer), offers, client)
    assert of_client is not None
    # What one end may send, the other can read.
    assert of_server.local_max_window_bits <= of_client.remote_max_window_bits
    assert of_client.local_max_window_bits <= of_server.remote_max_window_bits
    assert of_server.local_no_context_takeover == of_client.remote_no_context_takeover
    # Nothing is in the answer that the client has not offered.
    assert ("server_max_window_bits" in answer) <= (client.window_bits < 15)
    assert of_client.local_no_context_takeover >= of_server.remote_no_context_takeover


parameters = st.tuples(
    st.sampled_from(
        [
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_max_window_bits",
            "client_max_window_bits",
            "x",
        ]
    ),
    st.none() | st.sampled_from(["8", "9", "12", "15", "0", "16"]) | st.text(max_size=3),
)
extension_lists = st.lists(
    st.tuples(st.sampled_from([NAME, "other"]), st.lists(parameters, max_size=4).map(tuple)), max_size=3
)


@given(extension_lists, extension_lists, options)
def test_any_offer_and_answer_are_accepted_declined_or_refused(
    answers: list[ExtensionOffer], offers: list[ExtensionOffer], wanted: DeflateOptions
) -> None:
    accept_offer(offers, wanted)  # never raises: section 5.1 has a server pass over what it cannot serve
    try:
        check_answer(answers, offers, wanted)
    except HandshakeError as error:
        assert str(error).startswith("expected ")  # noqa: PT017
