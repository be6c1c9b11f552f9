"""The request that the upstream gets (headers and path), and requests that are not forwarded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.peers import KEY, Peer, head
from tests.support.proxy_fronts import (
    Front,
    Serve,
    ask,
    conversed,
    shared,
    target_of,
)
from tests.support.scripted import echoing
from tests.support.threaded_servers import errors_in
from watershed_mw.proxy import Upstream, WebSocketProxy

# --- header rules --------------------------------------------------------------------------------------------


def test_the_upstream_gets_the_expected_head(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(front.mounted(WebSocketProxy(upstream.url()), "/mount"))
    got = conversed(front, upstream, "/mount/x", **shared(front))
    host = f"shop.example:{front.port}"
    key = got.pop("sec-websocket-key")
    assert (key == KEY) is front.raw
    if not front.raw:
        got.pop("sec-websocket-extensions", None)
    # uvicorn trusts a proxy on this machine, and hides it
    client = "203.0.113.9" if front.asgi and "127" not in got["x-forwarded-for"] else "127.0.0.1"
    scheme = "https" if got["x-forwarded-proto"] == "https" else "http"
    assert scheme == "http" or client == "203.0.113.9"
    assert got == {
        "host": host,
        "origin": f"http://{host}",
        "cookie": "session=1",
        "authorization": "Bearer x",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "x-forwarded-for": "203.0.113.9" if client == "203.0.113.9" else f"203.0.113.9, {client}",
        "x-forwarded-proto": scheme,
        "x-forwarded-host": host,
        "x-forwarded-prefix": "/mount",
        "forwarded": f'for=203.0.113.9, for={client};proto={scheme};host="{host}"',
    }


def test_header_options_apply(some: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    proxy = WebSocketProxy(
        lambda asked: Upstream(upstream.url(), {"X-User": f"of {asked.path}"}),
        keep_host=False,
        headers={"Authorization": "Bearer ours", "x-user": "nobody"},
        drop_headers=("Cookie", "forwarded"),
    )
    some.serve(proxy)
    got = conversed(some, upstream, "/x", **shared(some))
    assert got["host"] == f"127.0.0.1:{upstream.port}"
    assert got["x-forwarded-host"] == f"shop.example:{some.port}"
    assert got["authorization"] == "Bearer ours"
    assert got["x-user"] == "of /x"
    assert "cookie" not in got
    assert "forwarded" not in got
    assert "x-forwarded-prefix" not in got


def test_a_forged_address_stays_a_value(start: Callable[[str], Front], serve: Serve) -> None:
    front, upstream = start("raw-h11"), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    # uvicorn trusts X-Forwarded-For from this machine
    got = conversed(front, upstream, X_Forwarded_For='x";proto=https', X_Forwarded_Proto="http")
    assert got["forwarded"].startswith('for="x\\";proto=https";proto=')
    got = conversed(front, upstream, X_Forwarded_For="2001:db8::1", X_Forwarded_Proto="http")
    assert got["forwarded"].startswith('for="[2001:db8::1]";proto=')


def test_invalid_header_fields_are_not_forwarded(some: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(lambda asked: Upstream(upstream.url(), {"X-Tenant": f"a\r\nX-Admin: {asked.query}"})))
    assert ask(some).status == 500
    assert not upstream.heads


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret "])
def test_an_invalid_secret_is_not_disclosed(
    some: Front, serve: Serve, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(lambda _: Upstream(upstream.url(), {"Authorization": token})))
    refusal = ask(some)
    assert refusal.status == 500
    assert b"s3cret" not in refusal.body
    assert "authorization" in caplog.text.lower()
    assert "s3cret" not in caplog.text
    assert not upstream.heads


def test_a_path_cannot_add_a_log_line(some: Front, caplog: pytest.LogCaptureFixture) -> None:
    some.serve(WebSocketProxy("ws://127.0.0.1:1"))
    assert ask(some, path="/a%0aERROR%20forged").status == 502
    [told] = [record.getMessage() for record in caplog.records if "not proxied" in record.getMessage()]
    assert told.startswith("/a%0AERROR%20forged not proxied: ")


@pytest.mark.parametrize("field", [("X", "a\r\nb: c"), ("a b", "c")])
def test_invalid_header_options_are_refused_immediately(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        WebSocketProxy("ws://127.0.0.1", headers=[field])


# --- paths ---------------------------------------------------------------------------------------------------


# Mount point, strip_prefix, path of the upstream's URL, path of the request, path that the upstream gets.
PATHS: list[tuple[str, bool | str, str, str, str]] = [
    ("", True, "", "/", "/"),
    ("", True, "", "/a/b?c=d&e", "/a/b?c=d&e"),
    ("", True, "/app", "/a/b", "/app"),
    ("", True, "/app?key=1", "/a?c=d", "/app?key=1&c=d"),
    ("", "/x", "", "/x/y", "/y"),
    ("", "/x/", "", "/x", "/"),
    ("", "/x", "", "/xy", "/xy"),
    ("", "/x", "/app/", "/x/y", "/app/y"),
    ("", "/x", "/app", "/xy", "/app"),
    ("/m", True, "", "/m/a/b", "/a/b"),
    ("/m", True, "", "/m/", "/"),
    ("/m", True, "/app", "/m/a?b", "/app/a?b"),
    ("/m", False, "", "/m/a/b", "/m/a/b"),
    ("/m", False, "/app", "/m/a", "/app/m/a"),
    ("/m", True, "", "/m/a%2Fb%20c%3Fd%23e", "/a%2Fb%20c%3Fd%23e"),
    # Frameworks that route by the decoded path have routed these here.
    ("/m", True, "", "/m%2Fa", "/a"),
    ("/m", True, "/app", "/m%2fa", "/app/a"),
    ("", "/m", "", "/%6d/a", "/a"),
    ("", "/m", "/app", "/%6d/a", "/app/a"),
    ("/p", True, "", "/%70/a%2Fb", "/a%2Fb"),
    ("/p", True, "/app", "/%70%2fa%2Fb/%41", "/app/a%2Fb/%41"),
    ("/p", False, "", "/%70/a%2Fb", "/%70/a%2Fb"),
    ("", "/a/b", "", "/a%2Fb/c%2fd", "/c%2fd"),
    ("", "/%C3%A9", "", "/%c3%a9/%C3%A9", "/%C3%A9"),
    ("", True, "", "/a%252Fb%2f", "/a%252Fb%2f"),
    ("/m", True, "", "/m/%E6%B0%B4?%E6%B0%B4=%FF", "/%E6%B0%B4?%E6%B0%B4=%FF"),
    ("/m", True, "", "/m//evil.example/a", "//evil.example/a"),
    ("", "/m", "", "/m/%00%0d%0aX:y?%0d%0aZ:z", "/%00%0d%0aX:y?%0d%0aZ:z"),
    ("/m", True, "", "/m/...;a=b/~(c)'*", "/...;a=b/~(c)'*"),
    ("", True, "", "/m/m?x=|\"<>{}`^'&y=%zz&z=a?b", "/m/m?x=|\"<>{}`^'&y=%zz&z=a?b"),
]


def test_paths_are_forwarded_as_configured(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    for mount, strip, base, path, expected in PATHS:
        proxy = WebSocketProxy(upstream.url(base), strip_prefix=strip)
        front.serve(front.mounted(proxy, mount) if mount else proxy)
        got = conversed(front, upstream, path)
        assert target_of(upstream) == expected, (mount, strip, base, path)
        prefix = mount if strip is True else str(strip or "").rstrip("/")
        left_out = strip is not False and not path.startswith("/xy")
        assert got.get("x-forwarded-prefix", "") == (prefix if left_out else ""), (mount, strip, base, path)


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "path",
    [
        *("/m/../admin", "/m/a/..", "/m/./a", "/m/%2e%2E/admin", "/m/.%2e%2fadmin", "/m/..\\admin", "/m/..%5cadmin"),
        *("/m/..;/admin", "/m/..;x=y/admin"),
    ],
)
def test_no_path_escapes_the_upstreams_base_path(some: Front, serve: Serve, path: str) -> None:
    upstream = serve(echoing)
    some.serve(some.mounted(WebSocketProxy(upstream.url("/app")), "/m"))
    with Peer(some.port) as peer:
        peer.send(head(path))
        assert peer.answer().status in (400, 404)
    assert upstream.visits == 0


def test_a_request_for_another_server_is_not_forwarded(front: Front, serve: Serve) -> None:
    upstream, elsewhere = serve(echoing), serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        peer.send(head(elsewhere.url("/x", scheme="http")))
        answer = peer.answer()
        # Some servers extract the path, as RFC 9112 section 3.2.2 says.
        assert answer.status == 400 or (answer.status == 101 and target_of(upstream) == "/x"), answer
    assert elsewhere.visits == 0


@pytest.mark.parametrize("path", ["/m\xff", "/m?\xff", "/m#a", "*"])
def test_invalid_bytes_in_a_target_are_refused(
    front: Front, serve: Serve, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    with Peer(front.port) as peer:
        peer.send(head(path))
        status = peer.answer().status
        assert status in (101, 400, 404)
    if status == 101:
        assert target_of(upstream).isascii()
        assert "#" not in target_of(upstream)
    # uvicorn's own class logs this for every refusal by a response
    expected = "ASGI callable returned without completing handshake."
    assert [line for line in errors_in(caplog.records) if line != expected] == []


INVALID_HOSTS = [
    "a evil",
    "evil/x?y#z",
    "a@evil",
    "evil\\x",
    "a,b",
    "[::1",
    "[::g]",
    "a:b",
    "a:1:2",
    "\xe9vil",
]


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_an_invalid_host_is_not_forwarded(some: Front, serve: Serve, host: str) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url()))
    with Peer(some.port) as peer:
        peer.send(head(Host=host))
        assert peer.answer().status == 400
    assert upstream.visits == 0


@pytest.mark.parametrize(
    "host", ["a.example", "a.example:80", "A_b-c.example.", "127.0.0.1:1", "[::1]:8080", "a:", "%41"]
)
def test_a_valid_host_is_forwarded_unchanged(some: Front, serve: Serve, host: str) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url()))
    assert conversed(some, upstream, Host=host)["host"] == host


@pytest.mark.parametrize("character", ["\0", "\v", "\x01", "\x7f"])
@pytest.mark.parametrize("name", ["X-Note", "Cookie", "Host"])
def test_a_control_character_in_a_header_is_a_400(
    raw: Front, serve: Serve, name: str, character: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(echoing)
    raw.serve(WebSocketProxy(upstream.url()))
    with Peer(raw.port) as peer:
        peer.send(head(**{name.replace("-", "_"): f"s3cret{character}b"}))
        answer = peer.answer()
    assert answer.status == 400
    assert upstream.visits == 0
    assert "s3cret" not in caplog.text or name == "Host"
