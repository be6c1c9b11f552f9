"""Connections that cannot be established, and the errors that report them."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client, descriptors
from tests.support.scripted import Server, Visit, echoing
from tests.support.waiting import until
from watershed_mw import HandshakeError
from watershed_mw.client import Connect, connect
from watershed_mw.client.aio import network
from watershed_mw.client.handshake import as_http_url, shown

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def test_a_refusal_carries_all_details(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.answer("403 Forbidden", ("X-Why", "not you"), ("X-Why", "again"), body=b'{"detail": "no"}')
        visit.wait_until_gone()  # it would keep the connection

    server = serve(script)
    with pytest.raises(HandshakeError) as caught:
        client.open(server.url("/secret?token=hidden", user="me:hidden@"))
    error = caught.value
    assert str(error) == (
        f"expected status 101 (Switching Protocols), got 403 Forbidden from http://127.0.0.1:{server.port}/secret"
    )
    assert (error.status, error.body) == (403, b'{"detail": "no"}')
    assert [value for name, value in error.headers if name == "x-why"] == ["not you", "again"]
    assert error.response.json() == {"detail": "no"}
    assert error.response.request.url.path == "/secret"


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "401 Unauthorized", "426 Upgrade Required", "500 Oops"])
def test_every_other_status_is_a_refusal(either: Client, serve: Serve, status: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        either.open(serve(lambda visit: visit.answer(status)).url())
    assert caught.value.status == int(status[:3])
    assert caught.value.body == b""


def test_a_refused_tcp_connection_is_an_os_error(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        client.open(f"ws://127.0.0.1:{port}")


def test_an_impossible_host_name_is_an_os_error(client: Client) -> None:
    with pytest.raises(socket.gaierror, match="not a valid host name"):
        client.open(f"ws://{'a' * 64}.example/")


def test_a_platform_without_unix_sockets_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ValueError, match="without Unix sockets"):
        connect("ws://x", unix="/run/some.sock")


def test_a_missing_unix_socket_is_an_os_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.open("ws://x", unix=tmp_path / "none")


def test_an_untrusted_certificate_is_an_error(client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        client.open(serve(echoing, tls=tls_contexts[1]).url())


class Elsewhere(ssl.SSLContext):
    """Delegates to another context, as truststore's does, which asks the system about certificates."""

    inner: ssl.SSLContext

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self.inner.wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return self.inner.wrap_socket(*args, **options)


def test_a_context_with_its_own_implementation_keeps_it(client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    context = Elsewhere(ssl.PROTOCOL_TLS_CLIENT)  # it trusts no certificate itself
    context.inner = tls_contexts[0]
    client.open(serve(echoing, tls=tls_contexts[1]).url(), ssl=context).echo()


def test_tls_on_an_ended_stream_fails_immediately(async_client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    server = serve(lambda visit: visit.reset())

    async def start() -> None:
        stream = await network.connect("127.0.0.1", server.port, faster=network.supports_aiofastnet([tls_contexts[0]]))
        while await stream.read(1):
            pass
        await stream.start_tls(tls_contexts[0], "127.0.0.1")

    with pytest.raises(ConnectionResetError):
        async_client.run(start())


def test_tls_with_a_plain_server_fails(client: Client, serve: Serve) -> None:
    server = serve(lambda visit: visit.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        client.open(server.url().replace("ws:", "wss:"))


def says_nothing(visit: Visit) -> None:
    visit.request().wait_until_gone()


def trickles_a_head(visit: Visit) -> None:
    visit.request().write(b"HTTP/1.1 101 Switching Protocols\r\nX: ")
    pause = threading.Event()
    while not pause.wait(0.005):
        visit.write(b"x")


def sends_interim_answers(visit: Visit) -> None:
    visit.request()
    while True:
        visit.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def speaks_no_tls(visit: Visit) -> None:
    visit.wait_until_gone()


@pytest.mark.parametrize("script", [says_nothing, trickles_a_head, sends_interim_answers, speaks_no_tls])
def test_open_timeout_covers_the_handshake(client: Client, serve: Serve, script: Callable[[Visit], None]) -> None:
    server = serve(script)
    url = server.url("/x?token=hidden", user="me:hidden@")
    if script is speaks_no_tls:
        url = url.replace("ws:", "wss:")
    with pytest.raises(TimeoutError) as caught:
        client.open(url, open_timeout=0.1)
    assert re.fullmatch(
        r"no WebSocket at https?://127\.0\.0\.1:\d+/x within 0\.1 seconds \(open_timeout\)", str(caught.value)
    )


def test_open_timeout_covers_connecting(client: Client) -> None:
    with socket.socket() as full, socket.socket() as waiting, socket.socket() as more:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in (waiting, more):  # further connections have to wait
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(full.getsockname())
        with pytest.raises(TimeoutError, match="open_timeout"):
            client.open(f"ws://127.0.0.1:{full.getsockname()[1]}", open_timeout=0.1)


def test_all_addresses_of_a_name_share_open_timeout(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    server = serve(echoing)
    dead = socket.socket()
    asked: list[Any] = []

    def several(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number)) for number in (dead_port, port)]

    with dead:
        dead.bind(("127.0.0.1", 0))
        dead_port = dead.getsockname()[1]
        monkeypatch.setattr(socket, "getaddrinfo", several)
        with connect(server.url(host="several.example")) as conn:  # the first refuses
            conn.send("x")
            assert conn.receive() == "x"
        with pytest.raises(TimeoutError, match="open_timeout"):
            connect(server.url(host="several.example"), open_timeout=0).open()
    assert asked == ["several.example"] * 2


def test_cancelling_at_any_stage_leaves_nothing_open(
    async_client: Client, serve: Serve, tls_contexts: Contexts
) -> None:
    arrived = threading.Semaphore(0)

    def script(visit: Visit) -> None:
        arrived.release()
        if visit.number == 0:  # before the head
            visit.request().wait_until_gone()
        elif visit.number == 1:  # within it
            visit.request().write(b"HTTP/1.1 101 Swi")
            visit.wait_until_gone()
        elif visit.number == 2:  # within a refusal's body
            visit.request().write(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nxx")
            visit.wait_until_gone()
        else:  # within TLS, or before a proxy's answer
            visit.wait_until_gone()

    server = serve(script)
    plain, tls = server.url(), server.url().replace("ws:", "wss:")
    stages: list[tuple[str, dict[str, Any]]] = [
        (plain, {}),
        (plain, {}),
        (plain, {}),
        (tls, {}),
        ("ws://other.example", {"proxy": server.url(scheme="http")}),
        ("ws://other.example", {"proxy": server.url(scheme="socks5")}),
        ("wss://other.example", {"proxy": f"https://127.0.0.1:{server.port}"}),
    ]

    async def cancel(url: str, options: dict[str, Any]) -> None:
        async def opening() -> None:
            await connect(url, ssl=tls_contexts[0], **options)

        task = asyncio.create_task(opening())
        assert await asyncio.to_thread(arrived.acquire, timeout=LIMIT)
        for _ in range(3):  # into the waiting that this stage is about
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = descriptors()
    for url, options in stages:
        async_client.run(cancel(url, options))
    until(lambda: descriptors() <= before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "http:/nothing"},
        {"url": "ftp://example.org"},
        {"url": "ws://example.org/#part"},
        {"url": "ws://example.org:port"},
        {"url": None},
        {"headers": {"Upgrade": "other"}},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"not a token": "x"}},
        {"proxy": "nonsense"},
        {"proxy": "gopher://x"},
        {"protocols": "chat"},
        {"protocols": ["a b"]},
        {"max_message_size": -1},
    ],
    ids=str,
)
def test_invalid_values_are_rejected_immediately(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        connect(**{"url": "ws://example.org", **arguments})


def test_wrong_types_are_rejected_immediately() -> None:
    for arguments in ({"http": object()}, {"ssl": True}, {"no_such_option": 1}):
        with pytest.raises(TypeError, match="expected"):
            connect("ws://example.org", **arguments)


def test_an_httpx_client_of_the_other_flavour_is_rejected(client: Client) -> None:
    wrong = httpx.AsyncClient() if client.loop is None else httpx.Client()
    with pytest.raises(TypeError, match="flavour"):
        client.open("ws://127.0.0.1", http=wrong)
    if isinstance(wrong, httpx.Client):
        wrong.close()
    else:
        asyncio.run(wrong.aclose())


@pytest.mark.parametrize("enter", [Connect.__enter__, Connect.open, lambda connecting: next(iter(connecting))])
def test_nothing_blocks_a_running_event_loop(async_client: Client, enter: Callable[[Connect], Any]) -> None:
    """If the server ran on the same loop, the call would never return."""
    connecting = connect("ws://127.0.0.1:1")

    async def use() -> None:
        with pytest.raises(RuntimeError, match=r"expected a thread without a running .*: use `async with connect"):
            enter(connecting)

    async_client.run(use())


def test_awaiting_connect_requires_asyncio() -> None:
    async def use() -> None:
        async with connect("ws://127.0.0.1:1"):
            pass

    with pytest.raises(RuntimeError, match="expected a running asyncio event loop"):
        trio.run(use)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:hidden@example.org/?hidden",
        "ws://me:hidden@example.org/?hidden#hidden",
        "ws://me:hid/den@example.org",
        "ws://me:hidden@example.org:hidden/",
        "ws:me:hidden@example.org/",
        "wss:/me:hidden@example.org/",
    ],
)
def test_errors_about_urls_hide_secrets(url: str) -> None:
    for use in (connect, lambda url: connect("ws://example.org", proxy=url.replace("ws:", "gopher:"))):
        with pytest.raises(ValueError, match="expected") as caught:
            use(url)
        assert "hid" not in str(caught.value)


def test_shown_urls_have_no_secrets() -> None:
    assert shown(as_http_url("wss://me:hidden@example.org:99/path?hidden")) == "https://example.org:99/path"


def test_reprs_hide_the_request() -> None:
    assert "hidden" not in repr(connect("wss://me:hidden@example.org/?hidden"))
    assert isinstance(connect("ws://x"), Connect)


def test_the_default_trust_store_is_that_of_httpx(serve: Serve, tls_contexts: Contexts) -> None:
    server: Server = serve(echoing, tls=tls_contexts[1])
    with connect(server.url(), ssl=tls_contexts[0]) as conn:
        conn.send("x")
        assert conn.receive() == "x"
