"""Redirects during the opening handshake: which are followed, and what is not sent along."""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest

from tests.client.conftest import Serve
from tests.support.clients import Client
from tests.support.scripted import Server, Visit, echoing
from tests.support.wire_peer import header
from watershed_mw import HandshakeError, Watershed
from watershed_mw.client import connect
from watershed_mw.client.handshake import Arguments, RequestOptions, Requests

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
SECRETS: dict[str, Any] = {
    "headers in the call": {"headers": {"Authorization": "Bearer hidden", "Cookie": "session=hidden", "X-Kept": "1"}},
    "arguments": {"auth": ("me", "hidden"), "cookies": {"session": "hidden"}},
}


def to(url: str, status: str = "302 Found", *fields: tuple[str, str]) -> Any:
    """A script that redirects everyone to ``url`` and keeps the connection open."""

    def script(visit: Visit) -> None:
        visit.answer(status, ("Location", url), *fields, body=b"over there")
        visit.wait_until_gone()

    return script


def fields_of(server: Server, number: int = -1) -> dict[str, str | None]:
    """The client's secrets that a server received."""
    head = server.heads[number]
    return {name: header(head, name) for name in ("authorization", "cookie")}


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed(either: Client, serve: Serve, status: str) -> None:
    target = serve(echoing)
    server = serve(to(target.url("/there?x=1"), status))
    talk = either.open(server.url(), protocols=["a"], origin="https://here.example")
    talk.echo()
    talk.end()
    head = target.heads[0]
    assert head.startswith(b"GET /there?x=1 HTTP/1.1\r\n")
    assert header(head, "host") == f"127.0.0.1:{target.port}"
    assert header(head, "sec-websocket-protocol") == "a"
    assert header(head, "origin") == "https://here.example"
    assert header(head, "sec-websocket-key") != header(server.heads[0], "sec-websocket-key")


@pytest.mark.parametrize("location", ["/there", "?there", "//127.0.0.1:{port}/there", "http://127.0.0.1:{port}/there"])
def test_every_form_of_location_is_followed(either: Client, serve: Serve, location: str) -> None:
    def script(visit: Visit) -> None:
        if "there" in visit.request().target:
            visit.answer("403 Found it")
        else:
            visit.answer("302 Found", ("Location", location.format(port=visit.server.port)))

    with pytest.raises(HandshakeError) as caught:
        either.open(serve(script).url())
    assert caught.value.status == 403
    assert [response.status_code for response in caught.value.response.history] == [302]


@pytest.mark.advisory("websockets 16.1")
def test_authorization_does_not_follow_from_plain_to_tls() -> None:
    """The library, httpx, allows it between the default ports of one host."""
    headers = httpx.Headers({"Authorization": "Bearer hidden"})
    requests = Requests(Arguments(RequestOptions.of("http://a.example/", headers), Watershed()))
    redirected = httpx.Request("GET", "https://a.example/", headers=headers)
    requests.follow_up(redirected)
    assert "authorization" not in redirected.headers


@pytest.mark.advisory("websockets 16.1")
@pytest.mark.parametrize("secrets", SECRETS.values(), ids=SECRETS)
def test_secrets_do_not_follow_to_another_origin(client: Client, serve: Serve, secrets: dict[str, Any]) -> None:
    """Another port is another origin; returning to the first origin does not bring the secrets back."""
    target = serve(lambda visit: None)

    def script(visit: Visit) -> None:
        if visit.request().target == "/back":
            visit.answer("403 Here you are")
        else:
            visit.answer("302 Found", ("Location", target.url()))

    server = serve(script)
    target.script = to(server.url("/back"))
    with pytest.raises(HandshakeError):
        client.open(server.url(), **secrets)
    assert all(fields_of(server, 0).values())
    assert fields_of(target) == {"authorization": None, "cookie": None}
    assert fields_of(server, 1) == {"authorization": None, "cookie": None}


def test_only_harmless_fields_follow_to_another_origin(client: Client, serve: Serve) -> None:
    """Any of an application's headers may hold a key; only those named in the call may follow."""
    target = serve(lambda visit: visit.answer("403 No"))
    server = serve(to(target.url()))
    given = {
        "X-Api-Key": "hidden", "X-Auth-Token": "hidden", "Proxy-Authorization": "hidden", "X-Request-Id": "7",
        "User-Agent": "mine", "Accept-Language": "eo", "Referer": "hidden", "X-CSRF-Token": "hidden",
    }  # fmt: skip
    with pytest.raises(HandshakeError):
        client.open(
            server.url(), headers=given, origin="https://here.example", protocols=["a"], auth=("me", "hidden"),
            cookies={"session": "hidden"}, cross_origin_headers=["x-request-id"],
        )  # fmt: skip
    first, second = ({line.partition(":")[0].lower() for line in head.decode().split("\r\n")[1:-2]} for head in
                     (server.heads[0], target.heads[0]))  # fmt: skip
    assert {"x-api-key", "x-csrf-token", "cookie", "authorization"} <= first
    assert second == {
        "host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
        "sec-websocket-extensions", "origin", "user-agent", "accept", "accept-encoding", "accept-language",
        "x-request-id",
    }  # fmt: skip
    assert b"hidden" not in target.heads[0]


def test_application_headers_follow_only_within_their_origin(either: Client, serve: Serve) -> None:
    target = serve(lambda visit: None)

    def script(visit: Visit) -> None:
        where = {"/": "/1", "/1": target.url(), "/back": None}[visit.request().target]
        if where is None:
            visit.answer("403 Here you are")
        else:
            visit.answer("302 Found", ("Location", where))

    server = serve(script)
    target.script = to(server.url("/back"))
    with pytest.raises(HandshakeError):
        either.open(server.url(), headers={"X-Api-Key": "hidden"})
    assert [header(head, "x-api-key") for head in (*server.heads, *target.heads)] == ["hidden", "hidden", None, None]


@pytest.mark.parametrize("names", [["Authorization"], ["x", "COOKIE"], ["Proxy-Authorization"], "X-Request-Id"])
def test_handshake_headers_cannot_be_allowed_to_follow(names: Any) -> None:
    with pytest.raises(ValueError, match="expected cross_origin_headers"):
        connect("ws://a.example", cross_origin_headers=names)


@pytest.mark.parametrize("secrets", SECRETS.values(), ids=SECRETS)
def test_secrets_stay_with_their_origin(client: Client, serve: Serve, secrets: dict[str, Any]) -> None:
    def script(visit: Visit) -> None:
        if visit.request().target == "/":
            cookies = (("Set-Cookie", "more=1"), ("Set-Cookie", "session=newer; Path=/2"))
            visit.answer("307 On", ("Location", "/1" if "headers" in secrets else "/2"), *cookies)
        else:
            visit.answer("403 No")

    server = serve(script)
    with pytest.raises(HandshakeError):
        client.open(server.url(), **secrets)
    first, second = fields_of(server, 0), fields_of(server, 1)
    assert first["authorization"] == second["authorization"] is not None
    session = "hidden" if "headers" in secrets else "newer"
    assert sorted((second["cookie"] or "").split("; ")) == ["more=1", f"session={session}"]


def test_a_cookie_with_a_domain_follows_its_domain(client: Client, serve: Serve) -> None:
    cookies = httpx.Cookies()
    cookies.set("mine", "1", domain="127.0.0.1")
    cookies.set("other", "1", domain="other.example")
    server = serve(lambda visit: visit.answer("403 No"))
    with pytest.raises(HandshakeError):
        client.open(server.url(), cookies=cookies)
    assert fields_of(server)["cookie"] == "mine=1"


def test_credentials_in_a_location_are_not_sent(client: Client, serve: Serve) -> None:
    target = serve(lambda visit: visit.answer("403 No"))
    server = serve(to(target.url(user="them:secret@")))
    with pytest.raises(HandshakeError) as caught:
        client.open(server.url())
    assert "secret" not in str(caught.value)
    assert fields_of(target)["authorization"] is None


def test_redirects_from_tls_to_plain_are_not_followed(client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    target = serve(echoing)
    server = serve(to(target.url("/?token=hidden")), tls=tls_contexts[1])
    with pytest.raises(
        HandshakeError, match=r"expected no redirect from TLS to plain text, got one to http://[\d.]+:\d+/$"
    ):
        client.open(server.url(), ssl=tls_contexts[0])
    assert target.visits == 0


def test_redirects_from_plain_to_tls_are_followed(client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    target = serve(echoing, tls=tls_contexts[1])
    talk = client.open(serve(to(target.url())).url(), ssl=tls_contexts[0])
    talk.echo()
    talk.end()


def test_redirects_do_not_leave_a_unix_socket(client: Client, serve: Serve, tmp_path: Any) -> None:
    target = serve(echoing)
    serve(to(target.url()), unix=tmp_path / "s")
    with pytest.raises(HandshakeError, match="away from the server behind the Unix socket"):
        client.open("ws://here.example", unix=tmp_path / "s")
    assert target.visits == 0


def test_a_redirect_loop_ends(client: Client, serve: Serve) -> None:
    server = serve(to("/"))
    with pytest.raises(HandshakeError, match="redirects") as caught:
        client.open(server.url(), max_redirects=3)
    assert (caught.value.status, server.visits) == (302, 4)


def test_max_redirects_0_follows_none(client: Client, serve: Serve) -> None:
    server = serve(to("/"))
    with pytest.raises(HandshakeError):
        client.open(server.url(), max_redirects=0)
    assert server.visits == 1


@pytest.mark.parametrize("location", ["", "ftp://example.org/", "http://", "http://[", "http://x:port/", "mailto:x@y"])
def test_an_invalid_location_is_an_error(either: Client, serve: Serve, location: str) -> None:
    with pytest.raises((HandshakeError, OSError)) as caught:
        either.open(serve(to(location)).url(), max_redirects=2)
    assert not isinstance(caught.value, TimeoutError)


def test_all_redirects_share_open_timeout(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        if visit.request().target == "/1":
            visit.wait_until_gone()
        visit.answer("302 Found", ("Location", "/1"))

    with pytest.raises(TimeoutError, match="open_timeout"):
        client.open(serve(script).url(), open_timeout=0.1)


def test_a_redirects_endless_body_is_not_read(client: Client, serve: Serve) -> None:
    target = serve(echoing)

    def script(visit: Visit) -> None:
        visit.request().write(f"HTTP/1.1 302 Found\r\nLocation: {target.url()}\r\n\r\n".encode())
        while True:
            visit.write(bytes(2**16))

    talk = client.open(serve(script).url())
    talk.echo()
    talk.end()
