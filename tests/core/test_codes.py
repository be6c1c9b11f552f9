"""core/codes.py: opcodes (RFC 6455 section 5.2), Close frames (5.5.1) and close codes (7.4)."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watershed_mw.core.codes import (
    MAX_CONTROL_PAYLOAD,
    CloseCode,
    Opcode,
    decode_close,
    encode_close,
    is_sendable,
    shorten,
)
from watershed_mw.errors import LocalProtocolError, RemoteProtocolError

# The table of section 7.4.2 and of IANA's registry, written down apart from the code, as ranges.
ALLOWED = [
    (1000, 1003),  # normal, going away, protocol error, unsupported data
    (1007, 1014),  # invalid data ... bad gateway; 1012 to 1014 came with the registry
    (3000, 3999),  # libraries and frameworks
    (4000, 4999),  # private use
]
SENDABLE = {code for first, last in ALLOWED for code in range(first, last + 1)}
ALL_CODES = range(5001)


def test_opcodes_are_those_of_section_5_2() -> None:
    assert [(item.name, item.value) for item in Opcode] == [
        ("CONTINUATION", 0),
        ("TEXT", 1),
        ("BINARY", 2),
        ("CLOSE", 8),
        ("PING", 9),
        ("PONG", 10),
    ]


def test_exactly_the_codes_of_section_7_4_may_be_sent() -> None:
    assert {code for code in ALL_CODES if is_sendable(code)} == SENDABLE
    assert not any(is_sendable(code) for code in (-1, 65535, 10**9))


def test_exactly_the_codes_of_section_7_4_are_encoded() -> None:
    encoded = set()
    for code in ALL_CODES:
        try:
            assert encode_close(code, "") == (b"" if code == 1005 else code.to_bytes(2, "big"))
        except LocalProtocolError as error:
            assert str(error).endswith(f"got {code}")  # noqa: PT017  (5,001 of them: a table, not one case)
        else:
            encoded.add(code)
    assert encoded == SENDABLE | {1005}


def test_exactly_the_codes_of_section_7_4_are_decoded() -> None:
    decoded = set()
    for code in ALL_CODES:
        try:
            assert decode_close(code.to_bytes(2, "big")) == (code, "")
        except RemoteProtocolError as error:
            assert (str(error), error.close_code) == (  # noqa: PT017
                f"close code {code} is not allowed in a Close frame",
                1002,
            )
        else:
            decoded.add(code)
    assert decoded == SENDABLE


def test_named_codes_can_be_sent_except_the_reserved_ones() -> None:
    assert {code.name for code in CloseCode if not is_sendable(code)} == {
        "NO_STATUS",
        "ABNORMAL",
        "TLS_HANDSHAKE",
    }


def test_no_payload_means_1005() -> None:
    assert decode_close(b"") == (1005, "")


def test_decoded_code_is_a_plain_int() -> None:
    assert type(decode_close(b"")[0]) is int
    assert type(decode_close(b"\x03\xe8")[0]) is int


def test_a_single_byte_is_not_a_code() -> None:
    with pytest.raises(RemoteProtocolError, match="of 0 or at least 2 bytes, got 1") as caught:
        decode_close(b"\x03")
    assert caught.value.close_code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_reason_that_is_not_utf8_is_refused_with_1007(reason: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="invalid UTF-8 in the close reason") as caught:
        decode_close(b"\x03\xe8" + reason)
    assert caught.value.close_code == 1007


def test_1005_cannot_carry_a_reason() -> None:
    with pytest.raises(LocalProtocolError, match="got 1005"):
        encode_close(1005, "why")


@pytest.mark.parametrize("code", [True, False, None, "1000", 1000.0, -1, 2**40, 999, 5000])
def test_invalid_close_codes_are_refused(code: Any) -> None:
    with pytest.raises(LocalProtocolError, match="expected a close code from 1000 to 1003"):
        encode_close(code, "")


def test_the_number_of_a_named_code_is_accepted() -> None:
    class Private(IntEnum):
        OVERLOADED = 4001

    assert encode_close(CloseCode.GOING_AWAY, "x") == b"\x03\xe9x"
    assert encode_close(Private.OVERLOADED, "x") == b"\x0f\xa1x"


@pytest.mark.advisory("CVE-2026-45736")
@pytest.mark.parametrize("reason", [b"bytes", None, 5, bytearray(b"x"), ["x"]])
def test_a_reason_that_is_not_a_string_is_refused(reason: Any) -> None:
    # CVE-2026-45736: an invalid reason must never expose uninitialised memory.
    with pytest.raises(LocalProtocolError, match=f"expected the close reason as str, got {type(reason).__name__}"):
        encode_close(1000, reason)


@pytest.mark.parametrize("reason", ["x" * 123, "é" * 61 + "x", "😀" * 30 + "xxx"])
def test_a_reason_of_123_bytes_fits(reason: str) -> None:
    assert len(encode_close(1000, reason)) == MAX_CONTROL_PAYLOAD == 125


@pytest.mark.advisory("CVE-2026-45736")
@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "😀" * 31, "x" * 100_000])
def test_a_longer_reason_is_refused(reason: str) -> None:
    with pytest.raises(LocalProtocolError, match=f"at most 123 UTF-8 bytes, got {len(reason.encode())}: shorten"):
        encode_close(1000, reason)


def test_a_reason_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="UTF-8 can encode: surrogates not allowed"):
        encode_close(1000, "\ud800")


@given(st.sampled_from(sorted(SENDABLE)), st.text(max_size=123))
def test_encoding_and_decoding_round_trip(code: int, reason: str) -> None:
    reason = shorten(reason)
    assert decode_close(encode_close(code, reason)) == (code, reason)


@given(st.text(max_size=300))
def test_a_truncated_reason_fits_and_is_a_prefix(reason: str) -> None:
    short = shorten(reason)
    assert reason.startswith(short)
    assert len(short.encode()) <= 123
    # Between characters, and not earlier than needed.
    assert short == reason or len((short + reason[len(short)]).encode()) > 123


def test_truncating_replaces_a_lone_surrogate_that_cannot_be_sent() -> None:
    assert encode_close(1002, shorten("got \ud800")) == b"\x03\xeagot ?"
