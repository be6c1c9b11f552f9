"""connect(): one list of scenarios for threads, asyncio and uvloop (RFC 6455 section 4.1)."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpcore
import httpx
import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client
from tests.support.scripted import Visit, echoing
from tests.support.waiting import in_thread
from tests.support.wire_peer import PING, TEXT, WirePeer
from watershed_mw import ConnectionClosed, DeflateOptions, HandshakeError, Watershed, WatershedConnection
from watershed_mw.client import connect
from watershed_mw.client.aio import network
from watershed_mw.client.route import Route
from watershed_mw.core.states import Role

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
MIB = 2**20


def frames(*messages: str | bytes) -> bytes:
    """The bytes that a server sends for these messages."""
    one, other = socket.socketpair()
    with one, other:
        peer = WirePeer(one, Role.SERVER)
        return b"".join(peer.frame(TEXT if isinstance(message, str) else 2, message) for message in messages)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_messages_of_every_size_are_echoed(client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    server = serve(echoing, tls=tls_contexts[1] if tls else None)
    talk = client.open(server.url(), ssl=tls_contexts[0] if tls else None)
    assert isinstance(talk.conn, WatershedConnection)
    for size in (0, 1, 126, 2**16, 3 * MIB // 4):
        talk.echo(bytes(size))
    talk.echo("é" * 1000)
    assert talk.end() == 1000
    assert talk.conn.remote == f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def websockets_port(tls_contexts: Contexts) -> Iterator[int]:
    """The port of a `websockets` server, started once because it leaves a pipe open."""

    def handler(conn: ServerConnection) -> None:
        assert conn.request is not None
        conn.send(f"{conn.subprotocol} {conn.request.path} {[item.name for item in conn.protocol.extensions]}")
        for message in conn:
            conn.send(message)

    protocols = cast(Any, ["b", "a"])
    with serve_websockets(handler, "127.0.0.1", 0, subprotocols=protocols, ssl=tls_contexts[1]) as server:
        running = in_thread(server.serve_forever)
        port = server.socket.getsockname()[1]
        with connect(f"wss://127.0.0.1:{port}", protocols=["a"], ssl=tls_contexts[0]):
            pass  # it has opened by now whatever it opens
        yield port
        server.shutdown()
        running.result(LIMIT)


def test_connecting_to_a_websockets_server(websockets_port: int, client: Client, tls_contexts: Contexts) -> None:
    url = f"wss://127.0.0.1:{websockets_port}/x?y=1"
    talk = client.open(url, protocols=["a", "c"], ssl=tls_contexts[0])
    assert talk.receive() == "a /x?y=1 ['permessage-deflate']"
    assert talk.conn.protocol == "a"
    talk.echo("hello " * 10_000)
    assert talk.end() == 1000


def test_leaving_the_block_ends_the_connection(client: Client, serve: Serve) -> None:
    server = serve(echoing)
    connecting = connect(server.url())
    for _ in range(2):  # one after the other
        if client.loop is None:
            with connecting as conn:
                conn.send("x")
                assert conn.receive() == "x"
        else:

            async def use() -> Any:
                async with connecting as conn:
                    await conn.send("x")
                    assert await conn.receive() == "x"
                return conn

            conn = client.run(use())
        assert conn.close_code == 1000


def test_an_exception_in_the_block_closes_with_1011(client: Client, serve: Serve) -> None:
    codes: Future[bytes] = Future()
    server = serve(lambda visit: codes.set_result(visit.switch().read().payload))

    def use() -> None:
        with connect(server.url(), close_timeout=0.1):
            raise ZeroDivisionError

    async def use_on_loop() -> None:
        async with connect(server.url(), close_timeout=0.1):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.do(use if client.loop is None else use_on_loop)
    assert codes.result(LIMIT)[:2] == (1011).to_bytes(2)


def test_an_object_can_be_entered_only_once_at_a_time(client: Client, serve: Serve) -> None:
    connecting = connect(serve(echoing).url())

    def enter_again() -> None:
        with pytest.raises(RuntimeError, match="one `with`"):
            connecting.__enter__()

    if client.loop is None:
        with connecting as conn:
            enter_again()
            conn.send("the first one lives")
            assert conn.receive()
        assert conn.close_code == 1000
        return

    async def use() -> None:
        async def second() -> None:
            with pytest.raises(RuntimeError, match="one `with`"):
                await connecting.__aenter__()

        async with connecting as conn:
            await asyncio.create_task(second())
            other = await connecting  # awaiting it is no entering
            await other.end()
            await conn.send("the first one lives")
            assert await conn.receive()
        assert conn.close_code == 1000

    client.run(use())


def test_an_object_can_be_opened_by_many_tasks_at_once(client: Client, serve: Serve) -> None:
    connecting = connect(serve(echoing).url())
    if client.loop is None:
        calls = [in_thread(connecting.open) for _ in range(3)]
        talks = [client.take(call.result(LIMIT)) for call in calls]
    else:

        async def all_of_them() -> list[Any]:
            async def one() -> Any:
                return await connecting

            return await asyncio.gather(*(one() for _ in range(3)))

        talks = [client.take(conn) for conn in client.run(all_of_them())]
    for talk in talks:
        talk.echo()
    assert {talk.end() for talk in talks} == {1000}


def test_entering_can_be_repeated_after_a_failure(client: Client, serve: Serve) -> None:
    def busy_first(visit: Visit) -> None:
        if visit.number == 0:
            visit.answer("503 Service Unavailable")
        else:
            echoing(visit)

    connecting = connect(serve(busy_first).url())
    if client.loop is None:
        with pytest.raises(HandshakeError), connecting:
            pass
        with connecting as conn:
            pass
    else:

        async def use() -> Any:
            with pytest.raises(HandshakeError):
                async with connecting:
                    pass
            async with connecting as conn:
                pass
            return conn

        conn = client.run(use())
    assert conn.close_code == 1000


def test_the_request_has_the_expected_headers(client: Client, serve: Serve) -> None:
    server = serve(lambda visit: visit.switch(("Sec-WebSocket-Protocol", "b")).echo())
    talk = client.open(
        server.url("/a%20b?q=1#".rstrip("#"), user="me:se%40cret@"),
        protocols=["a", "b"],
        headers={"X-More": "1"},
        origin="https://here.example",
        cookies={"session": "42"},
    )
    talk.end()
    head = server.heads[0].decode()
    assert head.startswith("GET /a%20b?q=1 HTTP/1.1\r\n")
    fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head.split("\r\n")[1:-2]}
    assert fields["host"] == f"127.0.0.1:{server.port}"
    assert (fields["upgrade"].lower(), fields["connection"].lower()) == ("websocket", "upgrade")
    assert fields["sec-websocket-version"] == "13"
    assert len(base64.b64decode(fields["sec-websocket-key"])) == 16
    assert fields["sec-websocket-protocol"] == "a, b"
    assert fields["sec-websocket-extensions"].startswith("permessage-deflate")
    assert (fields["x-more"], fields["origin"], fields["cookie"]) == ("1", "https://here.example", "session=42")
    assert base64.b64decode(fields["authorization"].removeprefix("Basic ")) == b"me:se@cret"
    assert talk.conn.protocol == "b"


def test_compression_is_an_option(client: Client, serve: Serve) -> None:
    server = serve(echoing)
    client.open(server.url(), compression=False).end()
    client.open(server.url(), compression=DeflateOptions(level=9)).end()
    assert [b"permessage-deflate" in head for head in server.heads] == [False, True]


def test_other_authentication_methods_work(client: Client, serve: Serve) -> None:
    server = serve(echoing)
    client.open(server.url(), auth=("a", "b")).end()
    client.open(server.url(), headers=[("Authorization", "Bearer x")]).end()
    said = [re.search(rb"authorization: (\S+ \S+)", head, re.IGNORECASE) for head in server.heads]
    assert [match and match[1] for match in said] == [b"Basic " + base64.b64encode(b"a:b"), b"Bearer x"]


def test_digest_authentication_works(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        if visit.request().field("authorization") is None:
            visit.answer("401 Unauthorized", ("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"'))
        else:
            visit.sock.settimeout(LIMIT)
            Watershed().accept(visit.head, visit.sock, headers=[("X-Ok", "1")]).run()

    server = serve(script)
    talk = client.open(server.url(), auth=httpx.DigestAuth("me", "secret"))
    talk.end()
    keys = {re.search(rb"sec-websocket-key: (\S+)", head, re.IGNORECASE)[1] for head in server.heads}  # type: ignore[index]
    assert len(keys) == 2


def test_connecting_to_a_unix_socket(client: Client, serve: Serve, tmp_path: Path) -> None:
    server = serve(echoing, unix=tmp_path / "s")
    talk = client.open("ws://any.example/x", unix=tmp_path / "s")
    talk.echo()
    talk.end()
    assert b"host: any.example" in server.heads[0].lower()


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_connecting_over_ipv6(client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    server = serve(echoing, host="::1", tls=tls_contexts[1] if tls else None)
    context = tls_contexts[0] if tls else None
    if tls:  # the certificate is for other names
        with pytest.raises(ssl.SSLCertVerificationError):
            client.open(server.url(), ssl=context)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    talk = client.open(server.url(), ssl=context)
    talk.echo()
    talk.end()
    assert f"host: [::1]:{server.port}".encode() in server.heads[0].lower()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_frames_in_the_same_segment_as_the_head_are_received(
    client: Client, serve: Serve, tls_contexts: Contexts, tls: bool
) -> None:
    """More data than any buffer in between holds, so reading is paused when the connection takes over."""
    messages: list[str | bytes] = ["first", *(bytes([number]) * 70_000 for number in range(20)), "last"]
    server = serve(lambda visit: visit.switch(then=frames(*messages)).echo(), tls=tls_contexts[1] if tls else None)
    talk = client.open(server.url(), ssl=tls_contexts[0] if tls else None)
    assert [talk.receive() for _ in messages] == messages
    talk.echo()
    assert talk.end() == 1000


def test_a_close_in_the_same_segment_as_the_head_is_received(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        visit.switch(then=frames("bye") + b"\x88\x02\x0f\xa1")
        visit.read()

    talk = client.open(serve(script).url())
    assert talk.receive() == "bye"
    with pytest.raises(ConnectionClosed) as caught:
        talk.receive()
    assert caught.value.code == 4001


def test_a_close_and_the_end_of_tls_in_the_same_segment_as_the_head(
    client: Client, serve: Serve, tls_contexts: Contexts
) -> None:
    def script(visit: Visit) -> None:
        visit.switch(then=frames("bye") + b"\x88\x02\x0f\xa1")
        with suppress(OSError):
            cast(ssl.SSLSocket, visit.sock).unwrap()

    talk = client.open(serve(script, tls=tls_contexts[1]).url(), ssl=tls_contexts[0])
    assert talk.receive() == "bye"
    with pytest.raises(ConnectionClosed) as caught:
        talk.receive()
    assert caught.value.code == 4001


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reset_behind_bytes_is_noticed(async_client: Client, serve: Serve, tls_contexts: Contexts, tls: bool) -> None:
    """Both arrive while the loop is busy, and no PING is sent."""
    go, gone = threading.Event(), threading.Event()

    def script(visit: Visit) -> None:
        visit.switch()
        assert go.wait(LIMIT)
        visit.write(frames("last words"))
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        visit.sock.close()
        gone.set()

    server = serve(script, tls=tls_contexts[1] if tls else None)

    async def talk() -> tuple[list[str | bytes], int | None]:
        conn = await connect(server.url(), ssl=tls_contexts[0] if tls else None, ping_interval=None)
        go.set()
        assert gone.wait(LIMIT)
        async with asyncio.timeout(LIMIT):
            return [message async for message in conn], conn.close_code

    assert async_client.run(talk()) == (["last words"], 1006)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_flood_of_small_messages_after_a_large_one_is_received(
    async_client: Client, serve: Serve, tls_contexts: Contexts, tls: bool
) -> None:
    """There is more data than one read returns, and the first read ends between two messages."""
    messages: list[str | bytes] = [bytes(MIB), *[""] * 200_000]
    came: list[str | bytes] = []
    stream = (frames(messages[0]) + frames("") * (len(messages) - 1)) * 4

    def script(visit: Visit) -> None:
        visit.switch(then=stream)
        visit.begin_close()

    server = serve(script, tls=tls_contexts[1] if tls else None)

    async def talk() -> tuple[int, str]:
        conn = await connect(server.url(), ssl=tls_contexts[0] if tls else None)
        conn.on("text", came.append)
        conn.on("binary", came.append)
        return await conn.run()

    assert async_client.run(talk()) == (1000, "")
    assert came == messages * 4


def test_a_body_over_tls_may_end_before_it_is_read(async_client: Client, serve: Serve, tls_contexts: Contexts) -> None:
    go = threading.Event()

    def script(visit: Visit) -> None:
        visit.request()
        visit.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 50000\r\n\r\n")
        assert go.wait(LIMIT)
        visit.write(bytes(50_000))
        visit.sock.close()

    server = serve(script, tls=tls_contexts[1])

    async def body() -> bytes:
        request = httpcore.Request(b"GET", server.url(scheme="http"), headers=[(b"Host", b"x")])
        response = await network.send(Route(tls_contexts[0]).plan_to(request))
        inbox = response.extensions["network_stream"].get_extra_info("asyncio_stream")._inbox
        lost, gone = inbox.connection_lost, asyncio.Event()

        def note(error: Exception | None) -> None:
            lost(error)
            gone.set()

        inbox.connection_lost = note
        go.set()
        async with asyncio.timeout(LIMIT):
            await gone.wait()
            read = b"".join([part async for part in cast(AsyncIterable[bytes], response.stream)])
        await response.aclose()
        return read

    assert async_client.run(body()) == bytes(50_000)


@pytest.mark.need(16)
def test_a_client_sends_keepalive_pings(client: Client, serve: Serve) -> None:
    def script(visit: Visit) -> None:
        frame = visit.switch().read()
        assert frame.opcode == PING
        visit.send(10, frame.payload)
        visit.send(TEXT, "alive")
        visit.echo()

    talk = client.open(serve(script).url(), ping_interval=0.01, ping_timeout=LIMIT)
    assert talk.receive() == "alive"
    assert talk.conn.latency > 0
    talk.end()


def test_a_silent_server_is_dropped(client: Client, serve: Serve) -> None:
    talk = client.open(
        serve(lambda visit: visit.switch().wait_until_gone()).url(),
        ping_interval=0.01,
        ping_timeout=0.02,
        close_timeout=0.02,
    )
    with pytest.raises(ConnectionClosed):
        talk.receive()
