"""core/handshake/headers.py: header fields and their grammars (RFC 9110 section 5, RFC 6455 sections 4.3 and 9.1)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watershed_mw.core.handshake.headers import (
    ExtensionOffer,
    Headers,
    check_outgoing,
    is_token,
    parse_extensions,
    parse_tokens,
    shown,
)
from watershed_mw.errors import HandshakeError

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# CVE-2026-44546: str.splitlines() takes each of these for the end of a line.
LINE_ENDS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=20)
latin1 = st.characters(max_codepoint=255)


def extensions(*values: str) -> list[ExtensionOffer]:
    """The extensions parser's result for these field values."""
    return parse_extensions(Headers([("Sec-WebSocket-Extensions", value) for value in values]))


def protocols(*values: str) -> list[str]:
    """The token list parser's result for these field values."""
    return parse_tokens(Headers([("Sec-WebSocket-Protocol", value) for value in values]), "sec-websocket-protocol")


# --- the multi-mapping ----------------------------------------------------------------------------


def test_lookups_ignore_case_and_fields_keep_their_order() -> None:
    headers = Headers([("A", "1"), (b"b", b"2"), ("a", "3")])
    assert headers.get_all("a") == ["1", "3"]
    assert headers.get("A") == headers.get("a") == "1, 3"
    assert list(headers) == [("a", "1"), ("b", "2"), ("a", "3")]
    assert len(headers) == 3
    assert "A" in headers
    assert "B" in headers
    assert "c" not in headers
    assert 5 not in headers


def test_fields_come_from_a_mapping_or_from_pairs() -> None:
    assert Headers({"A": "1"}) == Headers([("a", "1")]) == Headers(Headers({b"A": b"1"}.items()))
    assert len(Headers()) == 0


def test_headers_compare_by_value() -> None:
    one, other = Headers({"A": "1"}), Headers({"A": "2"})
    assert one != other
    assert one != [("a", "1")]
    assert hash(one) == hash(Headers({"a": "1"}))
    assert repr(one) == "Headers([('a', '1')])"


def test_bytes_are_decoded_as_latin1_without_loss() -> None:
    every = bytes(range(256))
    assert Headers([(b"a", every)]).get("a").encode("latin-1") == every


def test_a_missing_field_is_the_default_or_none() -> None:
    assert Headers().get("a") == ""
    assert Headers().get("a", "b") == "b"
    assert Headers().get_one("a") is None


def test_a_repeated_singleton_field_is_refused() -> None:
    with pytest.raises(HandshakeError, match=r"^expected one host header, got 3: send it once$") as caught:
        Headers([("Host", "a"), ("host", "a"), ("HOST", "a")]).get_one("host")
    assert caught.value.status == 400


def test_a_repeated_field_does_not_affect_its_neighbours() -> None:
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3"), (bytearray(b"C"), memoryview(b"4"))])  # type: ignore[list-item]
    assert headers.get_all("b") == ["2"]
    assert headers.get_one("b") == headers.get("B") == "2"
    assert headers.get_one("c") == "4"
    assert headers.get_all("d") == []
    assert headers.get_one("d") is None


def test_results_belong_to_the_caller() -> None:
    headers = Headers([("A", "1"), ("Sec-WebSocket-Extensions", "a"), ("a", "2")])
    headers.get_all("a").clear()
    parse_extensions(headers).clear()
    assert headers.get_all("a") == ["1", "2"]
    assert parse_extensions(headers) == [("a", ())]


@pytest.mark.advisory("CVE-2026-44546")
@pytest.mark.parametrize("end", LINE_ENDS)
def test_no_value_is_ever_split_into_a_second_field(end: str) -> None:
    value = f"a{end}Origin: http://evil.example"
    headers = Headers([("X", value)])
    assert list(headers) == [("x", value)]


def test_no_field_name_is_trimmed_or_completed() -> None:
    assert Headers([("Origin ", "a"), ("Origin:", "b")]).get_all("origin") == []


# --- what may be written --------------------------------------------------------------------------


def test_outgoing_fields_may_hold_any_visible_text_and_tabs() -> None:
    value = "a\tb; \x80\xff\x85"
    assert check_outgoing({"X-Y": value}).get("x-y") == value


@pytest.mark.parametrize("character", [chr(code) for code in [*range(9), *range(10, 32), 127]])
def test_outgoing_values_must_not_contain_control_characters(character: str) -> None:
    with pytest.raises(ValueError, match="control character in the value of header x: 'a"):
        check_outgoing([("X", f"a{character}b")])


@pytest.mark.parametrize("value", ["\u0100", "\u2028", "\U0001f600", "\ud800"])
def test_outgoing_values_can_be_written_as_bytes(value: str) -> None:
    # Header fields are written as ISO-8859-1; found only while writing, it would be an answer cut in half.
    with pytest.raises(ValueError, match="in header x"):
        check_outgoing({"X": value})


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é", "\x00", '"'])
def test_outgoing_names_must_be_tokens(name: str) -> None:
    with pytest.raises(ValueError, match="expected a token as the name of a header, got "):
        check_outgoing([(name, "1")])


# --- texts in messages ----------------------------------------------------------------------------


def test_values_in_messages_are_short_and_printable() -> None:
    assert shown("a\r\né") == r"'a\r\n\xe9'"
    assert shown("x" * 60) == f"'{'x' * 60}'"
    assert shown("x" * 61) == f"'{'x' * 60}...'"
    assert len(shown("\U0001f600" * 10**6)) < 700


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_consists_of_the_characters_of_rfc_9110() -> None:
    allowed = {character for character in map(chr, range(0x2100)) if is_token(character)}
    assert allowed == set(TOKEN_CHARACTERS)
    assert not is_token("")
    assert not is_token("a\n")


@pytest.mark.parametrize(
    "values, expected",
    [
        (["a"], ["a"]),
        (["a,b"], ["a", "b"]),
        (["a , b\t,\tc"], ["a", "b", "c"]),
        (["a", "b, c"], ["a", "b", "c"]),
        ([",a,,b, ,"], ["a", "b"]),
        (["", "\t"], []),
        ([], []),
        (["A,a"], ["A", "a"]),
    ],
)
def test_token_lists_are_parsed(values: list[str], expected: list[str]) -> None:
    assert protocols(*values) == expected


@pytest.mark.parametrize(
    "value",
    ["a b", "a;b", '"a"', "a/b", "a=b", "é", "\x80\xff", *(f"a{end}b" for end in LINE_ENDS), "\x00", "a\xa0"],
)
def test_a_list_with_an_invalid_token_is_refused(value: str) -> None:
    with pytest.raises(HandshakeError, match=r"^expected comma-separated tokens in header sec-") as caught:
        protocols(f"chat, {value}")
    assert caught.value.status == 400
    assert str(caught.value).endswith(f"got {value!a}")


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_line_end_around_a_token_is_not_whitespace(end: str) -> None:
    for value in (f"{end}a", f"a{end}", f"a,{end}b"):
        with pytest.raises(HandshakeError):
            protocols(value)


# --- extensions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], []),
        ([""], []),
        ([" , ,\t"], []),
        (["foo"], [("foo", ())]),
        (["foo, bar"], [("foo", ()), ("bar", ())]),
        (["foo", "bar"], [("foo", ()), ("bar", ())]),
        (["foo; a"], [("foo", (("a", None),))]),
        (["foo;a=1;b=2"], [("foo", (("a", "1"), ("b", "2")))]),
        (["foo \t; a \t= \t1 \t, bar"], [("foo", (("a", "1"),)), ("bar", ())]),
        (['foo; a="1"'], [("foo", (("a", "1"),))]),
        ([r'foo; a="\1\0"'], [("foo", (("a", "10"),))]),
        (['foo; a="1" , bar;b="2"'], [("foo", (("a", "1"),)), ("bar", (("b", "2"),))]),
        (["foo; a; a; a=1"], [("foo", (("a", None), ("a", None), ("a", "1")))]),
        (["FOO; A"], [("FOO", (("A", None),))]),
        (
            # The example of section 9.1.
            ["deflate-stream", 'mux; max-channels="4"; flow-control, deflate-stream', "private-extension"],
            [
                ("deflate-stream", ()),
                ("mux", (("max-channels", "4"), ("flow-control", None))),
                ("deflate-stream", ()),
                ("private-extension", ()),
            ],
        ),
    ],
)
def test_extension_lists_are_parsed(values: list[str], expected: list[ExtensionOffer]) -> None:
    assert extensions(*values) == expected


@pytest.mark.advisory("node ws 3.3.1")
@pytest.mark.parametrize(
    "value",
    [
        ";",
        "=",
        "foo;",
        "foo; ;a",
        "foo; a=",
        "foo; a==1",
        "foo; a=1 2",
        "foo bar",
        "foo; a b",
        "foo; =1",
        "foo=1",
        '"foo"',
        'foo; "a"',
        'foo; a="',
        'foo; a="1',
        'foo; a="1\\',
        'foo; a="1\\"',
        'foo; a=""',
        'foo; a="1,2"',  # section 9.1: a token, once the quotes are gone; a comma is none
        'foo; a="1 2"',
        r'foo; a="\""',
        'foo; a="1"2',
        'foo; a=1"2"',
        "foo; a='1,2'x=",
        "foo(bar)",
        "foo/1",
        "\x80\xff",
        "foo; \x80\xff",
        "foo; a=\x80\xff",
        'foo; a="\x80\xff"',
        "\x00",
        *(f"foo{end}bar" for end in LINE_ENDS),
        *(f"foo; a{end}=1" for end in LINE_ENDS),
        *(f"foo; a=1{end}" for end in LINE_ENDS),
        *(f'foo; a="1{end}"' for end in LINE_ENDS),
        *(f'foo; a="\\{end}"' for end in LINE_ENDS),
    ],
)
def test_a_malformed_extension_list_is_refused(value: str) -> None:
    with pytest.raises(
        HandshakeError, match=r"^expected extensions as 'name; parameter=value, ...' in header"
    ) as caught:
        extensions("first; a=1", value)
    assert caught.value.status == 400


def test_a_refusal_shows_the_position() -> None:
    with pytest.raises(HandshakeError, match=r"got '@; b' at character 6$"):
        extensions("foo, @; b")


@given(
    st.lists(st.tuples(tokens, st.lists(st.tuples(tokens, st.none() | tokens), max_size=4).map(tuple)), max_size=5),
    st.sampled_from(["", " ", "\t", " \t "]),
    st.booleans(),
)
def test_writing_and_parsing_round_trip(offers: list[ExtensionOffer], space: str, quoted: bool) -> None:
    def written(parameter: tuple[str, str | None]) -> str:
        name, argument = parameter
        mark = '"' if quoted else ""
        return name if argument is None else f"{name}{space}={space}{mark}{argument}{mark}"

    separator = f"{space};{space}"
    value = f"{space},{space}".join(separator.join([name, *map(written, pairs)]) for name, pairs in offers)
    assert extensions(value) == offers


@given(st.text(latin1, max_size=60) | st.text('ab;=," \\\t', max_size=60))
def test_any_text_is_parsed_or_refused(value: str) -> None:
    for parse in (extensions, protocols):
        try:
            parsed = parse(value)
        except HandshakeError as error:
            assert error.status == 400  # noqa: PT017
        else:
            assert all(is_token(item if isinstance(item, str) else item[0]) for item in parsed)


# --- linear time ----------------------------------------------------------------------------------


def characters_touched(parse: Callable[[str], object], value: str) -> int:
    """How much work a parser does, without a clock: calls, each weighted by the text that it copies.

    A split, a slice or a match that starts over at every position makes this grow with the square.
    """
    work = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal work
        if event in ("call", "c_call"):
            work += 1
        if event == "return" and isinstance(argument, str):
            work += len(argument)

    sys.setprofile(count)
    try:
        with contextlib.suppress(HandshakeError):
            parse(value)
    finally:
        sys.setprofile(None)
    return work


HOSTILE = {
    "spaces": lambda size: "b" + " " * size + "x",
    "tabs": lambda size: "b" + "\t" * size + "x",
    "commas": lambda size: "," * size,
    "commas and spaces": lambda size: ", " * (size // 2) + "@",
    "semicolons": lambda size: "a" + ";" * size,
    "parameters": lambda size: "a" + ";b" * (size // 2),
    "values": lambda size: "a" + ";b=c" * (size // 4),
    "offers": lambda size: "a," * (size // 2),
    "open quotes": lambda size: 'a;b="' + "c" * size,
    "many quotes": lambda size: 'a;b="' * (size // 5),
    "backslashes": lambda size: 'a;b="' + "\\" * size,
    "escaped quotes": lambda size: 'a;b="' + '\\"' * (size // 2),
    "one long token": lambda size: "a" * size + "@",
    "equal signs": lambda size: "a;b" + "=" * size,
}  # fmt: skip


@pytest.mark.advisory("CVE-2021-32640", "node ws 3.3.1")
@pytest.mark.parametrize("shape", HOSTILE)
@pytest.mark.parametrize("parse", [extensions, protocols])
def test_parsing_takes_linear_time(parse: Callable[[str], object], shape: str) -> None:
    # CVE-2021-32640 and node ws 3.3.1. Ten times the text may cost ten times the work and a little more.
    small, large = HOSTILE[shape](3_200), HOSTILE[shape](32_000)
    assert characters_touched(parse, large) <= 12 * characters_touched(parse, small) + 1_000


@pytest.mark.parametrize("shape", HOSTILE)
@pytest.mark.parametrize("parse", [extensions, protocols])
@pytest.mark.timeout(10)
def test_a_hundred_thousand_characters_are_parsed_in_time(parse: Callable[[str], object], shape: str) -> None:
    # The count above does not see inside a regular expression; one that backs up would take minutes here.
    with contextlib.suppress(HandshakeError):
        parse(HOSTILE[shape](100_000))
