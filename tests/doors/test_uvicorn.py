"""The uvicorn class under plain applications: the ASGI WebSocket messages.

The fixtures of conftest.py run every test on asyncio and uvloop, with h11 and httptools.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send, accept, echo
from tests.support.peers import ACCEPT, Peer, binary, close, dial, head, ping, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate, Inbox, eventually

MIB = 2**20


# --- the opening handshake -------------------------------------------------------------------------------


def test_an_accepted_connection_echoes(every_uvicorn: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    run = every_uvicorn.run(echo)
    with dial(every_uvicorn.port) as client:
        for message in ("Hello", "", "Grüße 🌊", b"\x00\xff", b"", "x" * 70000, b"y" * 126):
            client.send(message)
            assert client.recv(LIMIT) == message
        client.close(3001, "enough")
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_the_accept_answers_the_key_and_carries_subprotocol_and_headers(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-room", b"blue")]
        await accept(receive, send, subprotocol="chat.v2", headers=cookies)

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        answer = peer.open(Sec_WebSocket_Protocol="chat.v1, chat.v2")
        assert answer["sec-websocket-accept"] == ACCEPT
        assert answer["sec-websocket-protocol"] == "chat.v2"
        assert answer.all("set-cookie") == ["a=1", "b=2"]
        assert answer["x-room"] == "blue"
        assert (answer["upgrade"].lower(), answer["connection"].lower()) == ("websocket", "upgrade")
        assert answer.all("content-length") == answer.all("transfer-encoding") == []


def test_the_scope_is_as_the_specification_says(uvicorns: Uvicorn) -> None:
    scopes = Inbox[Scope]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.put(scope)
        await accept(receive, send)

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open("/caf%C3%A9/x%2Fy?room=%20blue&n=1", Sec_WebSocket_Protocol=["a, b", "c"], X_Mixed="CaSe")
        scope = scopes.get()
        local, remote = peer.sock.getsockname(), peer.sock.getpeername()
    assert scope["type"] == "websocket"
    assert scope["scheme"] == "ws"
    assert scope["http_version"] == "1.1"
    assert scope["path"] == "/café/x/y"
    assert scope["raw_path"] == b"/caf%C3%A9/x%2Fy"
    assert scope["query_string"] == b"room=%20blue&n=1"
    assert scope["root_path"] == ""
    assert scope["subprotocols"] == ["a", "b", "c"]
    assert (tuple(scope["client"]), tuple(scope["server"])) == (local, remote)
    assert (b"x-mixed", b"CaSe") in scope["headers"]
    assert all(name == name.lower() for name, _ in scope["headers"])
    assert scope["state"] == {}
    assert "websocket.http.response" in scope["extensions"]
    assert tuple(map(int, scope["asgi"]["spec_version"].split("."))) >= (2, 4)


def test_an_upgrade_may_follow_other_requests_on_a_kept_alive_connection(every_uvicorn: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = echo if scope["type"] == "websocket" else PlainTextResponse("plain")
        await answer(scope, receive, send)

    every_uvicorn.run(app)
    with Peer(every_uvicorn.port) as peer:
        for _ in range(2):
            peer.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert peer.answer().body == b"plain"
        peer.open()
        peer.send(text("still here"))
        assert peer.text() == "still here"


def test_the_connection_header_may_have_more_tokens_in_any_case(uvicorns: Uvicorn) -> None:
    uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.open(Connection="keep-alive, uPGRADE", Upgrade="WebSocket")


@pytest.mark.parametrize(
    "status, changes",
    [
        pytest.param(400, {"Sec_WebSocket_Key": None}, id="no key"),
        pytest.param(400, {"Sec_WebSocket_Key": "dG9vIHNob3J0"}, id="short key"),
        pytest.param(400, {"Sec_WebSocket_Key": "!" * 24}, id="key that is no base64"),
        pytest.param(400, {"Sec_WebSocket_Key": ["dGhlIHNhbXBsZSBub25jZQ=="] * 2}, id="two keys"),
        pytest.param(426, {"Sec_WebSocket_Version": None}, id="no version"),
        pytest.param(426, {"Sec_WebSocket_Version": "8"}, id="version 8"),
        pytest.param(405, {"first": "POST {} HTTP/1.1", "Content_Length": "0"}, id="POST"),
        pytest.param(400, {"Content_Length": "5"}, id="body"),
        pytest.param(400, {"Transfer_Encoding": "chunked"}, id="chunked body"),
        pytest.param(400, {"Host": None}, id="no host"),
        pytest.param(400, {"Host": ["here", "there"]}, id="two hosts"),
        pytest.param(400, {"Sec_WebSocket_Protocol": "a, b c"}, id="subprotocol that is no token"),
        pytest.param(400, {"Sec_WebSocket_Protocol": "a, a"}, id="subprotocol twice"),
        pytest.param(400, {"Sec_WebSocket_Extensions": "permessage-deflate; =1"}, id="malformed extension"),
    ],
)
def test_a_bad_handshake_never_reaches_the_application(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, status: int, changes: dict[str, Any]
) -> None:
    run = uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.send(head(**changes))
        answer = peer.refusal()
    assert answer.status == status
    assert answer.body
    if status == 426:
        assert answer["sec-websocket-version"] == "13"
    if status == 405:
        assert answer["allow"] == "GET"
    assert run.empty
    assert errors_in(caplog.records) == []


@pytest.mark.advisory("CVE-2024-37890")
def test_many_headers_are_accepted(every_uvicorn: Uvicorn) -> None:
    every_uvicorn.run(echo)
    with Peer(every_uvicorn.port) as peer:
        fields: dict[str, Any] = {f"X_{number}": "v" for number in range(2000)}
        peer.open(**fields)


def test_a_head_above_the_limit_is_refused(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    run = uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        try:
            peer.send(head(Cookie="c" * 90000))
            assert peer.answer().status in (400, 431)
        except ConnectionError:
            # With h11 uvicorn refuses before it has read everything, and the unread bytes reset the stream.
            assert uvicorns.server.config.http == "h11"
    assert run.empty
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\x81\x85" + bytes(40),
        b"\r\n\r\n" * 9 + b"\0",
    ],
    ids=["TLS", "frames", "lines"],
)
def test_garbage_requests_are_refused(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, garbage: bytes) -> None:
    run = uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.send(garbage + b"\r\n\r\n")
        assert peer.answer().status == 400
    assert run.empty
    assert errors_in(caplog.records) == []


def test_no_client_can_add_a_log_line(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.send(head("/%0d%0afake%1b[31m", Sec_WebSocket_Version="\x7f\x85\xa0evil"))
        assert peer.answer().status in (400, 426)
    with Peer(uvicorns.port) as peer:
        peer.open("/%0d%0afake%1b[31m")
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


# --- messages --------------------------------------------------------------------------------------------


def test_one_mebibyte_is_echoed_in_one_message(uvicorns: Uvicorn) -> None:
    uvicorns.run(echo)
    with dial(uvicorns.port) as client:
        for message in ("ä" * (MIB // 2), bytes(range(256)) * 4096):
            client.send(message)
            assert client.recv(LIMIT) == message


def test_messages_keep_their_order_and_types(uvicorns: Uvicorn) -> None:
    uvicorns.run(echo)
    messages = [str(number) if number % 3 else b"%d" % number for number in range(500)]
    with dial(uvicorns.port) as client:
        sender = threading.Thread(target=lambda: deque(map(client.send, messages), maxlen=0))
        sender.start()
        assert [client.recv(LIMIT) for _ in messages] == messages
        sender.join(LIMIT)


def test_frames_in_the_segment_of_the_head_are_not_lost(every_uvicorn: Uvicorn) -> None:
    """RFC 6455 section 4.1 tells clients to wait for the response; a client that does not is served anyway."""
    run = every_uvicorn.run(echo)
    early = text("early") + binary(b"bird") + b"\x81"  # the last frame continues after the 101
    with Peer(every_uvicorn.port) as peer:
        peer.open_with(head() + early)
        assert peer.text() == "early"
        assert bytes(peer.frame().data) == b"bird"
        peer.send(text("late")[1:])
        assert peer.text() == "late"
        peer.send(close())
        assert peer.close()[0] == 1000
    assert run.outcome() is None


def test_frames_between_the_head_and_the_accept_are_not_lost(every_uvicorn: Uvicorn) -> None:
    started, gate = Gate[None](), Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.put(None)
        await gate.wait()
        await echo(scope, receive, send)

    every_uvicorn.run(app)
    # More than the class buffers: the rest has to wait in the kernel.
    messages = [f"{number} " + "x" * 1000 for number in range(200)]
    with Peer(every_uvicorn.port) as peer:
        peer.send(head())
        started.get()
        for number, message in enumerate(messages):
            peer.send(text(message))
            if number == 150:
                gate.put(None)
        assert peer.answer().status == 101
        assert [peer.text() for _ in messages] == messages


def test_receive_may_wait_before_another_task_accepts(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send({"type": "websocket.accept"})
        event = await asyncio.wait_for(waiting, LIMIT)
        await send({"type": "websocket.send", "text": event["text"]})

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(text("hello"))
        assert peer.text() == "hello"


def test_pings_are_answered_while_the_application_is_busy(uvicorns: Uvicorn) -> None:
    gate = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await gate.wait()

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(ping(b"are you there?"))
        frame = peer.frame()
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"are you there?")
        gate.put(None)


def test_fragments_arrive_as_one_message(uvicorns: Uvicorn) -> None:
    uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.open()
        frames = [
            Frame(Opcode.TEXT, b"Hel", fin=False),
            Frame(Opcode.PING, b"between"),
            Frame(Opcode.CONT, b"lo"),
        ]
        for one in frames:
            for byte in one.serialize(mask=True):
                peer.send(bytes([byte]))
        assert bytes(peer.frame().data) == b"between"
        assert peer.text() == "Hello"


def test_send_requires_text_or_bytes(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": None, "bytes": b"bytes"})
        await send({"type": "websocket.send", "text": "text", "bytes": None})
        await send({"type": "websocket.send"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert bytes(peer.frame().data) == b"bytes"
        assert peer.text() == "text"
        assert peer.close()[0] == 1011
    assert isinstance(run.outcome(), RuntimeError)


@pytest.mark.parametrize(
    "kind", ["websocket.accept", "websocket.http.response.start", "http.response.start", "nonsense"]
)
def test_messages_invalid_on_an_open_connection_are_refused(uvicorns: Uvicorn, kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": kind, "status": 200, "headers": []})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close()[0] == 1011
    error = run.outcome()
    assert isinstance(error, RuntimeError)
    assert kind in str(error)
    assert "websocket.send" in str(error)


# --- the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent, expected",
    [
        (close(1000), (1000, "")),
        (close(1001, "going away"), (1001, "going away")),
        (close(4999, "größer"), (4999, "größer")),
        (Frame(Opcode.CLOSE, b"").serialize(mask=True), (1005, "")),
    ],
    ids=["1000", "1001", "4999", "no code"],
)
def test_disconnect_carries_the_clients_code_and_reason(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, sent: bytes, expected: tuple[int, str]
) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        events.put(await receive())

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.send(sent)
        code, reason = expected
        assert peer.close() == (None if code == 1005 else code, reason)
        peer.end()
    assert events.get() == {"type": "websocket.disconnect", "code": code, "reason": reason}
    assert run.outcome() is None
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize(
    "rude, code",
    [
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
        (b"\x81\x05Hello", 1002),
        (text("ok")[:1] + b"\xff" + (2**62).to_bytes(8, "big") + b"\0\0\0\0", 1009),
        (Frame(Opcode.TEXT, b"\xff\xff").serialize(mask=True), 1007),
        (b"\x88\x82\0\0\0\0\x03\xed", 1002),
    ],
    ids=["HTTP", "unmasked", "2^62 bytes", "no UTF-8", "close 1005"],
)
def test_a_violation_ends_only_its_connection(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, rude: bytes, code: int
) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
        events.put(event)

    uvicorns.run(app)
    with Peer(uvicorns.port) as polite, Peer(uvicorns.port) as peer:
        polite.open()
        peer.open()
        peer.send(text("before") + rude)
        assert peer.text() == "before"
        assert peer.close()[0] == code
        assert events.get()["code"] == code
        polite.send(text("unharmed"))
        assert polite.text() == "unharmed"
    assert errors_in(caplog.records) == []


def test_a_client_that_vanishes_is_a_disconnect_with_1006(uvicorns: Uvicorn) -> None:
    events = Inbox[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        events.put(await receive())

    uvicorns.run(app)
    for leave in (Peer.vanish, lambda peer: peer.sock.close()):
        with Peer(uvicorns.port) as peer:
            peer.open()
            leave(peer)
        assert events.get() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


@pytest.mark.parametrize(
    "message, expected",
    [
        ({"code": 4001, "reason": "bye"}, (4001, "bye")),
        ({"code": 1000, "reason": None}, (1000, "")),
        ({"reason": "only a reason"}, (1000, "only a reason")),
        ({}, (1000, "")),
    ],
)
def test_the_client_gets_the_applications_close(
    uvicorns: Uvicorn, message: dict[str, Any], expected: tuple[int, str]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last words"})
        await send({"type": "websocket.close", **message})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "last words"
        assert peer.close() == expected
        peer.send(close(*expected))
        peer.end()
    assert run.outcome() is None


@pytest.mark.need(1)
def test_megabytes_sent_before_the_close_arrive_before_it(uvicorns: Uvicorn) -> None:
    closed = Gate[None]()
    data = b"d" * 100_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(40):
            await send({"type": "websocket.send", "bytes": data})
        await send({"type": "websocket.close", "code": 4000, "reason": "all sent"})
        closed.put(None)

    run = uvicorns.run(app)
    with Peer(uvicorns.port, receive_buffer=4096) as peer:
        peer.open()
        for _ in range(40):
            assert bytes(peer.frame().data) == data
        assert peer.close() == (4000, "all sent")
        closed.get()
        peer.send(close(4000))
        peer.end()
    assert run.outcome() is None


@pytest.mark.need(15)
@pytest.mark.parametrize("ended_by", ["application", "client", "RST"])
def test_send_after_the_end_raises_an_os_error(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, ended_by: str
) -> None:
    errors = Inbox[BaseException | None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if ended_by == "application":
            await send({"type": "websocket.close", "code": 4000})
        else:
            assert (await receive())["type"] == "websocket.disconnect"
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            errors.put(error)
        else:
            errors.put(None)
        # An application that does not catch it is not logged as an error either.
        await send({"type": "websocket.send", "text": "too late"})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        if ended_by == "client":
            peer.send(close())
        elif ended_by == "RST":
            peer.vanish()
        else:
            assert peer.close() == (4000, "")
        assert isinstance(errors.get(), OSError)
        assert isinstance(run.outcome(), OSError)
    assert errors_in(caplog.records) == []


@pytest.mark.need(14)
def test_an_application_that_only_sends_stops_when_the_client_leaves(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0)

    run = uvicorns.run(app)
    for leave in (Peer.vanish, lambda peer: peer.sock.close(), lambda peer: peer.send(close())):
        with Peer(uvicorns.port) as peer:
            peer.open()
            assert peer.text() == "tick"
            leave(peer)
            assert isinstance(run.outcome(), OSError)


def test_returning_after_the_accept_closes_with_1000(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "hi"})

    uvicorns.run(app)
    with dial(uvicorns.port) as client:
        assert client.recv(LIMIT) == "hi"
        with pytest.raises(ConnectionClosed):
            client.recv(LIMIT)
        assert (client.close_code, client.close_reason) == (1000, "")


def test_an_exception_after_the_accept_closes_with_1011_without_details(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "hi"})
        raise LookupError("a secret")

    run = uvicorns.run(app)
    with dial(uvicorns.port) as client:
        assert client.recv(LIMIT) == "hi"
        with pytest.raises(ConnectionClosed):
            client.recv(LIMIT)
        assert client.close_code == 1011
        assert "secret" not in (client.close_reason or "")
    assert isinstance(run.outcome(), LookupError)
    assert eventually(lambda: errors_in(caplog.records)) == ["Exception in ASGI application\n"]


# --- a client that does not read -------------------------------------------------------------------------


@pytest.mark.need(4)
def test_send_waits_for_a_slow_client_that_blocks_no_other(uvicorns: Uvicorn) -> None:
    stalled, message = Gate[int](), b"m" * 65536

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/flood":
            await echo(scope, receive, send)
            return
        await accept(receive, send)
        sent = 0
        while not stalled.passed:
            sent += 1
            try:
                # Only the wait is cancelled: the message has been queued, and arrives.
                await asyncio.wait_for(send({"type": "websocket.send", "bytes": message}), 0.3)
            except TimeoutError:
                stalled.put(sent)
        await send({"type": "websocket.close", "code": 4000})

    run = uvicorns.run(app)
    with Peer(uvicorns.port, receive_buffer=4096) as slow, dial(uvicorns.port, "/echo") as other:
        slow.open("/flood")
        count = stalled.get()
        assert count * len(message) < 8 * MIB
        other.send("not blocked")
        assert other.recv(LIMIT) == "not blocked"
        for _ in range(count):
            assert bytes(slow.frame().data) == message
        assert slow.close()[0] == 4000
        slow.send(close())
        slow.end()
    assert run.outcome() is None


@pytest.mark.need(5)
def test_reading_pauses_while_the_application_does_not_receive(uvicorns: Uvicorn) -> None:
    gate, counted = Gate[None](), Gate[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await gate.wait()
        count = 0
        while (await receive())["type"] == "websocket.receive":
            count += 1
        counted.put(count)

    uvicorns.run(app)
    message = binary(b"m" * 65536)
    with Peer(uvicorns.port) as peer:
        peer.open()
        peer.sock.settimeout(0.3)
        whole = 0
        rest = b""
        try:
            while whole < 1000:
                rest = message
                while rest:
                    rest = rest[peer.sock.send(rest) :]
                whole += 1
        except TimeoutError:
            pass
        assert whole * len(message) < 16 * MIB, "it never stopped reading"
        peer.sock.settimeout(LIMIT)
        gate.put(None)
        peer.send(rest + close())
        assert peer.close()[0] == 1000
        assert counted.get() == whole + 1


# --- Starlette's own WebSocket ---------------------------------------------------------------------------


def starlette(**endpoints: Any) -> Starlette:
    return Starlette(routes=[WebSocketRoute(f"/{name}", endpoint) for name, endpoint in endpoints.items()])


def test_starlettes_websocket_works(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="json", headers=[(b"x-a", b"1")])
        async for message in websocket.iter_json():
            await websocket.send_json({"got": message})
        await websocket.close()

    async def ends(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect as disconnect:
            ended.put((disconnect.code, disconnect.reason))

    ended = Inbox[tuple[int, str]]()
    uvicorns.run(starlette(talk=talk, ends=ends))
    with dial(uvicorns.port, "/talk", protocols=["xml", "json"]) as client:
        assert client.subprotocol == "json"
        client.send("[1, 2]")
        assert client.recv(LIMIT) == '{"got":[1,2]}'
    with dial(uvicorns.port, "/ends") as client:
        client.close(4004, "so long")
    assert ended.get() == (4004, "so long")
    with pytest.raises(InvalidStatus) as refusal, dial(uvicorns.port, "/nowhere"):
        pass
    assert refusal.value.response.status_code == 403
    assert errors_in(caplog.records) == []


@pytest.mark.need(9)
def test_starlettes_denial_responses_work(uvicorns: Uvicorn) -> None:
    async def whole(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("pay first", 402))

    async def streamed(websocket: WebSocket) -> None:
        await websocket.send_denial_response(StreamingResponse(iter([b"wait", b" a bit"]), 429, {"Retry-After": "5"}))

    uvicorns.run(starlette(whole=whole, streamed=streamed))
    with Peer(uvicorns.port) as peer:
        peer.send(head("/whole"))
        answer = peer.refusal()
        assert (answer.status, answer.body) == (402, b"pay first")
    with Peer(uvicorns.port) as peer:
        peer.send(head("/streamed"))
        answer = peer.refusal()
        assert (answer.status, answer.body, answer["retry-after"]) == (429, b"wait a bit", "5")


def test_plain_http_works_beside_open_connections(uvicorns: Uvicorn) -> None:
    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("page")

    async def stay(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    uvicorns.run(Starlette(routes=[Route("/", page), WebSocketRoute("/stay", stay)]))
    with Peer(uvicorns.port) as peer, Peer(uvicorns.port) as other:
        peer.open("/stay")
        other.send(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert other.answer().body == b"page"
        peer.send(text("done"))
        assert peer.close()[0] == 1000


# --- the log ---------------------------------------------------------------------------------------------
