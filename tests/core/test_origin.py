"""core/handshake/origin.py: which pages may connect (RFC 6455 sections 4.2.2 and 10.2, RFC 6454)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watershed_mw.core.handshake.headers import Headers
from watershed_mw.core.handshake.origin import check_origin, check_origins
from watershed_mw.errors import HandshakeError


def allows(origin: str | None, allowed: str | list[str] | None = None, host: str = "chat.example") -> bool:
    """Whether a page of ``origin`` may connect to ``host``; a refusal must be a 403."""
    fields = [("Host", host)] + ([] if origin is None else [("Origin", origin)])
    try:
        check_origin(Headers(fields), check_origins(allowed))
    except HandshakeError as error:
        assert error.status == 403  # noqa: PT017
        return False
    return True


def test_requests_without_an_origin_are_allowed() -> None:
    assert allows(None)
    assert allows(None, ["https://a.example"])


@pytest.mark.parametrize(
    "host, origin",
    [
        ("chat.example", "http://chat.example"),
        ("chat.example", "https://chat.example"),
        ("chat.example", "http://chat.example:80"),
        ("chat.example", "https://chat.example:443"),
        ("chat.example:443", "https://chat.example"),
        ("chat.example:80", "http://chat.example"),
        ("chat.example:8000", "http://chat.example:8000"),
        ("chat.example:8443", "https://chat.example:8443"),
        ("CHAT.Example", "https://chat.example"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::1]", "http://[::1]"),
        ("[2001:DB8::1]", "https://[2001:db8::1]:443"),
    ],
)
def test_pages_of_the_same_host_may_connect(host: str, origin: str) -> None:
    assert allows(origin, host=host)


@pytest.mark.parametrize(
    "host, origin",
    [
        ("chat.example", "http://evil.example"),
        ("chat.example", "http://chat.example.evil.example"),
        ("chat.example", "http://evilchat.example"),
        ("chat.example", "http://sub.chat.example"),
        ("sub.chat.example", "http://chat.example"),
        ("chat.example", "http://chat.example:8000"),
        ("chat.example:8000", "http://chat.example"),
        ("chat.example:8000", "http://chat.example:8001"),
        ("chat.example:80", "https://chat.example"),
        ("[::1]:8000", "http://[::2]:8000"),
        ("[::1]", "http://::1"),
        ("localhost", "http://127.0.0.1"),
        ("", "http://"),
        ("", "http://chat.example"),
        ("", "null"),
        ("null", "null"),
        ("chat.example", "null"),
        ("chat.example", ""),
        ("chat.example", "chat.example"),
        ("chat.example", "//chat.example"),
        ("chat.example", "file://chat.example"),
        ("chat.example", "chrome-extension://chat.example"),
        ("chat.example", "http://chat.example/"),
        ("chat.example", "http://chat.example/path"),
        ("chat.example", "http://user@chat.example"),
        ("chat.example", "http://evil.example@chat.example"),
        ("chat.example", "http://chat.example, http://evil.example"),
        ("chat.example", "http://chat.example http://evil.example"),
        ("chat.example", "http://chat.example\\@evil.example"),
        ("chat.example", "http://chat.example:http"),
        ("chat.example", "http://chat.example:99999"),
        ("chat.example", "http://chat.example:-80"),
        ("chat.example", "http://[::1"),
        ("chat.example", "http://chat。example"),
        ("user@chat.example", "http://chat.example"),
        ("chat.example/", "http://chat.example"),
        ("chat.example?a", "http://chat.example"),
        ("chat.example#a", "http://chat.example"),
        ("chat.example, chat.example", "http://chat.example"),
    ],
)
def test_pages_of_other_hosts_may_not_connect(host: str, origin: str) -> None:
    assert not allows(origin, host=host)


@pytest.mark.parametrize("origin", ["http://chat.example?", "http://chat.example#", "http://chat.example:0"])
def test_only_origins_as_browsers_write_them_are_valid(origin: str) -> None:
    # RFC 6454 section 7.1: scheme, "://", host and perhaps a port, and nothing else.
    assert not allows(origin)


@pytest.mark.parametrize("template", ["{}http://chat.example", "http://chat{}.example", "http://chat.example{}"])
def test_no_character_of_an_origin_is_ignored(template: str) -> None:
    # urllib's parser leaves out tabs and line ends anywhere, and control characters in front.
    strange = [*map(chr, range(33)), "\x7f", "\x85", "\xa0", "\u2028"]
    assert [character for character in strange if allows(template.format(character))] == []


def test_no_character_of_the_host_is_ignored() -> None:
    strange = [*map(chr, range(33)), "\x7f", "\x85", "\xa0", "\u2028"]
    assert [c for c in strange if allows("http://chat.example", host=f"chat{c}.example")] == []


def test_a_repeated_origin_is_refused_as_malformed() -> None:
    headers = Headers([("Host", "a"), ("Origin", "http://a"), ("Origin", "http://a")])
    with pytest.raises(HandshakeError, match="expected one origin header, got 2") as caught:
        check_origin(headers, None)
    assert caught.value.status == 400


def test_the_refusal_names_origin_and_host_and_the_option_to_set() -> None:
    headers = Headers({"Host": "chat.example", "Origin": "http://evil.example"})
    with pytest.raises(HandshakeError) as caught:
        check_origin(headers, None)
    assert str(caught.value) == (
        "expected the origin of host 'chat.example' or an allowed one, "
        "got 'http://evil.example': "
        "add it to the server's origins option if its pages may connect"
    )


# --- origins=... ----------------------------------------------------------------------------------


def test_the_star_switches_the_check_off() -> None:
    for origin in ("http://evil.example", "null", "", "\x00"):
        assert allows(origin, "*")


@pytest.mark.parametrize(
    "pattern, origin",
    [
        ("https://a.example", "https://a.example"),
        ("https://a.example", "https://a.example:443"),
        ("https://a.example:443", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"),
        ("https://a.example:*", "https://a.example:8443"),
        ("https://a.example:*", "https://a.example"),
        ("https://A.Example", "https://a.example"),
        ("a.example", "https://a.example"),
        ("a.example", "http://a.example"),
        ("a.example:80", "http://a.example"),
        ("a.example:443", "https://a.example"),
        ("a.example:8000", "http://a.example:8000"),
        ("a.example:8000", "https://a.example:8000"),
        ("*.b.example", "https://a.b.example"),
        ("*.b.example", "https://deep.a.b.example"),
        ("https://*.b.example", "https://a.b.example"),
        ("*.b.example:*", "https://a.b.example:1234"),
        ("*.b.example:8000", "http://a.b.example:8000"),
        ("localhost:*", "http://localhost:3000"),
        ("localhost:*", "http://localhost"),
        ("127.0.0.1:*", "http://127.0.0.1:3000"),
        ("[::1]", "http://[::1]"),
        ("[::1]:*", "http://[::1]:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("null", "null"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("ionic://localhost", "ionic://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://localhost:3000", "app://localhost:3000"),
        ("file://", "file://"),
        ("vscode-webview://0f3a", "vscode-webview://0f3a"),
        ("safari-web-extension://A1B2-C3", "safari-web-extension://A1B2-C3"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("moz-extension://6f4a-1b", "moz-extension://6f4a-1b"),
    ],
)
def test_a_pattern_allows_matching_origins(pattern: str, origin: str) -> None:
    assert allows(origin, [pattern])
    assert allows(origin, ["https://other.example", pattern])


@pytest.mark.parametrize(
    "pattern, origin",
    [
        ("https://a.example", "http://a.example"),
        ("https://a.example", "https://a.example:8443"),
        ("https://a.example:8443", "https://a.example"),
        ("https://a.example", "https://b.a.example"),
        ("https://a.example", "https://a.example.evil.example"),
        ("a.example", "https://a.example:8443"),
        ("a.example:80", "https://a.example"),
        ("a.example:443", "http://a.example"),
        ("a.example:8000", "http://a.example"),
        ("*.b.example", "https://b.example"),
        ("*.b.example", "https://.b.example"),
        ("*.b.example", "https://evilb.example"),
        ("*.b.example", "https://a.b.example.evil.example"),
        ("*.b.example", "https://a.b.example:8443"),
        ("https://*.b.example", "http://a.b.example"),
        ("localhost:*", "http://localhost.evil.example:3000"),
        ("[::1]:*", "http://[::2]:3000"),
        ("null", "http://null"),
        ("null", ""),
        ("a.example", "null"),
        ("a.example", "a.example"),
        # The host of an application's origin is opaque: no case, port or name in front is passed over.
        ("capacitor://localhost", "http://localhost"),
        ("capacitor://localhost", "ionic://localhost"),
        ("capacitor://localhost", "capacitor://localhost:80"),
        ("capacitor://localhost", "capacitor://a.localhost"),
        ("capacitor://localhost", "capacitor://localhost/"),
        ("safari-web-extension://A1B2", "safari-web-extension://a1b2"),
        ("localhost:*", "capacitor://localhost"),
        ("localhost", "capacitor://localhost"),
        ("*.b.example", "app://a.b.example"),
        ("*.b.example", "app://a.b.example:443"),
        ("localhost", "capacitor://localhost:80"),
        ("file://", "file:///etc/passwd"),
        ("file://", "null"),
    ],
)
def test_a_pattern_refuses_other_origins(pattern: str, origin: str) -> None:
    assert not allows(origin, [pattern])


def test_without_patterns_only_the_same_host_is_allowed() -> None:
    assert check_origins(None) is None
    assert check_origins("*") == "*"
    assert check_origins([]) == ()
    assert allows("http://chat.example", [])
    assert not allows("http://other.example", [])


@pytest.mark.parametrize("origins", ["https://a.example", "", "null", "**"])
def test_a_string_is_not_accepted_as_a_list(origins: str) -> None:
    # As a sequence of letters it would allow nothing, or hosts of one letter.
    with pytest.raises(ValueError, match="expected a list of origins or '\\*', got the string"):
        check_origins(origins)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        " ",
        "https://",
        "ftp://a.example",
        "https://a.example/",
        "https://a.example/path",
        "https://a.example:port",
        "https://a.example:99999",
        "a.example/x",
        "https://user@a.example",
        "[::1",
        "::1",
        ":8000",
        ":*",
        "https://:*",
        "htps://a.example",
        "htttp://a.example",
        "Capacitor://localhost",
        "capacitor:localhost",
        "capacitor://local host",
        "capacitor://localhost/",
        "capacitor://localhost:*",
        "capacitor://user@localhost",
        "chrome-extension://*",
        "file:///",
    ],
)
def test_a_malformed_pattern_is_refused_when_it_is_set(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected an origin such as") as caught:
        check_origins(["https://a.example", pattern])
    assert str(caught.value).endswith(f"got {pattern!r}")


@pytest.mark.parametrize(
    "pattern", ["*.", "*.*.b.example", "a.*.example", "a*.example", "https://*", "*:*", "https://*:*"]
)
def test_a_star_stands_for_leading_labels_only(pattern: str) -> None:
    # "*." would let in every host that is written with a dot at its end; the others would never match.
    with pytest.raises(ValueError, match="expected "):
        check_origins([pattern])


def test_an_unchecked_pattern_allows_no_origin() -> None:
    headers = Headers({"Host": "chat.example", "Origin": "http://evil.example"})
    for pattern in ("", "*", "http://", "ftp://evil.example", "http://evil.example/path"):
        with pytest.raises(HandshakeError, match="expected the origin of host"):
            check_origin(headers, [pattern])


def test_a_star_inside_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="got '\\*' inside a list: write origins='\\*' to allow every origin"):
        check_origins(["https://a.example", "*"])


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_origin_and_host_are_allowed_or_refused(origin: str, host: str) -> None:
    allows(origin, ["*.b.example", "null"], host)
    allows(f"http://{origin}", ["localhost:*"], host)


@given(st.text("ab.:*/[]@1 ", max_size=12))
def test_any_pattern_is_accepted_or_refused(pattern: str) -> None:
    try:
        taken = check_origins([pattern])
    except ValueError:
        return
    assert taken == (pattern,)
    assert not allows("http://evil.test", [pattern])
