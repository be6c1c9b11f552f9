"""Proxies: CONNECT for both ws:// and wss://, TLS to the proxy, SOCKS5, and the environment's settings."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

import httpx
import pytest

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client
from tests.support.scripted import Script, Server, Visit, echoing, http_proxy, pump, socks_proxy
from watershed_mw import HandshakeError, UnsupportedServerError
from watershed_mw.client import worth_retrying
from watershed_mw.client.handshake import as_http_url
from watershed_mw.client.route import by_environment

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
KINDS: dict[str, Script] = {"http": http_proxy("me:se@cret"), "socks5": socks_proxy("me:se@cret")}
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


def url_of(proxy: Server, kind: str = "http", user: str = "me:se%40cret@") -> str:
    return proxy.url("", scheme=kind, user=user)


@TLS
@pytest.mark.parametrize("kind", KINDS)
def test_connecting_through_a_proxy(client: Client, serve: Serve, tls_contexts: Contexts, kind: str, tls: bool) -> None:
    server = serve(echoing, tls=tls_contexts[1] if tls else None)
    proxy = serve(KINDS[kind])
    talk = client.open(server.url("/x"), proxy=url_of(proxy, kind), ssl=tls_contexts[0])
    talk.echo("x" * 200_000)
    assert talk.end() == 1000
    assert f"127.0.0.1:{server.port}".encode() in proxy.heads[0]
    assert b"proxy-auth" not in server.heads[0].lower()
    assert b"se@cret" not in server.heads[0]


@TLS
def test_connecting_through_a_proxy_over_tls(client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    server = serve(echoing, tls=tls_contexts[1] if tls else None)
    proxy = httpx.Proxy(url_of(serve(http_proxy("me:se@cret"), tls=tls_contexts[1])), ssl_context=tls_contexts[0])
    if tls and client.loop is None:
        with pytest.raises(UnsupportedServerError, match="cannot speak TLS inside TLS") as caught:
            client.open(server.url(), proxy=proxy, ssl=tls_contexts[0])
        assert not worth_retrying(caught.value)
        return
    talk = client.open(server.url(), proxy=proxy, ssl=tls_contexts[0])
    talk.echo("x" * 200_000)
    assert talk.end() == 1000


def test_bytes_of_a_proxy_are_not_mistaken_for_the_servers(
    client: Client, serve: Serve, tls_contexts: Contexts
) -> None:
    """More than one read's worth follows the tunnel's response.

    Without TLS, the excess must not be parsed as a response.
    """
    forged = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nforged"

    def script(visit: Visit) -> None:
        visit.request()
        head = b"HTTP/1.1 200 Connection established\r\n\r\n"
        visit.write(head.ljust(2**16, b"x") + forged)
        with suppress(OSError), tls_contexts[1].wrap_socket(visit.sock, server_side=True) as sock:
            sock.recv(2**16)

    with pytest.raises((OSError, HandshakeError)) as caught:
        client.open("wss://127.0.0.1:9/", proxy=serve(script).url("", scheme="http"), ssl=tls_contexts[0])
    assert not isinstance(caught.value, HandshakeError) or caught.value.status != 403


def test_redirects_go_through_the_proxy_too(client: Client, serve: Serve) -> None:
    target = serve(echoing)
    server = serve(lambda visit: visit.answer("302 Found", ("Location", target.url())))
    proxy = serve(http_proxy())
    talk = client.open(server.url(), proxy=url_of(proxy))
    talk.echo()
    talk.end()
    assert [head.split()[1] for head in proxy.heads] == [f"127.0.0.1:{each.port}".encode() for each in (server, target)]


@pytest.mark.parametrize("kind, user", [("socks5", "me:se%40cret@"), ("socks5h", "")])
def test_replies_of_a_socks_proxy_may_arrive_byte_by_byte(client: Client, serve: Serve, kind: str, user: str) -> None:
    """The proxy's address may be of any type; the server's bytes follow in the same segment."""
    server = serve(lambda visit: visit.answer("403 This is the server"))
    bound = {"socks5": b"\x03\x0bsocks.local\x00\x50", "socks5h": b"\x04" + bytes(18)}[kind]

    def pieces(visit: Visit, data: bytes) -> None:
        for number in range(len(data)):
            visit.write(data[number : number + 1])

    def script(visit: Visit) -> None:
        visit.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert visit.sock.recv(3) == bytes([5, 1, 2 if user else 0])
        pieces(visit, bytes([5, 2 if user else 0]))
        if user:
            assert visit.sock.recv(100) == b"\x01\x02me\x07se@cret"
            pieces(visit, b"\x01\x00")
        assert visit.sock.recv(100) == b"\x05\x01\x00\x03\x09many.test" + server.port.to_bytes(2)
        pieces(visit, b"\x05\x00\x00" + bound)
        with socket.create_connection(("127.0.0.1", server.port), LIMIT) as upstream:
            pump(visit.sock, upstream)

    with pytest.raises(HandshakeError, match="403 This is the server"):
        client.open(f"ws://many.test:{server.port}/", proxy=url_of(serve(script), kind, user))


@pytest.mark.parametrize(
    "replies, said",
    [
        ((b"\x04\x00",), "another protocol than SOCKS5"),
        ((b"\x05\xff",), "no authentication by method 0"),
        ((b"\x05\x00", b"\x05\x02\x00\x00"), "connection not allowed by ruleset"),
        ((b"\x05\x00", b"\x05\x63\x00\x01"), "reply 99"),
        ((b"\x05\x00", b"\x05\x00\x00\x09"), "an address of type 9"),
        ((b"\x05\x00", b"HTTP"), "another protocol than SOCKS5"),
        ((b"\x05\x00", b"\x05"), "the end of its stream"),
    ],
)
def test_errors_show_the_reply_of_a_socks_proxy(
    either: Client, serve: Serve, replies: tuple[bytes, ...], said: str
) -> None:
    def script(visit: Visit) -> None:
        for reply in replies:
            visit.sock.recv(1000)
            visit.write(reply)
        visit.half_close()
        visit.wait_until_gone()

    with pytest.raises(HandshakeError, match=f"expected the SOCKS proxy to connect, got:? {said}") as caught:
        either.open("ws://a.example/", proxy=url_of(serve(script), "socks5", ""))
    assert caught.value.status == 502


# --- the environment ----------------------------------------------------------------------------------------


@TLS
@pytest.mark.parametrize("name", ["{}_PROXY", "{}_proxy", "ALL_PROXY"])
def test_the_environment_names_a_proxy(
    serve: Serve, either: Client, tls_contexts: Contexts, monkeypatch: pytest.MonkeyPatch, tls: bool, name: str
) -> None:
    server, proxy = serve(echoing, tls=tls_contexts[1] if tls else None), serve(http_proxy())
    scheme = "https" if tls else "http"
    monkeypatch.setenv(name.format(scheme if "proxy" in name else scheme.upper()), f"127.0.0.1:{proxy.port}")
    either.open(server.url(), ssl=tls_contexts[0]).end()
    assert proxy.visits == 1
    either.open(server.url(), ssl=tls_contexts[0], proxy=False).end()
    assert proxy.visits == 1


@pytest.mark.parametrize("value", ["127.0.0.1", "127.0.0.1:{port}", "*", "other.example, 127.0.0.1"])
def test_no_proxy_lists_exceptions(either: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    server = serve(echoing)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(ConnectionRefusedError):
        either.open(server.url())
    monkeypatch.setenv("NO_PROXY", value.format(port=server.port))
    either.open(server.url()).end()


@pytest.mark.parametrize(
    "url, no_proxy, direct",
    [
        ("ws://10.1.2.3/", "10.0.0.0/8", True),
        ("ws://11.1.2.3/", "10.0.0.0/8", False),
        ("ws://10.1.2.3/", "192.168.0.0/16 , 10.0.0.0/8", True),
        ("ws://10.1.2.3/", "10.1.2.3/8", True),  # as ipaddress has it with bits of a host
        ("ws://10.1.2.3/", "10.1.2.3", True),
        ("ws://10.1.2.3/", "10.1.2", False),
        ("ws://10.1.2.3:81/", "10.1.2.3:80", False),
        ("ws://10.1.2.3:80/", "10.1.2.3:80", True),
        ("ws://127.0.0.1:8000/", "127.0.0.0/8", True),
        ("ws://[fd00::2]/", "fd00::/8", True),
        ("ws://[fe00::2]/", "fd00::/8", False),
        ("ws://[::ffff:10.1.2.3]/", "10.0.0.0/8", True),
        ("ws://[::1]:8000/", "::1", True),
        ("ws://[::1]:8000/", "[::1]", True),
        ("ws://[::1]:8000/", "[::1]:8000", True),
        ("ws://[::1]:8000/", "[::1]:8001", False),
        ("ws://[0:0:0:0:0:0:0:1]/", "::1", True),
        ("wss://example.org/", "example.org:443", True),
        ("ws://example.org/", "example.org:443", False),
        ("ws://example.org/", "example.org:80", True),
        ("wss://example.org:8443/", "example.org:443", False),
        ("wss://example.org/", "example.org", True),
        ("wss://EXAMPLE.org./", "Example.ORG", True),
        ("wss://a.example.org/", "example.org", True),
        ("wss://a.example.org/", ".example.org", True),
        ("wss://a.example.org/", "*.example.org", True),
        ("wss://a.example.org/", ".example.org:443", True),
        ("wss://badexample.org/", "example.org", False),
        ("wss://badexample.org/", "*example.org", False),
        ("wss://example.org/", "*", True),
        ("wss://example.org/", "a.example *", True),
        ("wss://example.org/", "", False),
        ("wss://example.org/", ",, .,:443,[", False),
        ("wss://example.org/", "10.0.0.0/33", False),
    ],
)
def test_no_proxy_matches_hosts_networks_and_ports(
    monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str, direct: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (by_environment(as_http_url(url)) is None) is direct


def test_an_invalid_proxy_in_the_environment_is_a_clear_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://me:hidden@x")
    with pytest.raises(ValueError, match="expected a proxy's URL") as caught:
        client.open("ws://127.0.0.1")
    assert "hidden" not in str(caught.value)


def test_a_unix_socket_never_uses_a_proxy(
    client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    serve(echoing, unix=tmp_path / "s")  # type: ignore[operator]
    client.open("ws://x", unix=tmp_path / "s").end()  # type: ignore[operator]


# --- proxies that refuse, and worse ----------------------------------------------------------------------------


def test_wrong_credentials_are_an_error(client: Client, serve: Serve) -> None:
    proxy = serve(http_proxy("me:right"))
    with pytest.raises(HandshakeError, match=r"expected the proxy to open a tunnel \(2xx\), got 407") as caught:
        client.open("ws://x.example", proxy=url_of(proxy))
    error = caught.value
    assert error.status == 407
    assert ("proxy-authenticate", 'Basic realm="here"') in [(name.lower(), value) for name, value in error.headers]
    assert not worth_retrying(error)


def eof(visit: Visit) -> None:
    visit.sock.recv(3)


def garbage(visit: Visit) -> None:
    visit.sock.recv(3)
    visit.write(b"\x00 garbage \xff\r\n\r\n" * 5000)
    visit.wait_until_gone()


def refuses(visit: Visit) -> None:
    visit.sock.recv(4)
    visit.write(b"\x05\x00")
    visit.sock.recv(1000)
    visit.write(b"\x05\x05\x00\x01" + bytes(6))
    visit.wait_until_gone()


def trickles(visit: Visit) -> None:
    visit.sock.recv(4)
    visit.write(b"\x05")
    visit.wait_until_gone()


@pytest.mark.parametrize(
    "kind, script",
    [
        ("http", eof),
        ("http", garbage),
        ("socks5", eof),
        ("socks5", garbage),
        ("socks5", refuses),
        ("socks5", socks_proxy("somebody:else")),
        ("socks5", socks_proxy()),
    ],
)
def test_misbehaving_proxies_are_an_error(either: Client, serve: Serve, kind: str, script: Script) -> None:
    user = "" if script is refuses else "me:hidden@"
    with pytest.raises((HandshakeError, OSError)) as caught:
        either.open("ws://127.0.0.1:1/?hidden", proxy=url_of(serve(script), kind, user), open_timeout=LIMIT)
    assert not isinstance(caught.value, TimeoutError)
    assert "hidden" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "kind, script", [("http", Visit.wait_until_gone), ("socks5", Visit.wait_until_gone), ("socks5", trickles)]
)
def test_a_silent_proxy_is_a_timeout(client: Client, serve: Serve, kind: str, script: Script) -> None:
    """Even in the middle of a reply whose other part may still be in transit."""
    proxy = serve(script)
    with pytest.raises(TimeoutError, match="open_timeout"):
        client.open("ws://x.example", proxy=url_of(proxy, kind), open_timeout=0.1)


def test_an_unreachable_proxy_is_an_error(client: Client) -> None:
    with pytest.raises(ConnectionRefusedError):
        client.open("ws://x.example", proxy="http://127.0.0.1:1")
