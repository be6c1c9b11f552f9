"""A refusal is one WARNING in the log, with the client, the path and the reason, in every integration.

An application's response is checked before a byte of it is written: no header can break out of its line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import pytest
from flask import Flask
from starlette.applications import Starlette

from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer, head
from tests.support.threaded_servers import Uvicorn, Werkzeug
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import WatershedASGI, WatershedWSGI
from watershed_mw.flask import Shed
from watershed_mw.proxy import WebSocketProxy
from watershed_mw.starlette import WatershedRoute

SECRET = "token=secret"
Front: TypeAlias = Callable[..., AbstractContextManager[Any]]


async def holding(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, and stay until the client leaves."""
    await (await scope["watershed"].accept()).run()


def holding_environ(environ: dict[str, Any], start_response: Any) -> Any:
    environ["watershed"].accept().run()
    return ()


async def handler(connection: Any) -> None:
    await connection.run()


def _flask(**options: Any) -> Werkzeug:
    app = Flask(__name__)
    Shed(app, **options).route("/chat")(lambda connection: connection.run())
    return Werkzeug(app)


def _route(**options: Any) -> Uvicorn:
    return Uvicorn(Starlette(routes=[WatershedRoute("/chat", handler, **options)]))


NOWHERE = "ws://127.0.0.1:9"
DOORS: dict[str, Front] = {
    "WatershedASGI": lambda **options: Uvicorn(WatershedASGI(holding, **options)),
    "WatershedASGI on another class": lambda **options: Uvicorn(
        WatershedASGI(holding, **options), ws="websockets-sansio"
    ),
    "WatershedRoute": _route,
    "WatershedWSGI": lambda **options: Werkzeug(WatershedWSGI(holding_environ, **options)),
    "Shed": _flask,
    "proxy under ASGI": lambda **options: Uvicorn(WebSocketProxy(NOWHERE, **options)),
    "proxy under WSGI": lambda **options: Werkzeug(WebSocketProxy(NOWHERE, **options)),
}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Front:
    return DOORS[request.param]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    # Errors are ignored: uvicorn's own class mistakes its denial for an application that has not answered.
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    eventually(lambda: warnings_in(caplog), "a line in the log")
    [line] = warnings_in(caplog)
    assert SECRET not in line
    assert "/chat" in line
    return line


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"Origin": "http://evil.example"}, "got 'http://evil.example'"),
        ({"Host": "a@evil"}, "expected a Host header"),
        ({"Sec_WebSocket_Protocol": "a, a"}, "repeated subprotocol"),
    ],
    ids=["origin", "host", "subprotocols"],
)
def test_a_refusal_is_logged_once_with_its_reason(
    door: Front, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], reason: str
) -> None:
    with door() as server:
        with Peer(server.port) as peer:
            peer.send(head(f"/chat?{SECRET}", **fields))
            assert peer.refusal().status in (400, 403)
        line = one_warning(caplog)
    assert reason in line


def test_no_common_subprotocol_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("WatershedASGI", "WatershedASGI on another class", "WatershedRoute", "WatershedWSGI", "Shed"):
        caplog.clear()
        with DOORS[name](protocols=["b"]) as server:
            with Peer(server.port) as peer:
                peer.send(head("/chat", Sec_WebSocket_Protocol="a"))
                assert peer.refusal().status == 400
            assert "no subprotocol in common: the client offers 'a'" in one_warning(caplog)


def test_max_connections_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("WatershedASGI", "WatershedASGI on another class", "WatershedRoute", "WatershedWSGI", "Shed"):
        caplog.clear()
        with DOORS[name](max_connections=1) as server:
            with Peer(server.port) as first, Peer(server.port) as second:
                first.open("/chat")
                second.send(head("/chat"))
                assert second.refusal().status == 503
            assert "expected at most 1 connections at once" in one_warning(caplog)


@pytest.mark.parametrize("name", ["proxy under ASGI", "proxy under WSGI"])
def test_an_unreachable_upstream_is_logged_once(caplog: pytest.LogCaptureFixture, name: str) -> None:
    with DOORS[name]() as server:
        with Peer(server.port) as peer:
            peer.send(head(f"/chat?{SECRET}"))
            assert peer.refusal().status == 502
        assert "not proxied: the upstream cannot be reached" in one_warning(caplog)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"first": "GET {} HTTP/1.0"}, "expected HTTP/1.1 or later"),
        ({"Sec_WebSocket_Version": "8"}, "expected Sec-WebSocket-Version: 13"),
        ({"first": "POST {} HTTP/1.1"}, "expected method GET"),
    ],
)
def test_watershed_protocol_logs_client_and_target(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], reason: str
) -> None:
    with Peer(uvicorns.port) as peer:
        peer.send(head(f"/chat?{SECRET}", **fields))
        peer.refusal()
        port = peer.sock.getsockname()[1]
    line = one_warning(caplog)
    assert line.startswith(f'127.0.0.1:{port} - "WebSocket /chat?token=***" refused with 4')
    assert reason in line


def test_a_shutdown_before_the_answer_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asked.put(None)
        await receive()

    with Uvicorn(app) as server, Peer(server.port) as peer:
        peer.send(head("/chat"))
        asked.get()
        server.begin_stop()
        assert peer.refusal().status == 503
        server.wait_stopped()
    assert "refused with 503: the server is shutting down" in one_warning(caplog)


def test_limit_concurrency_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with Uvicorn(WatershedASGI(holding), limit_concurrency=2) as server:
        with Peer(server.port) as first:
            first.open("/chat")
            with Peer(server.port) as second:
                second.send(head("/chat"))
                assert second.refusal().status == 503
        assert "--limit-concurrency" in one_warning(caplog)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_only_get_is_allowed_and_head_gets_no_body(uvicorns: Uvicorn, method: str) -> None:
    """RFC 9110 section 9.3.2: "The server MUST NOT send content in the response" to HEAD."""
    with Peer(uvicorns.port) as peer:
        peer.send(head("/chat", first=method + " {} HTTP/1.1"))
        fields, _, body = peer.rest().partition(b"\r\n\r\n")
    assert fields.startswith(b"HTTP/1.1 405")
    assert (b"expected method GET" in body) is (method == "POST")


# --- header fields of applications ------------------------------------------------------------------------------

EVIL = {
    "CR LF": ("x-name", "a\r\nSet-Cookie: evil=1"),
    "LF": ("x-name", "a\nSet-Cookie: evil=1"),
    "CR": ("x-name", "a\rSet-Cookie: evil=1"),
    "NUL": ("x-name", "a\0b"),
    "VT": ("x-name", "a\x0bb"),
    "body": ("x-name", "a\r\n\r\n<script>"),
    "not Latin-1": ("x-name", "a\u2028b"),
    "a name": ("x-na\r\nSet-Cookie", "evil=1"),
    "a name with a space": ("x name", "1"),
    "an empty name": ("", "1"),
}


class Answering:
    """An application that responds with one header field, and reports the result."""

    def __init__(self, way: str, field: tuple[str, str]) -> None:
        self.errors = Inbox[Exception]()
        self._way = way
        self._field = field

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = scope["watershed"]
        try:
            if self._way == "accept":
                await upgrade.accept(headers=[self._field])
            else:
                await upgrade.reject(403, b"no", headers=[self._field])
        except Exception as error:  # noqa: BLE001  # checked by the test
            self.errors.put(error)
            await upgrade.reject(418)  # nothing has been answered yet

    def wsgi(self, environ: dict[str, Any], start_response: Any) -> Any:
        upgrade = environ["watershed"]
        try:
            if self._way == "accept":
                upgrade.accept(headers=[self._field])
                return ()
            return upgrade.reject(403, b"no", headers=[self._field])(environ, start_response)
        except Exception as error:  # noqa: BLE001  # checked by the test
            self.errors.put(error)
            return upgrade.reject(418)(environ, start_response)


@pytest.fixture(scope="module")
def sansio() -> Iterator[Uvicorn]:
    with Uvicorn(ws="websockets-sansio") as server:
        yield server


@pytest.mark.parametrize("field", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("way", ["accept", "reject"])
@pytest.mark.parametrize("where", ["uvicorn class", "another class", "werkzeug"])
def test_an_invalid_header_is_a_clear_error(
    uvicorns: Uvicorn, sansio: Uvicorn, where: str, way: str, field: tuple[str, str]
) -> None:
    app = Answering(way, field)
    if where == "werkzeug":
        with Werkzeug(WatershedWSGI(app.wsgi)) as server:
            answer = answer_of(server.port)
    else:
        asgi = uvicorns if where == "uvicorn class" else sansio
        asgi.run(WatershedASGI(app.asgi))
        answer = answer_of(asgi.port)
    assert answer.startswith(b"HTTP/1.1 418")
    assert b"evil" not in answer
    assert b"script" not in answer
    error = app.errors.get()
    assert isinstance(error, ValueError)
    assert named(field) in str(error), "the error names the field"


def named(field: tuple[str, str]) -> str:
    return field[0] if field[0] == "x-name" else ascii(field[0].lower())


def answer_of(port: int) -> bytes:
    with Peer(port) as peer:
        peer.send(head("/chat", Connection="Upgrade, close"))
        return peer.rest()


@pytest.mark.parametrize("field", [field for name, field in EVIL.items() if name != "not Latin-1"])
@pytest.mark.parametrize("message", ["websocket.accept", "websocket.http.response.start"])
def test_an_invalid_header_in_an_asgi_message_is_a_clear_error(
    uvicorns: Uvicorn, message: str, field: tuple[str, str]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        fields = [(field[0].encode(), field[1].encode())]
        await send({"type": message, "status": 403, "headers": fields})

    run = uvicorns.run(app)
    with Peer(uvicorns.port) as peer:
        peer.send(head("/chat"))
        answer = peer.refusal()
    assert (answer.status, answer.all("set-cookie")) == (500, [])
    error = run.outcome()
    assert isinstance(error, ValueError)
    assert named(field) in str(error)


@pytest.mark.parametrize("status", [101, 99, 600, "403 no\r\nSet-Cookie: evil=1", None])
def test_an_invalid_status_is_a_clear_error(uvicorns: Uvicorn, status: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ValueError, match="expected an HTTP status from 200 to 599"):
            await scope["watershed"].reject(status)
        await scope["watershed"].reject(418)

    run = uvicorns.run(WatershedASGI(app))
    with Peer(uvicorns.port) as peer:
        peer.send(head("/chat"))
        assert peer.refusal().status == 418
    assert run.outcome() is None

    def winner(environ: dict[str, Any], start_response: Any) -> Any:
        with pytest.raises(ValueError, match="expected an HTTP status from 200 to 599"):
            environ["watershed"].reject(status)
        return environ["watershed"].reject(418)(environ, start_response)

    with Werkzeug(WatershedWSGI(winner)) as server:
        assert answer_of(server.port).startswith(b"HTTP/1.1 418")


@pytest.mark.parametrize("where", ["uvicorn class", "another class"])
def test_a_streamed_rejection_with_an_invalid_start_is_a_500(uvicorns: Uvicorn, sansio: Uvicorn, where: str) -> None:
    async def body() -> Any:
        raise LookupError("a secret")
        yield b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["watershed"].reject(403, body(), [("x-app", "yes")])

    server = uvicorns if where == "uvicorn class" else sansio
    run = server.run(WatershedASGI(app))
    with Peer(server.port) as peer:
        peer.send(head("/chat"))
        answer = peer.refusal()
    assert (answer.status, answer["x-app"]) == (500, "")
    assert isinstance(run.outcome(), LookupError)
