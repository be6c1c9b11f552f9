"""The values that applications put into their ASGI messages and read from their scope, under the uvicorn class.

uvicorn's own classes accept all of them: an application must not have to change.
"""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Any

import pytest

from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Gate
from watershed_mw import LocalProtocolError, WatershedASGI


@pytest.mark.parametrize("subprotocol", ["", None])
@pytest.mark.parametrize("front", [lambda app: app, WatershedASGI], ids=["plain", "behind WatershedASGI"])
def test_an_empty_subprotocol_means_none(uvicorns: Uvicorn, front: Any, subprotocol: str | None) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send, subprotocol=subprotocol)
        await receive()

    uvicorns.run(front(app))
    with Peer(uvicorns.port) as peer:
        assert peer.open(Sec_WebSocket_Protocol="a").all("sec-websocket-protocol") == []


def test_a_subprotocol_may_be_given_as_a_header_field(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send, headers=[(b"Sec-WebSocket-Protocol", b"b"), (b"x-app", b"yes")])
        await receive()

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        answer = peer.open(Sec_WebSocket_Protocol="a, b")
    assert (answer.all("sec-websocket-protocol"), answer["x-app"]) == (["b"], "yes")


def test_headers_may_be_none(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send, headers=None)
        await receive()

    uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()


class Codes(enum.IntEnum):
    """As applications store their codes."""

    MINE = 4001


@pytest.mark.parametrize(
    "message, told",
    [
        ({}, (1000, "")),
        ({"code": None, "reason": None}, (1000, "")),
        ({"code": 4001}, (4001, "")),
        ({"code": Codes.MINE, "reason": "bye"}, (4001, "bye")),
        ({"reason": "bye"}, (1000, "bye")),
    ],
)
def test_close_code_and_reason_reach_the_client(
    uvicorns: Uvicorn, message: dict[str, Any], told: tuple[int, str]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", **message})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == told
        peer.send(close(told[0]))
        peer.end()
    assert run.outcome() is None


@pytest.mark.parametrize(
    "reason, cut",
    [("x" * 123, "x" * 123), ("x" * 124, "x" * 123), ("é" * 62, "é" * 61), ("🌊" * 500, "🌊" * 30)],
    ids=["123 bytes", "124 bytes", "two bytes each", "four bytes each"],
)
@pytest.mark.parametrize("front", [lambda app: app, WatershedASGI], ids=["plain", "behind WatershedASGI"])
def test_a_long_close_reason_is_truncated_between_characters(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, front: Any, reason: str, cut: str
) -> None:
    """RFC 6455 section 5.5: a control frame holds 125 bytes, two of which are the code."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 4000, "reason": reason})

    run = uvicorns.run(front(app))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == (4000, cut)
        peer.send(close(4000))
        peer.end()
    assert run.outcome() is None
    told = [record.getMessage() for record in caplog.records if "close reason" in record.getMessage()]
    assert len(told) == (cut != reason)
    assert all(f"of {len(reason.encode())} bytes was cut to the 123" in line for line in told)


def test_the_connection_itself_does_not_truncate_a_reason(uvicorns: Uvicorn) -> None:
    errors = Gate[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept()
        try:
            connection.end("x" * 124, code=4000)
        except LocalProtocolError as error:
            errors.put(str(error))
        await connection.end(code=4001)

    uvicorns.run(WatershedASGI(app))
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.close() == (4001, "")
    assert "at most 123 UTF-8 bytes, got 124: shorten it" in errors.get()


# --- copies of the scope --------------------------------------------------------------------------------------


def test_a_deep_copy_of_a_scope_works(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def copying(scope: Scope, receive: Receive, send: Send) -> None:
        again = copy.deepcopy(scope)
        assert again is not scope
        assert again["headers"] == scope["headers"]
        await echo(again, receive, send)

    for app in (copying, WatershedASGI(copying)):
        run = uvicorns.run(app)
        with Peer(uvicorns.port) as peer:
            peer.open()
            peer.send(text("hi") + close())
            assert peer.text() == "hi"
            assert peer.close()[0] == 1000
        assert run.outcome() is None
    assert errors_in(caplog.records) == []


def test_an_upgrade_can_be_answered_through_a_deep_copy(uvicorns: Uvicorn) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await copy.deepcopy(scope)["watershed"].accept()
        await connection.send("from a copy")
        await connection.end()

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        await WatershedASGI(app)(copy.deepcopy(scope), receive, send)

    uvicorns.run(front)
    with Peer(uvicorns.port) as peer:
        peer.open()
        assert peer.text() == "from a copy"
        assert peer.close()[0] == 1000


@pytest.mark.parametrize("front", [lambda app: app, WatershedASGI], ids=["plain", "behind WatershedASGI"])
def test_a_scope_can_be_pickled(every_uvicorn: Uvicorn, front: Any) -> None:
    """Without the native connection, which is not picklable."""
    pickled = Gate[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pickled.put(pickle.dumps(scope))
        await echo(scope, receive, send)

    every_uvicorn.run(front(app))
    with Peer(every_uvicorn.port) as peer:
        peer.open("/chat?x=1")
        peer.send(close())
        assert peer.close()[0] == 1000
    again = pickle.loads(pickled.get())
    assert (again["path"], again["query_string"]) == ("/chat", b"x=1")
    assert (b"upgrade", b"websocket") in again["headers"]
    assert type(again["headers"]) is list
    assert again["extensions"]["watershed_mw"] is None
    assert again.get("watershed") is None


def test_the_scope_of_a_denied_request_can_be_pickled(uvicorns: Uvicorn) -> None:
    pickled = Gate[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pickled.put(pickle.dumps(scope["watershed"]))
        await scope["watershed"].reject(403)

    uvicorns.run(WatershedASGI(app))
    with Peer(uvicorns.port) as peer:
        peer.send(head())
        assert peer.refusal().status == 403
    assert pickle.loads(pickled.get()) is None
