"""permessage-deflate with servers that interpret RFC 7692 in their own way."""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import Any

import httpx
import pytest

from tests.client.conftest import Serve
from tests.support.clients import Client
from tests.support.scripted import Server, Visit
from tests.support.wire_peer import TEXT, header, response_head
from watershed_mw import DeflateOptions, HandshakeError
from watershed_mw.client import Connect, connect

DEFLATE = "permessage-deflate"


def strict(visit: Visit) -> None:
    """Like Go's nhooyr.io/websocket up to 1.8.7 in its default mode: an unknown parameter gets a 400."""
    offers = visit.request().field("sec-websocket-extensions") or ""
    if "server_max_window_bits" in offers:
        visit.answer("400 Bad Request", body=b'unsupported permessage-deflate parameter: "server_max_window_bits=12"')
    else:
        visit.write(response_head(visit.field("sec-websocket-key") or "", ("Sec-WebSocket-Extensions", DEFLATE)))
        visit.read()  # a Close


def offers_of(server: Server) -> list[str | None]:
    """The offer of each request."""
    return [header(head, "sec-websocket-extensions") for head in server.heads]


def test_a_server_that_refuses_a_parameter_gets_a_plain_offer(
    client: Client, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watershed_mw.client")
    server = serve(strict)
    connecting = connect(server.url("/?token=hidden"), headers={"X-Kept": "1"})
    talk = client.enter(connecting)
    talk.end()
    assert offers_of(server)[1:] == [DEFLATE]
    assert all(b"x-kept: 1" in head.lower() for head in server.heads)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "watershed_mw.client"]
    assert line.startswith(f"{server.url('/', scheme='http')} refused the opening handshake with 400; retrying ")
    client.enter(connecting).end()  # it is known by now
    assert offers_of(server)[1:] == [DEFLATE, DEFLATE]


def test_an_httpx_client_makes_a_plain_offer_too(client: Client, serve: Serve) -> None:
    server = serve(strict)
    http = httpx.Client() if client.loop is None else client.do(httpx.AsyncClient)
    client.open(server.url(), http=http).end()
    client.do(http.close if isinstance(http, httpx.Client) else http.aclose)
    assert offers_of(server)[1:] == [DEFLATE]


def test_an_httpx_client_retries_on_a_new_connection(client: Client, serve: Serve) -> None:
    """A server that refuses may close without notice, and the next request on that connection would be lost."""

    def script(visit: Visit) -> None:
        if visit.number == 0:
            visit.answer("400 Bad Request")
            visit.sock.recv(2**16)  # the end, or a request, which gets no answer
        else:
            strict(visit)

    server = serve(script)
    http = httpx.Client() if client.loop is None else client.do(httpx.AsyncClient)
    client.open(server.url(), http=http).end()
    client.do(http.close if isinstance(http, httpx.Client) else http.aclose)
    assert (server.visits, offers_of(server)[1:]) == (2, [DEFLATE])


@pytest.mark.slow
def test_later_requests_of_an_httpx_client_get_a_live_connection(async_client: Client, serve: Serve) -> None:
    """In a pool of one connection: a refused handshake leaves room for the next request, but not its connection."""

    def script(visit: Visit) -> None:
        while True:
            visit.request()
            visit.answer("403 Forbidden" if visit.field("upgrade") else "200 OK")
            visit.head = b""

    server = serve(script)

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as http:

            async def handshake() -> int:
                with pytest.raises(HandshakeError) as caught:
                    await connect(server.url(), http=http, compression=False)
                return caught.value.status

            async def page() -> int:
                return (await http.get(server.url(scheme="http"))).status_code

            return [*await asyncio.gather(handshake(), page(), page(), page())]

    for _ in range(20):
        assert async_client.do(all_at_once) == [403, 200, 200, 200]


@pytest.mark.parametrize(
    "options, asked", [({}, 2), ({"compression": DeflateOptions(window_bits=15)}, 2), ({"compression": False}, 1)]
)
def test_a_server_that_refuses_everything_is_asked_at_most_twice(
    client: Client, serve: Serve, options: dict[str, Any], asked: int
) -> None:
    server = serve(lambda visit: visit.answer("400 Bad Request", body=b"no"))
    connecting: Connect = connect(server.url(), **options)
    for times in (1, 2):  # a plain offer was no help, so the next one is not plain
        with pytest.raises(HandshakeError) as caught:
            client.enter(connecting)
        assert (caught.value.status, caught.value.body, server.visits) == (400, b"no", times * asked)
    assert offers_of(server)[:asked] == offers_of(server)[asked:]


@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "426 Upgrade Required", "500 Oh"]
)
def test_other_refusals_do_not_cause_a_retry(either: Client, serve: Serve, status: str) -> None:
    server = serve(lambda visit: visit.answer(status))
    with pytest.raises(HandshakeError):
        either.open(server.url())
    assert server.visits == 1


def test_a_proxys_400_does_not_cause_a_retry(either: Client, serve: Serve) -> None:
    proxy = serve(lambda visit: visit.answer("400 Bad Request"))
    with pytest.raises(HandshakeError, match="expected the proxy to open a tunnel"):
        either.open("ws://a.example", proxy=proxy.url("", scheme="http"))
    assert proxy.visits == 1


def test_both_offers_share_open_timeout(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        if visit.number == 0:
            visit.answer("400 Bad Request")
        else:
            visit.wait_until_gone()

    server = serve(script)
    with pytest.raises(TimeoutError, match="open_timeout"):
        client.open(server.url(), open_timeout=0.3)
    assert server.visits == 2


@pytest.mark.slow
def test_a_trickling_400_uses_up_open_timeout(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.request().write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\nno")
        visit.wait_until_gone()

    server = serve(script)
    with pytest.raises(HandshakeError) as caught:
        client.open(server.url(), open_timeout=1)
    assert (caught.value.body, server.visits) == (b"no", 1)


def test_messages_stay_uncompressed_if_zlib_does_not_support_the_window(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.switch(("Sec-WebSocket-Extensions", f"{DEFLATE}; client_max_window_bits=8"))
        message = visit.read().payload  # which is not compressed, or there would be a reserved bit
        deflater = zlib.compressobj(wbits=-15)
        visit.send(TEXT, (deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)
        visit.echo()

    talk = client.open(serve(script).url())
    talk.echo("compressible " * 1000)
    talk.end()
