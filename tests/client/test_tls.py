"""TLS in the client: the protocol that is offered (RFC 7301), and the host name (RFC 6066)."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client
from tests.support.scripted import Server, Visit, echoing, http_proxy, socks_proxy
from tests.support.wire_peer import header
from watershed_mw import HandshakeError
from watershed_mw.client import alpn, happy_eyeballs, worth_retrying
from watershed_mw.client.happy_eyeballs import Address

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
LISTS = [[], ["http/1.1"], ["h2"], ["h2", "http/1.1"], ["http/1.1", "h2", "x" * 255]]


@pytest.fixture
def contexts(tls_contexts: Contexts, tmp_path: Any) -> Iterator[Contexts]:
    """A client context of the test's own, and a server context that prefers h2, as those of nginx and Caddy do."""
    theirs = tls_contexts[1]
    theirs.set_alpn_protocols(["h2", "http/1.1"])
    client = ssl.create_default_context()
    for authority in tls_contexts[0].get_ca_certs(binary_form=True):
        client.load_verify_locations(cadata=authority)
    yield client, theirs
    theirs.set_alpn_protocols(["http/1.1"])


def chosen(server: list[str | None]) -> Any:
    """A script that records the protocol negotiated by TLS, and echoes."""

    def script(visit: Visit) -> None:
        assert isinstance(visit.sock, ssl.SSLSocket)
        server.append(visit.sock.selected_alpn_protocol())
        echoing(visit)

    return script


@pytest.mark.parametrize("way", ["direct", "http", "socks5"])
def test_alpn_offers_http11_only(client: Client, serve: Serve, contexts: Contexts, way: str) -> None:
    """With a context that an HTTP/2 client has used before; its own offer is back once the connection is open."""
    contexts[0].set_alpn_protocols(["http/1.1", "h2"])
    agreed: list[str | None] = []
    server = serve(chosen(agreed), tls=contexts[1])
    proxies = {"http": http_proxy(), "socks5": socks_proxy()}
    proxy = serve(proxies[way]).url("", scheme=way) if way in proxies else None
    talk = client.open(server.url(), ssl=contexts[0], proxy=proxy)
    talk.echo()
    talk.end()
    assert agreed == ["http/1.1"]
    assert alpn.offers(contexts[0]) == ["http/1.1", "h2"]


def test_nothing_is_sent_if_the_server_selects_another_protocol(
    client: Client, serve: Serve, contexts: Contexts
) -> None:
    """The server selects a protocol that was not offered, or the context's offer could not be read."""
    contexts[0].set_alpn_protocols(["h2"])
    heard: list[bytes] = []
    server = serve(lambda visit: heard.append(visit.sock.recv(100)), tls=contexts[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alpn, "offers", lambda context: [])
        with pytest.raises(
            HandshakeError, match=r"expected the server to choose http/1\.1 by ALPN, got 'h2'"
        ) as caught:
            client.open(server.url(), ssl=contexts[0])
    assert caught.value.status == 505
    assert not worth_retrying(caught.value)
    assert heard in ([], [b""])


@pytest.mark.parametrize("protocols", LISTS, ids=len)
def test_the_contexts_own_offer_is_restored(contexts: Contexts, protocols: list[str]) -> None:
    context = contexts[0]
    if protocols:
        context.set_alpn_protocols(protocols)
    assert alpn.offers(context) == protocols
    with alpn.offering_http11(context), alpn.offering_http11(context):
        assert alpn.offers(context) == (["http/1.1"] if protocols else [])
    assert alpn.offers(context) == protocols


def test_a_context_can_be_used_by_many_connections_at_once(contexts: Contexts) -> None:
    context = contexts[0]
    context.set_alpn_protocols(["h2"])
    seen: list[list[str]] = []

    def use() -> None:
        for _ in range(20):
            with alpn.offering_http11(context):
                seen.append(alpn.offers(context))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert seen == [["http/1.1"]] * 80
    assert alpn.offers(context) == ["h2"]


def test_an_offer_set_by_others_meanwhile_is_kept(contexts: Contexts) -> None:
    context = contexts[0]
    context.set_alpn_protocols(["h2"])
    with alpn.offering_http11(context):
        context.set_alpn_protocols(["http/1.1", "h2"])
    assert alpn.offers(context) == ["http/1.1", "h2"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "http", "socks5"])
def test_a_trailing_dot_is_kept_for_the_host_and_dropped_for_tls(
    client: Client, serve: Serve, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The name is resolved and sent in Host with its dot; TLS uses it without."""
    names: list[str | None] = []
    looked_up: list[str] = []

    async def resolve(host: str, port: int) -> list[Address]:
        return resolve_blocking(host, port)

    def resolve_blocking(host: str, port: int) -> list[Address]:
        looked_up.append(host)
        return real("127.0.0.1", port)

    real = happy_eyeballs.resolve_blocking
    contexts[1].sni_callback = lambda sock, name, context: names.append(name)
    server: Server = serve(echoing, tls=contexts[1])
    proxy = None
    if way == "direct":
        monkeypatch.setattr(happy_eyeballs, "resolve", resolve)
        monkeypatch.setattr(happy_eyeballs, "resolve_blocking", resolve_blocking)
    else:
        proxy = serve({"http": http_proxy, "socks5": socks_proxy}[way]()).url("", scheme=way)
    host = "localhost." if way == "direct" else "localhost"
    talk = client.open(f"wss://{host}:{server.port}/", ssl=contexts[0], proxy=proxy)
    talk.echo()
    talk.end()
    contexts[1].sni_callback = None
    assert names == ["localhost"]
    assert header(server.heads[0], "host") == f"{host}:{server.port}"
    assert looked_up == (["localhost."] if way == "direct" else [])
