"""Watershed.connect with an httpx response after a 101, for applications that have their own httpx client."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client, descriptors
from tests.support.scripted import Visit, echoing, http_proxy
from tests.support.waiting import until
from watershed_mw import (
    AsyncConnection,
    ConnectionClosed,
    HandshakeError,
    ThreadConnection,
    UnsupportedServerError,
    Watershed,
)
from watershed_mw.client import connect

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
SHED = Watershed(protocols=["chat"])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Both:
    """An httpx client of either flavour."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.client = client
        options = {"trust_env": False, **options}
        self.http = httpx.Client(**options) if client.loop is None else client.do(lambda: httpx.AsyncClient(**options))

    def send(self, url: str) -> httpx.Response:
        """Request the upgrade, as an application does."""
        headers = SHED.request_headers(SHED.generate_key())
        request = self.http.build_request("GET", url, headers=headers)
        response: httpx.Response = self.client.do(lambda: self.http.send(request, stream=True))
        return response

    def close(self) -> None:
        self.client.do(self.http.close if isinstance(self.http, httpx.Client) else self.http.aclose)

    def close_response(self, response: httpx.Response) -> None:
        self.client.do(response.close if self.client.loop is None else response.aclose)


@TLS
def test_a_response_becomes_a_connection(client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    server = serve(
        lambda visit: visit.switch(("Sec-WebSocket-Protocol", "chat"), then=b"\x81\x05early").echo(),
        tls=tls_contexts[1] if tls else None,
    )
    both = Both(client, verify=tls_contexts[0])
    response = both.send(server.url(scheme="http"))
    talk = client.take(client.do(lambda: SHED.connect(response)))
    assert isinstance(talk.conn, ThreadConnection if client.loop is None else AsyncConnection)
    assert talk.conn.protocol == "chat"
    assert talk.conn.remote == f"127.0.0.1:{server.port}"
    assert talk.receive() == "early"
    for size in (0, 200, 2**17):
        talk.echo(bytes(size))
    assert talk.end() == 1000
    both.close()


@TLS
def test_large_messages_pass_in_both_directions_at_once(
    client: Client, serve: Serve, tls_contexts: Contexts, tls: bool
) -> None:
    """Paused writers resume, without a deadlock."""

    def script(visit: Visit) -> None:
        visit.switch()
        for _ in range(8):
            visit.send(2, bytes(2**18))
        visit.echo()

    server = serve(script, tls=tls_contexts[1] if tls else None)
    both = Both(client, verify=tls_contexts[0])
    talk = client.take(_connect(both, server.url(scheme="http")))
    assert [len(talk.receive()) for _ in range(8)] == [2**18] * 8
    talk.echo(bytes(2**20))
    assert talk.end() == 1000
    both.close()


def _connect(both: Both, url: str, **options: Any) -> Any:
    response = both.send(url)
    return both.client.do(lambda: SHED.connect(response, **options))


def test_the_network_stream_itself_becomes_a_connection(client: Client, serve: Serve) -> None:
    both = Both(client)
    response = both.send(serve(echoing).url(scheme="http"))
    stream = response.extensions["network_stream"]
    talk = client.take(client.do(lambda: SHED.connect(response, stream)))
    talk.echo()
    assert talk.end() == 1000
    both.close()


@TLS
def test_the_httpx_client_may_be_closed_meanwhile(
    client: Client, serve: Serve, tls_contexts: Contexts, tls: bool
) -> None:
    both = Both(client, verify=tls_contexts[0])
    talk = client.take(_connect(both, serve(echoing, tls=tls_contexts[1] if tls else None).url(scheme="http")))
    both.close()
    if client.loop is None:
        talk.echo()  # the socket is its own
        assert talk.end() == 1000
    else:
        with pytest.raises(ConnectionClosed):
            talk.receive()


def test_a_pool_of_one_connection_is_free_again(serve: Serve) -> None:
    server = serve(lambda visit: visit.answer("200 OK") if visit.number else echoing(visit))
    limits = httpx.Limits(max_connections=1)
    with (
        httpx.Client(limits=limits, trust_env=False) as http,
        http.stream("GET", server.url(scheme="http"), headers=SHED.request_headers(SHED.generate_key())) as response,
    ):
        conn = SHED.connect(response)
        assert http.get(server.url(scheme="http")).status_code == 200
        conn.send("x")
        assert conn.receive() == "x"
        conn.end()


@TLS
def test_detached_returns_the_raw_socket(client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    server = serve(
        lambda visit: visit.switch(then=b"early").sock.sendall(visit.sock.recv(4)),
        tls=tls_contexts[1] if tls else None,
    )
    both = Both(client, verify=tls_contexts[0], timeout=LIMIT)
    response = both.send(server.url(scheme="http"))
    if client.loop is not None:
        with pytest.raises(UnsupportedServerError, match=r"use httpx\.Client"):
            client.do(lambda: SHED.connect(response, detached=True))
        both.close_response(response)
    else:
        with SHED.connect(response, detached=True) as sock:
            assert sock.gettimeout() is None
            assert sock.recv(100) == b"early"
            sock.sendall(b"more")
            assert sock.recv(100) == b"more"
    both.close()


def test_a_refusal_carries_its_response(client: Client, serve: Serve) -> None:
    both = Both(client)
    response = both.send(
        serve(lambda visit: visit.answer("403 No", ("X-Why", "1"), body=b"because")).url(scheme="http")
    )
    with pytest.raises(HandshakeError, match="expected status 101") as caught:
        client.do(lambda: SHED.connect(response))
    assert (caught.value.status, caught.value.response) == (403, response)
    assert ("x-why", "1") in caught.value.headers
    client.do(response.read if client.loop is None else response.aread)
    assert caught.value.response.text == "because"
    both.close()


def test_a_response_without_a_network_stream_is_an_error(client: Client) -> None:
    """Transports for tests, which have no network stream."""

    def answer(request: httpx.Request) -> httpx.Response:
        from watershed_mw.core.handshake.negotiation import accept_key

        accept = accept_key(request.headers["sec-websocket-key"])
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
        return httpx.Response(101, headers=headers)

    both = Both(client, transport=httpx.MockTransport(answer))
    with pytest.raises(TypeError, match="expected a socket, or an httpx response with a network stream"):
        _connect(both, "http://x")
    with pytest.raises(TypeError, match="network stream"):
        client.open("ws://x", http=both.http)
    both.close()


def test_a_refusal_through_an_asgi_transport_is_raised(async_client: Client) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"none"})

    both = Both(async_client, transport=httpx.ASGITransport(app))
    with pytest.raises(HandshakeError) as caught:
        async_client.open("ws://x", http=both.http)
    assert (caught.value.status, caught.value.body) == (404, b"none")
    both.close()


class _Endless(httpx.AsyncByteStream, httpx.SyncByteStream):
    """An endless body of a refusal, on a stream that fails when it is closed."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"no"
        await asyncio.Event().wait()

    def __iter__(self) -> Iterator[bytes]:
        yield b"no"
        raise KeyboardInterrupt

    async def aclose(self) -> None:
        raise ConnectionResetError("reset by the peer")

    def close(self) -> None:
        raise ConnectionResetError("reset by the peer")


def test_a_stream_that_fails_to_close_hides_no_cancellation(client: Client) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(403, stream=_Endless(), extensions={"network_stream": _Endless()})

    both = Both(client, transport=httpx.MockTransport(refuse))

    async def cancelled() -> None:
        async with asyncio.timeout(0.05):
            await connect("ws://x", http=both.http, open_timeout=LIMIT)

    if client.loop is None:
        with pytest.raises(KeyboardInterrupt):
            client.open("ws://x", http=both.http)
    else:
        with pytest.raises(TimeoutError):
            client.do(cancelled)
    both.close()


# --- connect(http=...) ------------------------------------------------------------------------------------------


@TLS
def test_an_application_may_pass_its_own_client(
    client: Client, serve: Serve, tls_contexts: Contexts, tls: bool
) -> None:
    server = serve(echoing, tls=tls_contexts[1] if tls else None)
    proxy = serve(http_proxy())
    mounts = {"http://": None} if not tls else {}
    both = Both(
        client,
        verify=tls_contexts[0],
        cookies={"session": "1"},
        auth=("me", "secret"),
        proxy=proxy.url(scheme="http"),
        mounts=mounts,
    )
    talk = client.open(server.url("/x"), http=both.http)
    talk.echo("x" * 100_000)
    assert talk.end() == 1000
    assert b"session=1" in server.heads[0]
    assert b"Basic " in server.heads[0]
    assert proxy.visits == tls
    both.close()


def test_errors_with_the_applications_client_are_the_same(client: Client, serve: Serve) -> None:
    both = Both(client)
    with pytest.raises(HandshakeError) as caught:
        client.open(serve(lambda visit: visit.answer("302 Found", ("Location", "/"), body=b"x")).url(), http=both.http)
    assert (caught.value.status, caught.value.body) == (302, b"x")
    with pytest.raises(TimeoutError):
        client.open(serve(lambda visit: visit.wait_until_gone()).url(), http=both.http, open_timeout=0.1)
    with pytest.raises(ConnectionRefusedError) as refused:
        client.open("ws://127.0.0.1:1", http=both.http)
    assert refused.value.__cause__ is None
    with pytest.raises(HandshakeError, match="expected an answer to the opening handshake"):
        client.open(serve(lambda visit: visit.request()).url(), http=both.http)
    wrong = serve(lambda visit: visit.request().write(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"))
    with pytest.raises(HandshakeError):
        client.open(wrong.url(), http=both.http)
    both.close()


def test_cancelling_on_the_clients_stream_leaves_nothing_open(async_client: Client, serve: Serve) -> None:
    asked = threading.Event()

    def script(visit: Visit) -> None:
        visit.request()
        asked.set()
        visit.wait_until_gone()

    server = serve(script)
    both = Both(async_client)

    async def cancel() -> None:
        async def opening() -> None:
            await connect(server.url(), http=both.http)

        task = asyncio.create_task(opening())
        assert await asyncio.to_thread(asked.wait, LIMIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = descriptors()
    async_client.run(cancel())
    until(lambda: descriptors() <= before)
    both.close()


def test_a_dropped_connection_releases_its_stream(client: Client, serve: Serve) -> None:
    both = Both(client)
    talk = client.take(_connect(both, serve(lambda visit: visit.switch().wait_until_gone()).url(scheme="http")))
    client.do(talk.conn.destroy)
    with pytest.raises(ConnectionClosed):
        talk.receive()
    both.close()
