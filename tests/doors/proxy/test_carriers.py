"""The proxy with TLS and Unix sockets, on either side."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.support.peers import Peer, close, text
from tests.support.proxy_fronts import (
    Front,
    Serve,
    ask,
    conversed,
    fields_of,
    target_of,
)
from tests.support.scripted import echoing
from tests.support.threaded_servers import Uvicorn
from watershed_mw.proxy import WebSocketProxy


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_an_upstream_may_use_tls(some: Front, serve: Serve, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    upstream = serve(echoing, tls=server_tls)
    assert upstream.url().startswith("wss://")
    some.serve(WebSocketProxy(upstream.url()))
    assert ask(some).status == 502  # its certificate is not trusted
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    some.serve(WebSocketProxy(upstream.url(), ssl=trusting))
    with Peer(some.port) as peer:
        peer.open()
        for message in ("Hello", "x" * 2**18):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        assert peer.close() == (4001, "enough")


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["plain", "tls"])
def test_a_client_may_use_tls(
    tls_uvicorns: Uvicorn, client_tls: ssl.SSLContext, serve: Serve, inner: str, server_tls: ssl.SSLContext,
    authority: trustme.CA,
) -> None:  # fmt: skip
    upstream = serve(echoing, tls=server_tls if inner == "tls" else None)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls_uvicorns.run(WebSocketProxy(upstream.url(), mode="raw", ssl=trusting))
    with Peer(tls_uvicorns.port, tls=client_tls) as peer:
        peer.open()
        assert dict(fields_of(upstream))["x-forwarded-proto"] == "https"
        for message in ("Hello", "x" * 2**20):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        assert peer.close() == (4001, "enough")
        peer.end()


def test_an_upstream_may_be_a_unix_socket(some: Front, serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "upstream"
    upstream = serve(echoing, unix=place)
    some.serve(WebSocketProxy(f"unix:{place}", keep_host=False))
    got = conversed(some, upstream, "/x?y")
    assert target_of(upstream) == "/x?y"
    assert got["host"] == "localhost"
    some.serve(WebSocketProxy(f"unix:{tmp_path}/nobody"))
    assert ask(some).status == 502


def test_the_proxy_can_be_the_whole_application(start: Callable[[str], Front], serve: Serve) -> None:
    """The proxy as the only application, lifespan included."""
    upstream = serve(echoing)
    with Uvicorn(WebSocketProxy(upstream.url()), lifespan="on") as server, Peer(server.port) as peer:
        peer.open()
        peer.send(close())
        assert peer.close() == (1000, "")
    with pytest.raises(TypeError, match=r"^expected"):
        WebSocketProxy("ws://127.0.0.1")(1, 2, 3, 4)
