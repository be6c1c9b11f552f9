"""Upgrades that an application under the uvicorn class refuses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support import LIMIT
from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.peers import Peer, head
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually


def test_an_application_that_returns_without_an_answer_gives_500(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.refusal().status == 500
    assert len(eventually(lambda: errors_in(caplog.records))) == 1


def test_an_exception_before_the_accept_gives_500_without_details(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("a secret")

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


def test_close_before_the_accept_is_403(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4003, "reason": "not you"})
        events.put(await receive())
        with pytest.raises(OSError, match="refused"):
            await send({"type": "websocket.send", "text": "?"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.refusal().status == 403
    assert events.get()["type"] == "websocket.disconnect"
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.need(9)
def test_a_denial_response_is_sent_unchanged(every_uvicorn: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(b"content-type", b"application/json"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": fields})
        await send({"type": "websocket.http.response.body", "body": b'{"who": "are you"}'})

    run = every_uvicorn.run(app)
    with Peer(every_uvicorn.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body) == (401, b'{"who": "are you"}')
    assert answer["content-type"] == "application/json"
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer["content-length"] == str(len(answer.body))
    assert run.outcome() is None


@pytest.mark.need(9)
@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "without its length"])
def test_a_denial_response_may_be_streamed(uvicorns: Uvicorn, declared: bool) -> None:
    chunks = [b"binary \x00\xff", b"", b"x" * 300_000, b"end"]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(b"content-length", str(sum(map(len, chunks))).encode())] if declared else []
        await send({"type": "websocket.http.response.start", "status": 503, "headers": fields})
        for chunk in chunks:
            await send({"type": "websocket.http.response.body", "body": chunk, "more_body": True})
        await send({"type": "websocket.http.response.body"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body) == (503, b"".join(chunks))
    assert run.outcome() is None


def test_a_streamed_denial_ends_when_the_client_leaves(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 200, "headers": []})
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            await send({"type": "websocket.http.response.body", "body": b"x" * 1000, "more_body": True})
            await asyncio.sleep(0)

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.sock.recv(10)
        peer.vanish()
    assert isinstance(run.outcome(), OSError)


def test_a_denial_without_a_body_keeps_its_announced_status(
    every_uvicorn: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-app", b"yes")]})

    every_uvicorn.run(app)
    with Peer(every_uvicorn.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer["x-app"], answer.body) == (401, "yes", b"")
    assert answer["content-length"] == "0"
    assert eventually(lambda: errors_in(caplog.records)) == ["ASGI callable returned without completing response."]


@pytest.mark.parametrize(
    "message",
    [
        None,
        {"type": "websocket.http.response.start", "status": 401, "headers": []},
        {"type": "websocket.accept"},
        {"type": "websocket.close"},
        {"type": "websocket.send", "text": "late"},
        {"type": "websocket.http.response.body", "body": 5.0},
    ],
    ids=["exception", "start", "accept", "close", "send", "body"],
)
def test_a_denial_that_fails_before_its_body_is_a_500(uvicorns: Uvicorn, message: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-app", b"yes")]})
        if message is None:
            raise LookupError("a secret")
        await send(message)

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer["x-app"]) == (500, "")
    assert b"secret" not in answer.body
    assert isinstance(run.outcome(), (LookupError, RuntimeError, TypeError))


@pytest.mark.parametrize("failing", [False, True], ids=["returns", "raises"])
def test_a_denial_that_fails_in_its_body_ends_the_stream(uvicorns: Uvicorn, failing: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(b"content-length", b"100")]  # so that the client knows that there should be more
        await send({"type": "websocket.http.response.start", "status": 401, "headers": fields})
        await send({"type": "websocket.http.response.body", "body": b"so far", "more_body": True})
        if failing:
            raise LookupError

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.rest()
    assert answer.startswith(b"HTTP/1.1 401")
    assert answer.endswith(b"\r\n\r\nso far")


def test_a_denial_pending_at_shutdown_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    begun = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        begun.put(None)
        assert (await receive())["type"] == "websocket.disconnect"

    with Uvicorn() as server:
        run = server.run(app)
        with Peer(server.port) as peer:
            peer.send(head())
            begun.get()
            server.begin_stop()
            assert peer.refusal().status == 503
            server.wait_stopped()
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize("status", [101, 99, 600, 0])
def test_a_denial_requires_an_http_status(uvicorns: Uvicorn, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": status, "headers": []})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.refusal().status == 500
    assert isinstance(run.outcome(), RuntimeError)


def refused_as_a_fault(uvicorns: Uvicorn, app: Any) -> None:
    """The application gets a ValueError, and the client a plain 500 without any of the application's headers."""
    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert answer.status == 500
    assert answer.all("x-evil") == []
    assert isinstance(run.outcome(), ValueError)


@pytest.mark.parametrize("value", [b"a\r\nX-Evil: 1", b"a\nb"])
def test_a_header_cannot_add_a_line(uvicorns: Uvicorn, value: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send, headers=[(b"x-name", value)])

    refused_as_a_fault(uvicorns, app)


def test_a_subprotocol_cannot_add_a_line(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send, subprotocol="a\r\nX-Evil: 1")

    refused_as_a_fault(uvicorns, app)


def test_messages_invalid_before_the_accept_are_refused(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.send", "text": "too early"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.refusal().status == 500
    error = run.outcome()
    assert isinstance(error, RuntimeError)
    assert "websocket.accept" in str(error)
    assert "websocket.send" in str(error)


@pytest.mark.parametrize("leave", [Peer.vanish, lambda peer: peer.sock.close()], ids=["RST", "FIN"])
def test_a_client_may_vanish_before_the_accept(
    every_uvicorn: Uvicorn, caplog: pytest.LogCaptureFixture, leave: Any
) -> None:
    connected, events = Gate[None](), Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        connected.put(None)
        events.put(await receive())
        await send({"type": "websocket.accept"})

    run = every_uvicorn.run(app)
    with Peer(every_uvicorn.port) as peer:
        peer.send(head())
        connected.get()
        leave(peer)
    assert events.get() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert isinstance(run.outcome(), OSError)
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("body", [b"", b"that nobody may see"], ids=["empty", "body"])
def test_a_denial_without_a_body_has_no_body_headers(
    uvicorns: Uvicorn, status: int, streamed: bool, body: bytes
) -> None:
    """RFC 9110 sections 8.6, 15.3.5 and 15.4.5: such a response ends with its head."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(b"content-length", str(len(body)).encode()), (b"etag", b'"1"')]
        await send({"type": "websocket.http.response.start", "status": status, "headers": fields})
        await send({"type": "websocket.http.response.body", "body": body, "more_body": streamed})
        if streamed:
            await send({"type": "websocket.http.response.body"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body, answer["etag"]) == (status, b"", '"1"')
    assert answer.all("content-length") == answer.all("transfer-encoding") == []
    assert run.outcome() is None


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_application_cannot_set_the_framing_of_a_denial(uvicorns: Uvicorn, streamed: bool) -> None:
    """The body is not chunked, and the stream ends with it (RFC 9112 section 6.3), whatever the header fields say."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(b"Transfer-Encoding", b"chunked"), (b"Connection", b"keep-alive")]
        await send({"type": "websocket.http.response.start", "status": 403, "headers": fields})
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": streamed})
        if streamed:
            await send({"type": "websocket.http.response.body", "body": b"you"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body) == (403, b"not you" if streamed else b"not ")
    assert answer.all("transfer-encoding") == []
    assert answer["connection"] == "close"
    assert run.outcome() is None


def test_starlettes_denial_may_have_no_body(uvicorns: Uvicorn) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.send_denial_response(Response(status_code=204))

    run = uvicorns.run(Starlette(routes=[WebSocketRoute("/", endpoint)]))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        answer = peer.refusal()
    assert (answer.status, answer.body, answer.all("content-length")) == (204, b"", [])
    assert run.outcome() is None
