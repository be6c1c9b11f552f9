"""The choice of upstream, the clients that are let in, and the application's own authentication in front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort, request
from flask.typing import ResponseReturnValue
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute

from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer, close, head
from tests.support.programs import free_port
from tests.support.proxy_fronts import (
    Front,
    Serve,
    WSGIFront,
    ask,
    conversed,
    refusing,
    target_of,
)
from tests.support.scripted import Visit, echoing
from tests.support.threaded_servers import errors_in
from tests.support.waiting import eventually
from watershed_mw import HandshakeError, WatershedASGI, WatershedWSGI
from watershed_mw.proxy import ProxyRequest, Upstream, WebSocketProxy

# --- the upstream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_the_application_chooses_the_upstream(some: Front, serve: Serve, kind: str) -> None:
    upstream, asked = serve(echoing), []

    def choose(one: ProxyRequest) -> Upstream | str | None:
        asked.append(one)
        if "refuse" in one.query:
            raise HandshakeError("not for you", status=403, headers=[("X-Why", "no")])
        if one.headers.get("cookie") != "session=1":
            return None
        return Upstream(upstream.url()) if one.path.endswith("b") else upstream.url()

    async def choose_later(one: ProxyRequest) -> Upstream | str | None:
        return choose(one)

    proxy = WebSocketProxy(choose if kind == "plain" else choose_later)
    some.serve(some.mounted(proxy, "/m"))
    for path in ("/m/a", "/m/b"):
        conversed(some, upstream, path, Cookie="session=1")
        assert target_of(upstream) == path.removeprefix("/m")
    assert ask(some, path="/m/a").status == 404
    refused = ask(some, path="/m/a?refuse=1")
    assert refused.status == 403
    assert refused.body == b"not for you\n"
    assert refused["x-why"] == "no"
    assert upstream.visits == 2
    one = asked[0]
    assert (one.path, one.prefix, one.query, one.secure, one.client) == ("/m/a", "/m", "", False, "127.0.0.1")
    assert one.upgrade.target == "/m/a"
    assert (one.scope is not None) is some.asgi is (one.environ is None)


def test_a_choice_that_fails_is_a_500(some: Front, caplog: pytest.LogCaptureFixture) -> None:
    def choose(_: ProxyRequest) -> str:
        raise KeyError("tenant")

    some.serve(WebSocketProxy(choose))
    with Peer(some.port) as peer:
        peer.send(head())
        assert peer.answer().status == 500
    eventually(lambda: "tenant" in caplog.text, "a traceback in the server's log")
    if isinstance(some, WSGIFront):
        some.werkzeug.log.clear()


@pytest.mark.parametrize("url", [f"ws://{'a' * 70}.example", "ws://a..b/"])
def test_a_choice_that_is_not_a_host_is_a_502(some: Front, url: str, caplog: pytest.LogCaptureFixture) -> None:
    some.serve(WebSocketProxy(lambda _: url))
    assert ask(some).status == 502
    assert errors_in(caplog.records) == []


@pytest.mark.parametrize(
    "upstream",
    ["127.0.0.1:80", "ftp://127.0.0.1", "unix:relative", "ws://", "ws://127.0.0.1/#a", "ws://me:secret@127.0.0.1", ""],
)
def test_invalid_upstreams_are_refused(upstream: str) -> None:
    for make in (WebSocketProxy, Upstream):
        with pytest.raises(ValueError, match=r"^expected") as caught:
            make(upstream)
        assert "secret" not in str(caught.value)


def test_invalid_options_are_refused() -> None:
    for name in ("open_timeout", "close_timeout", "idle_timeout", "max_duration", "max_bytes"):
        for value in (0, -1, "1", True):
            with pytest.raises(ValueError, match=f"^expected {name} above 0"):
                WebSocketProxy("ws://127.0.0.1", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^expected mode to be one of auto, raw, messages"):
        WebSocketProxy("ws://127.0.0.1", mode="bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^expected upstream as a URL"):
        WebSocketProxy(80)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^expected ssl to be"):
        WebSocketProxy("ws://127.0.0.1", ssl=True)  # type: ignore[arg-type]


# --- the client ----------------------------------------------------------------------------------------------


def test_a_page_request_is_a_426(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url()))
    assert ask(front, data=b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status == 426
    assert upstream.visits == 0


def test_one_connection_too_many_is_a_503(front: Front, serve: Serve) -> None:
    upstream = serve(echoing)
    front.serve(WebSocketProxy(upstream.url(), max_connections=1))
    with Peer(front.port) as peer:
        peer.open()
        refused = ask(front)
        assert refused.status == 503
        assert refused["retry-after"] == "1"
        peer.send(close())
        assert peer.close() == (1000, "")
    assert upstream.visits == 1

    def admitted() -> bool:
        with Peer(front.port) as another:
            another.send(head())
            return another.answer().status == 101

    eventually(admitted, "a place that has been given back")
    front.serve(WebSocketProxy(f"ws://127.0.0.1:{free_port()}", max_connections=1))
    assert [ask(front).status for _ in range(3)] == [502] * 3


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec-WebSocket-Version": "777"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
    ],
)
def test_invalid_requests_never_reach_the_upstream(
    some: Front, serve: Serve, changes: dict[str, str], status: int
) -> None:
    upstream = serve(echoing)
    some.serve(WebSocketProxy(upstream.url(), origins=["https://friend.example"]))
    with Peer(some.port) as peer:
        peer.send(head(**changes) + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status in (status, 400)
    assert upstream.visits == 0
    conversed(some, upstream, Origin="https://friend.example")


@pytest.mark.advisory("upgrade smuggling")
@pytest.mark.parametrize("field", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
def test_a_request_with_a_body_is_not_forwarded(raw: Front, serve: Serve, field: dict[str, str]) -> None:
    upstream = serve(echoing)
    raw.serve(WebSocketProxy(upstream.url()))
    with Peer(raw.port) as peer:
        peer.send(head(**field) + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status == 400
    assert upstream.visits == 0


@pytest.mark.advisory("upgrade smuggling")
def test_after_a_refusal_no_client_data_reaches_the_upstream(some: Front, serve: Serve) -> None:
    behind: list[bytes] = []

    def script(visit: Visit) -> None:
        visit.answer("426 Upgrade Required", ("Connection", "keep-alive"))
        behind.append(visit.sock.recv(2**16))

    some.serve(WebSocketProxy(serve(script).url()))
    with Peer(some.port) as peer:
        peer.send(head() + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.answer().status == 426
    eventually(lambda: behind == [b""], "an end of the upstream's stream")


# --- behind the application's own authentication -------------------------------------------------------------


class _Backend:
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        if conn.headers.get("authorization") != "Bearer right":
            return None
        return AuthCredentials(["authenticated"]), SimpleUser("ann")


@pytest.mark.parametrize("around", ["nothing", "our middleware"])
@pytest.mark.parametrize("name", ["raw-h11", "uvicorn-own", "hypercorn"])
def test_the_proxy_runs_behind_starlettes_authentication(
    start: Callable[[str], Front], serve: Serve, name: str, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    front, upstream = start(name), serve(echoing)
    proxy = WebSocketProxy(
        lambda asked: Upstream(upstream.url(), {"X-User": asked.scope["user"].username if asked.scope else ""})
    )

    class Guarded:
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self._all = (scope, receive, send)

        def __await__(self) -> Any:
            return self._serve().__await__()

        async def _serve(self) -> None:
            scope, receive, send = self._all
            if not scope["user"].is_authenticated:
                await send({"type": "websocket.close", "code": 1008})
                return
            await proxy(scope, receive, send)

    app: Any = Starlette(
        routes=[WebSocketRoute("/{rest:path}", Guarded)],
        middleware=[Middleware(AuthenticationMiddleware, backend=_Backend())],  # type: ignore[arg-type]
    )
    if around == "our middleware":
        app = WatershedASGI(app, origins=["https://friend.example"])
    front.serve(app)
    assert ask(front, path="/x").status == 403
    assert upstream.visits == 0
    changes = {"Origin": "https://friend.example"} if around == "our middleware" else {}
    got = conversed(front, upstream, "/x", Authorization="Bearer right", **changes)
    assert got["x-user"] == "ann"
    assert ask(front, path="/x", Authorization="Bearer right", Origin="http://other.example").status == 403
    # uvicorn's own class logs this for every refusal by a response
    expected = "ASGI callable returned without completing handshake."
    assert [line for line in errors_in(caplog.records) if line != expected] == []


@pytest.mark.parametrize("around", ["nothing", "our middleware"])
def test_the_proxy_runs_inside_a_flask_view(
    start: Callable[[str], Front], serve: Serve, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    front, upstream = start("wsgi"), serve(echoing)
    refusing_one = serve(refusing("401 Unauthorized", ("X-Why", "no"), body=b"upstream's word"))
    proxy, refused = WebSocketProxy(upstream.url(), strip_prefix="/tool"), WebSocketProxy(refusing_one.url())
    app = Flask(__name__)

    @app.route("/tool/<path:rest>", websocket=True)
    def tool(rest: str) -> ResponseReturnValue:
        if request.headers.get("authorization") != "Bearer right":
            abort(401)
        return proxy if rest != "refused" else refused

    if around == "our middleware":
        app.wsgi_app = WatershedWSGI(app.wsgi_app)  # type: ignore[method-assign]
    front.serve(app)
    assert ask(front, path="/tool/x").status == 401
    conversed(front, upstream, "/tool/x", Authorization="Bearer right")
    assert target_of(upstream) == "/x"
    answer = ask(front, path="/tool/refused", Authorization="Bearer right")
    assert (answer.status, answer["x-why"], answer.body) == (401, "no", b"upstream's word")
    foreign = ask(front, path="/tool/x", Authorization="Bearer right", Origin="http://other.example")
    assert foreign.status == 403
    assert errors_in(caplog.records) == []
    assert isinstance(front, WSGIFront)
    assert front.werkzeug.troubles == []
