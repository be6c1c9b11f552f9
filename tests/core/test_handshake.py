"""core/handshake/negotiation.py: the opening handshake (RFC 6455 section 4; the worked example is section 1.3)."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.handshake.headers import Headers
from watershed_mw.core.handshake.negotiation import (
    Agreement,
    Request,
    Response,
    accept_key,
    check_request,
    check_response,
    check_subprotocols,
    negotiate,
    offered_subprotocols,
    select_subprotocol,
)
from watershed_mw.errors import HandshakeError

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
OPTIONS = DeflateOptions(window_bits=15)
UPGRADE = (("Upgrade", "websocket"), ("Connection", "Upgrade"))

# The client's handshake of section 1.3, to the letter.
REQUEST = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Origin": "http://example.com",
    "Sec-WebSocket-Protocol": "chat, superchat",
    "Sec-WebSocket-Version": "13",
}
RESPONSE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
# One that names every header that section 4.2.1 asks for, and no other.
PLAIN = {name: value for name, value in REQUEST.items() if name not in ("Origin", "Sec-WebSocket-Protocol")}
REQUIRED = list(PLAIN)


def request(
    changes: dict[str, str | None] | None = None,
    more: Sequence[tuple[str, str]] = (),
    method: str = "GET",
    version: str = "1.1",
    target: str = "/",
) -> Request:
    """The plain request with some fields changed or removed (None), and others appended."""
    fields = {**PLAIN, **(changes or {})}
    pairs = [(name, value) for name, value in fields.items() if value is not None]
    return Request(Headers([*pairs, *more]), method=method, target=target, http_version=version)


def refused(subject: Request) -> HandshakeError:
    """The error that refuses the request."""
    with pytest.raises(HandshakeError) as caught:
        check_request(subject)
    assert caught.value.body == f"{caught.value}\n".encode()
    return caught.value


def answer(
    changes: dict[str, str | None] | None = None,
    more: Sequence[tuple[str, str]] = (),
    status: int = 101,
) -> Response:
    """The response of section 1.3 with some fields changed or removed (None), and others appended."""
    pairs = [(name, value) for name, value in {**RESPONSE, **(changes or {})}.items() if value is not None]
    return Response(status, Headers([*pairs, *more]))


def judged(response: Response, offered: dict[str, str] | None = None, protocols: Sequence[str] = ()) -> Agreement:
    """The client's result for ``response``."""
    return check_response(response, KEY, offered=Headers(offered or {}), protocols=protocols, deflate=OPTIONS)


def refused_answer(response: Response, offered: dict[str, str] | None = None) -> str:
    """The text with which a client refuses ``response``."""
    with pytest.raises(HandshakeError) as caught:
        judged(response, offered)
    assert caught.value.status == response.status
    return str(caught.value)


# --- the worked example of section 1.3 ------------------------------------------------------------


def test_the_example_of_section_1_3_is_accepted() -> None:
    subject = Request(Headers(REQUEST), target="/chat")
    key = check_request(subject, ["http://example.com"])
    assert accept_key(key) == ACCEPT
    assert offered_subprotocols(subject.headers) == ["chat", "superchat"]
    subprotocol = select_subprotocol(["chat", "superchat"], ["chat"])
    agreement, fields = negotiate(subject, key, subprotocol=subprotocol, deflate=OPTIONS)
    assert agreement == Agreement("chat", None)
    assert fields == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", ACCEPT),
        ("Sec-WebSocket-Protocol", "chat"),
    ]
    assert judged(Response(101, Headers(fields)), REQUEST) == agreement


# --- requests -------------------------------------------------------------------------------------


def test_a_minimal_request_is_accepted() -> None:
    assert check_request(request()) == KEY


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, WEBSOCKET"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "UPGRADE"},
        {"Connection": "keep-alive ,\tupgrade ,"},
        {"Content-Length": "0"},
        {"Host": "127.0.0.1:8000"},
        {"X-Anything": "\x80\xff\x85\ttabs and spaces"},
        {"X-Anything": ""},
    ],
)
def test_requests_that_the_rfc_allows_are_accepted(changes: dict[str, str | None]) -> None:
    assert check_request(request(changes)) == KEY


@pytest.mark.parametrize("character", ["\0", "\x01", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\r", "\n"])
@pytest.mark.parametrize("name", ["X-Anything", "Cookie", "Origin"])
def test_a_control_character_in_a_value_is_refused(name: str, character: str) -> None:
    """RFC 9110 section 5.5: such values are invalid. Some HTTP parsers accept them, and no proxy can forward them."""
    error = refused(request({name: f"http://server{character}.example.com"}))
    assert error.status == 400
    assert f"control character in the value of header '{name.lower()}'" in str(error)
    assert "server" not in str(error), "what it holds may be a secret"


HOSTS = (
    *("a", "a.example", "A.Example:8000", "a.example:", "127.0.0.1:8000", "[::1]", "[::1]:8000", "[fe80::1%25eth0]"),
    *("[fe80::1%eth0]:80", "[v1.x:y]", "my_service:80", "xn--bcher-kva.example", "a%2db.example", "a.example."),
)


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_with_or_without_a_port_is_accepted(host: str) -> None:
    assert check_request(request({"Host": host})) == KEY


NO_HOSTS = (
    *("a evil", "evil/x?y#z", "a@evil", "evil/", "a?b", "a#b", "a:b", "a:80:80", "a:-1", "::1", "[::1", "[::1]a"),
    *(
        "[a.example]",
        "[]",
        "[a]",
        "[1:2]",
        "[::1::2]",
        "[12345::]",
        "a\\b",
        "a%",
        "a%2",
        "a%zz",
        'a"b',
        "<a>",
        "b\xfccher.example",
        "a\x80",
        ":80",
        "a\tb",
    ),
)


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("host", NO_HOSTS)
def test_an_invalid_host_is_refused(host: str, version: str) -> None:
    """RFC 9112 section 3.2: a server must answer an invalid Host with 400; others might read another host in it."""
    error = refused(request({"Host": host}, version=version))
    assert error.status == 400
    assert "expected a Host header such as 'a.example:8000'" in str(error)


@pytest.mark.parametrize("target", ["*", "chat", "a.example:80", "http:/chat", "ftp://a.example/chat", "?room=1", ""])
def test_a_target_that_is_not_a_path_is_refused(target: str) -> None:
    """RFC 9112 section 3.2: the target of a GET is a path, or a URI with one, which the adapters split."""
    error = refused(request(target=target))
    assert error.status == 400
    assert "expected a path as the request target" in str(error)


def test_token_lists_may_be_split_over_several_fields() -> None:
    assert check_request(request(more=[("Connection", "keep-alive"), ("Upgrade", "h2c")])) == KEY
    assert check_request(request({"Connection": "keep-alive"}, more=[("connection", "upgrade")])) == KEY


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_http_1_1_and_later_are_accepted(version: str) -> None:
    assert check_request(request(version=version)) == KEY


@pytest.mark.parametrize("version", ["2", "2.0", "3"])
def test_http_2_and_later_need_neither_key_nor_upgrade(version: str) -> None:
    """RFC 8441 section 5: the extended CONNECT replaces them, and the server has checked it."""
    bare: dict[str, str | None] = dict.fromkeys(("Host", "Upgrade", "Connection", "Sec-WebSocket-Key"))
    assert check_request(request(bare, version=version)) == ""
    assert check_request(request(version=version)) == ""


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Sec-WebSocket-Version": None}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Content-Length": "5"}, 400),
        ({"Sec-WebSocket-Protocol": "chat, chat"}, 400),
        ({"Sec-WebSocket-Extensions": "="}, 400),
    ],
)
def test_all_other_rules_apply_to_http_2_as_well(changes: dict[str, str | None], status: int) -> None:
    assert refused(request({**changes}, version="2")).status == status


@pytest.mark.parametrize("version", ["1.0", "0.9", "1", "", "x", "1.x", "HTTP/1.1", "9" * 10_000, "1.1.1"])
def test_older_http_is_refused(version: str) -> None:
    error = refused(request(version=version))
    assert error.status == 400
    assert str(error) == f"expected HTTP/1.1 or later, got HTTP/{version[:8]}"


@pytest.mark.parametrize("method", ["POST", "HEAD", "CONNECT", "get", "OPTIONS", "", "G\r\nET"])
def test_other_methods_are_refused_with_405(method: str) -> None:
    error = refused(request(method=method))
    assert (error.status, error.headers) == (405, (("Allow", "GET"),))
    assert str(error) == f"expected method GET, got {method!a}"


@pytest.mark.parametrize(
    "name, status, message",
    [
        ("Host", 400, "expected a Host header, got none"),
        ("Upgrade", 426, "expected the token 'websocket' in header Upgrade, got none"),
        ("Connection", 426, "expected the token 'upgrade' in header Connection, got none"),
        ("Sec-WebSocket-Key", 400, "expected a Sec-WebSocket-Key header, got none"),
        ("Sec-WebSocket-Version", 426, "expected Sec-WebSocket-Version: 13, got none"),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_or_empty_header_is_refused(name: str, status: int, message: str, value: str | None) -> None:
    error = refused(request({name: value}))
    assert (error.status, str(error)) == (status, message)


@pytest.mark.parametrize("name", ["Host", "Sec-WebSocket-Key", "Origin"])
def test_a_repeated_singleton_header_is_refused(name: str) -> None:
    error = refused(request(more=[(name, "a"), (name, "a")]))
    count = 2 + (name in PLAIN)
    assert (error.status, str(error)) == (
        400,
        f"expected one {name.lower()} header, got {count}: send it once",
    )


def test_a_repeated_version_is_refused() -> None:
    error = refused(request(more=[("Sec-WebSocket-Version", "13")]))
    assert (error.status, str(error)) == (426, "expected Sec-WebSocket-Version: 13, got '13, 13'")


@pytest.mark.advisory("aiohttp changelog")
@pytest.mark.parametrize(
    "name, value",
    [
        ("Upgrade", "notwebsocket"),
        ("Upgrade", "websocket2"),
        ("Upgrade", "h2c"),
        ("Upgrade", "web, socket"),
        ("Connection", "notupgrade"),
        ("Connection", "upgraded"),
        ("Connection", "keep-alive"),
        ("Connection", "close"),
        ("Connection", "keep-alive, up-grade"),
    ],
)
def test_a_token_must_match_as_a_whole(name: str, value: str) -> None:
    # aiohttp once took "Upgrade: notupgrade".
    error = refused(request({name: value}))
    expected = {"Upgrade": "websocket", "Connection": "upgrade"}[name]
    assert (error.status, error.headers) == (426, UPGRADE)
    assert str(error) == f"expected the token '{expected}' in header {name}, got {value!a}"


@pytest.mark.parametrize("name", ["Upgrade", "Connection"])
@pytest.mark.parametrize("value", ["websocket upgrade", "websocket/13", "\x80\xff", "websocket;upgrade", "upgrade\x00"])
def test_a_malformed_token_list_is_refused(name: str, value: str) -> None:
    error = refused(request({name: value}))
    assert error.status == 400
    assert str(error) == f"expected comma-separated tokens in header {name.lower()}, got {value!a}"


@pytest.mark.parametrize(
    "version", ["0", "7", "8", "12", "14", "013", "13.0", "+13", "13 ", "1\uff13", "13, 8", "hybi-13"]
)
def test_other_versions_are_refused_with_426_naming_the_supported_one(version: str) -> None:
    error = refused(request({"Sec-WebSocket-Version": version}))
    assert (error.status, error.headers) == (426, (("Sec-WebSocket-Version", "13"), *UPGRADE))
    assert str(error) == f"expected Sec-WebSocket-Version: 13, got {version!a}"


@pytest.mark.parametrize("size", [*range(33), 100, 16_000])
def test_only_keys_of_16_bytes_are_accepted(size: int) -> None:
    key = base64.b64encode(bytes(range(size % 256)) + bytes(size - size % 256)).decode()
    subject = request({"Sec-WebSocket-Key": key})
    if size == 16:
        assert check_request(subject) == key
    else:
        error = refused(subject)
        assert error.status == 400
        assert "Sec-WebSocket-Key" in str(error)


@pytest.mark.parametrize(
    "key",
    [
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQ===",
        "dGhlIHNhbXBsZSBub25jZQ==\n",
        "dGhlIHNhbXBs ZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25-ZQ==",
        "dGhlIHNhbXBsZSBub25é==",
        "\x80\xff",
        "\uff24GhlIHNhbXBsZSBub25jZQ==",
        "!" * 24,
        "=" * 24,
    ],
)
def test_a_key_that_is_not_base64_of_16_bytes_is_refused(key: str) -> None:
    error = refused(request({"Sec-WebSocket-Key": key}))
    assert error.status == 400
    assert str(error).startswith("expected 16 bytes in base64 in header Sec-WebSocket-Key, got '")


@pytest.mark.parametrize(
    "name, value",
    [
        ("Content-Length", "5"),
        ("Content-Length", "00"),
        ("Content-Length", "x"),
        ("Transfer-Encoding", "chunked"),
    ],
)
def test_a_request_with_a_body_is_refused(name: str, value: str) -> None:
    error = refused(request({name: value}))
    assert error.status == 400
    assert str(error).startswith("expected an upgrade request without a body")


def test_two_content_lengths_are_refused() -> None:
    assert refused(request(more=[("Content-Length", "0"), ("Content-Length", "0")])).status == 400


def test_origins_are_checked() -> None:
    error = refused(request({"Origin": "http://evil.example"}))
    assert error.status == 403
    assert check_request(request({"Origin": "http://server.example.com"})) == KEY
    assert check_request(request({"Origin": "http://evil.example"}), "*") == KEY


@pytest.mark.advisory("CVE-2026-44546")
@pytest.mark.parametrize("name", [*REQUIRED, "Origin", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"])
@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\n", "\r"])
def test_no_byte_inside_a_value_creates_a_second_header(name: str, character: str) -> None:
    # CVE-2026-44546. Wherever the byte stands, the value is refused as it is.
    value = REQUEST.get(name, "permessage-deflate")
    refused(request({name: f"{value}{character}Origin: http://evil.example"}))


@pytest.mark.advisory("CVE-2026-42544", "node ws 3.3.1")
@pytest.mark.parametrize(
    "name, value",
    [
        ("Sec-WebSocket-Protocol", "a b"),
        ("Sec-WebSocket-Protocol", "chat, chat"),
        ("Sec-WebSocket-Protocol", "\x80\xff"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; ="),
        ("Sec-WebSocket-Extensions", "a; b=" + '"' * 32_000),
    ],
)
def test_a_request_with_a_malformed_offer_is_refused(name: str, value: str) -> None:
    # Before an application is asked, which may not look at them at all.
    assert refused(request({name: value})).status == 400


@pytest.mark.advisory("CVE-2024-37890")
def test_two_thousand_headers_are_harmless() -> None:
    # CVE-2024-37890
    assert check_request(request(more=[(f"X-{number}", "x") for number in range(2_000)])) == KEY
    assert check_request(request(more=[("X", "x")] * 2_000)) == KEY


names = st.sampled_from(["Host", "Upgrade", "Connection", "Origin", "Content-Length", *REQUEST])
values = st.text(max_size=30) | st.sampled_from([*REQUEST.values(), "keep-alive, Upgrade", "null", "0"])


@given(st.lists(st.tuples(names, values), max_size=10), st.sampled_from(["GET", "POST"]), st.text(max_size=4))
def test_any_request_is_accepted_or_refused(fields: list[tuple[str, str]], method: str, version: str) -> None:
    for subject in (
        Request(Headers(fields), method, "/", version),
        Request(Headers([*PLAIN.items(), *fields])),
    ):
        try:
            key = check_request(subject, ["*.example.com"])
            offered_subprotocols(subject.headers)
            negotiate(subject, key, subprotocol=None, deflate=OPTIONS)
        except HandshakeError as error:
            assert error.status in (400, 403, 405, 426)  # noqa: PT017
        else:
            assert len(base64.b64decode(key)) == 16


# --- subprotocols ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offered, supported, chosen",
    [
        ([], [], None),
        ([], ["chat"], None),
        (["chat"], ["chat"], "chat"),
        (["b", "a"], ["a", "b"], "b"),  # the client's order counts
        (["x", "b", "a"], ("a", "b"), "b"),
        (["Chat", "chat"], ["chat"], "chat"),
    ],
)
def test_the_clients_order_of_subprotocols_decides(
    offered: list[str], supported: Sequence[str], chosen: str | None
) -> None:
    assert select_subprotocol(offered, supported) == chosen


@pytest.mark.parametrize(
    "offered, supported, message",
    [
        (
            ["chat"],
            ["Chat", "echo"],
            "no subprotocol in common: the client offers 'chat', this server supports Chat, echo",
        ),
        (
            ["chat", "x"],
            [],
            "no subprotocol in common: the client offers 'chat, x', this server supports none",
        ),
    ],
)
def test_no_subprotocol_in_common_is_refused(offered: list[str], supported: list[str], message: str) -> None:
    with pytest.raises(HandshakeError, match=f"^{re.escape(message)}$") as caught:
        select_subprotocol(offered, supported)
    assert caught.value.status == 400


def test_subprotocols_may_be_split_over_several_fields() -> None:
    headers = Headers([("Sec-WebSocket-Protocol", "b, a"), ("sec-websocket-protocol", "c")])
    assert offered_subprotocols(headers) == ["b", "a", "c"]


@pytest.mark.parametrize("value", ["chat, chat", "a, b, a"])
def test_a_subprotocol_offered_twice_is_refused(value: str) -> None:
    # Section 4.1: "MUST all be unique strings".
    with pytest.raises(HandshakeError, match="repeated subprotocol in header Sec-WebSocket-Protocol") as c:
        offered_subprotocols(Headers({"Sec-WebSocket-Protocol": value}))
    assert c.value.status == 400


def test_subprotocols_are_case_sensitive() -> None:
    assert offered_subprotocols(Headers({"Sec-WebSocket-Protocol": "Chat, chat"})) == ["Chat", "chat"]


@pytest.mark.advisory("CVE-2026-42544", "CVE-2021-32640")
@pytest.mark.parametrize("value", ["\x80\xff", "b" + " " * 32_000 + "x", 'a"b', "a b", "a\x85b"])
def test_a_malformed_subprotocol_is_refused(value: str) -> None:
    # CVE-2026-42544 and CVE-2021-32640
    with pytest.raises(HandshakeError, match="expected comma-separated tokens") as caught:
        offered_subprotocols(Headers({"Sec-WebSocket-Protocol": value}))
    assert caught.value.status == 400
    assert len(str(caught.value)) < 200


def test_the_servers_own_subprotocols_are_checked_early() -> None:
    assert check_subprotocols(["b", "a"]) == ("b", "a")
    assert check_subprotocols([]) == ()
    with pytest.raises(ValueError, match=r"expected a list of subprotocols, got the string 'chat': write \['chat'\]"):
        check_subprotocols("chat")


@pytest.mark.parametrize("name", ["", "a b", "a,b", "é", None, b"chat", 5])
def test_a_subprotocol_that_is_not_a_token_is_refused_early(name: Any) -> None:
    with pytest.raises(ValueError, match="expected subprotocol names that are tokens, got "):
        check_subprotocols(["chat", name])


# --- what the server answers ----------------------------------------------------------------------


def test_compression_is_negotiated_if_both_sides_want_it() -> None:
    subject = request({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"})
    agreement, fields = negotiate(subject, KEY, subprotocol=None, deflate=OPTIONS)
    assert agreement == Agreement(None, DeflateParameters(options=OPTIONS))
    assert fields[3:] == [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits=15")]


def test_compression_is_not_negotiated_if_one_side_does_not_want_it() -> None:
    for value, deflate in (("permessage-deflate", None), ("unknown", OPTIONS)):
        subject = request({"Sec-WebSocket-Extensions": value})
        agreement, fields = negotiate(subject, KEY, subprotocol=None, deflate=deflate)
        assert agreement == Agreement()
        assert len(fields) == 3


@pytest.mark.parametrize("deflate", [None, OPTIONS])
def test_malformed_extensions_are_refused(deflate: DeflateOptions | None) -> None:
    subject = request({"Sec-WebSocket-Extensions": "permessage-deflate; ="})
    with pytest.raises(HandshakeError, match="expected extensions as") as caught:
        negotiate(subject, KEY, subprotocol=None, deflate=deflate)
    assert caught.value.status == 400


# --- answers, as a client checks them -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Upgrade": "WebSocket"},
        {"Connection": "upgrade"},
        {"Connection": "keep-alive, Upgrade"},
        {"X": "\x80"},
    ],
)
def test_a_valid_response_is_accepted(changes: dict[str, str | None]) -> None:
    assert judged(answer(changes)) == Agreement()


@pytest.mark.parametrize("status", [100, 102, 200, 204, 301, 400, 401, 403, 404, 426, 500, 503])
def test_any_other_status_is_refused_and_passed_on(status: int) -> None:
    message = refused_answer(answer(status=status))
    assert message == f"expected status 101 (Switching Protocols), got {status}"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("Upgrade", None, "expected the token 'websocket' in header Upgrade, got none"),
        ("Upgrade", "h2c", "expected the token 'websocket' in header Upgrade, got 'h2c'"),
        ("Connection", None, "expected the token 'upgrade' in header Connection, got none"),
        ("Connection", "notupgrade", "expected the token 'upgrade' in header Connection, got 'notupgrade'"),
        ("Connection", "a b", "expected comma-separated tokens in header connection, got 'a b'"),
        ("Sec-WebSocket-Accept", None, f"expected Sec-WebSocket-Accept: {ACCEPT}, got none"),
        ("Sec-WebSocket-Accept", "", f"expected Sec-WebSocket-Accept: {ACCEPT}, got none"),
        ("Sec-WebSocket-Accept", KEY, f"expected Sec-WebSocket-Accept: {ACCEPT}, got '{KEY}'"),
        (
            "Sec-WebSocket-Accept",
            ACCEPT.lower(),
            f"expected Sec-WebSocket-Accept: {ACCEPT}, got '{ACCEPT.lower()}'",
        ),
        (
            "Sec-WebSocket-Accept",
            ACCEPT[:-1],
            f"expected Sec-WebSocket-Accept: {ACCEPT}, got '{ACCEPT[:-1]}'",
        ),
        ("Sec-WebSocket-Accept", f"{ACCEPT}x", f"expected Sec-WebSocket-Accept: {ACCEPT}, got '{ACCEPT}x'"),
        ("Sec-WebSocket-Accept", "\u20ac", f"expected Sec-WebSocket-Accept: {ACCEPT}, got '\\u20ac'"),
        ("Sec-WebSocket-Protocol", "chat", "expected an offered subprotocol (none), got 'chat'"),
        ("Sec-WebSocket-Protocol", "", "expected an offered subprotocol (none), got ''"),
        (
            "Sec-WebSocket-Extensions",
            "permessage-deflate",
            "expected an extension that was offered, got 'permessage-deflate'",
        ),
    ],
)
def test_an_invalid_response_is_refused(name: str, value: str | None, message: str) -> None:
    assert refused_answer(answer({name: value})) == message


def test_a_malformed_extension_in_the_response_is_refused() -> None:
    message = refused_answer(answer({"Sec-WebSocket-Extensions": ";"}), {"Sec-WebSocket-Extensions": "foo"})
    assert message.startswith("expected extensions as ")


@pytest.mark.parametrize("name", ["Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"])
def test_a_repeated_header_in_the_response_is_refused(name: str) -> None:
    value = RESPONSE.get(name, "chat")
    more = [(name, value)] * (1 if name in RESPONSE else 2)
    message = refused_answer(answer(more=more), {"Sec-WebSocket-Protocol": "chat"})
    assert message == f"expected one {name.lower()} header, got 2: send it once"


def test_a_subprotocol_must_have_been_offered() -> None:
    offered = {"Sec-WebSocket-Protocol": "chat, superchat"}
    chosen = {"Sec-WebSocket-Protocol": "superchat"}
    assert judged(answer({**chosen}), offered) == Agreement("superchat")
    assert judged(answer({**chosen}), protocols=["superchat"]) == Agreement("superchat")
    assert judged(answer(), offered) == Agreement(None)
    for wrong in ("Superchat", "chat, superchat", "other"):
        message = refused_answer(answer({"Sec-WebSocket-Protocol": wrong}), offered)
        assert message == f"expected an offered subprotocol (chat, superchat), got '{wrong}'"


def test_compression_is_read_from_the_response() -> None:
    offered = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    agreement = judged(answer({"Sec-WebSocket-Extensions": "permessage-deflate"}), offered)
    assert agreement == Agreement(None, DeflateParameters(options=OPTIONS))


@given(
    st.lists(st.tuples(st.sampled_from([*RESPONSE, *REQUEST]), values), max_size=6),
    st.sampled_from([101, 200]),
)
def test_any_response_is_accepted_or_refused(fields: list[tuple[str, str]], status: int) -> None:
    for response in (Response(status, Headers(fields)), answer(more=fields, status=status)):
        try:
            judged(response, REQUEST)
        except HandshakeError as error:
            assert error.status == status  # noqa: PT017
