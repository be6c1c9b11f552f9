"""Request targets, hosts and HTTP versions in every integration (RFC 9112 sections 2.6 and 3.2).

An absolute-form target gives path, query and host; any other target that is not a path is refused. The tests in
servers/ send the same to every server of the matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.asgi import Receive, Scope, Send, accept
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Uvicorn, Werkzeug
from watershed_mw import WatershedASGI, WatershedWSGI
from watershed_mw.errors import HandshakeError
from watershed_mw.http.adapt import as_request
from watershed_mw.http.parse import read_request_head
from watershed_mw.proxy import WebSocketProxy

ABSOLUTE = "GET http://a.example:8080{} HTTP/1.1"
INVALID_HOSTS = ("a evil", "evil/x?y#z", "a@evil", "a:b", "[a]")


async def tell_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, and send what the scope says about the target."""
    await accept(receive, send)
    host = dict(scope["headers"])[b"host"].decode()
    await send(
        {
            "type": "websocket.send",
            "text": f"{scope['path']} {scope['raw_path'].decode()} {scope['query_string'].decode()} {host}",
        }
    )
    await receive()


@pytest.fixture(scope="module", params=["websockets-sansio", "wsproto"])
def others(request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    """A uvicorn with one of its own classes, which handle frames themselves."""
    with Uvicorn(ws=request.param, http="httptools", root_path="/api") as server:
        yield server


TARGETS = (
    ("/chat?x=1", "/chat /chat x=1"),
    ("/a%2Fb%20c", "/a/b c /a%2Fb%20c "),
    ("", "/ / "),
    ("?x=/http://b.example/", "/ / x=/http://b.example/"),
)


@pytest.mark.parametrize("target, told", TARGETS)
def test_an_absolute_form_target_gives_path_and_host(every_uvicorn: Uvicorn, target: str, told: str) -> None:
    """RFC 9112 section 3.2.2: "the origin server MUST ignore the received Host header field"."""
    every_uvicorn.run(tell_scope)
    with Peer(every_uvicorn.port) as peer:
        peer.open_with(head(target, first=ABSOLUTE, Host="ignored.example"))
        assert peer.text() == f"{told} a.example:8080"


@pytest.mark.parametrize("target, told", TARGETS)
def test_an_absolute_form_target_works_over_asgi_messages(others: Uvicorn, target: str, told: str) -> None:
    others.run(WatershedASGI(tell_scope))
    with Peer(others.port) as peer:
        peer.open_with(head(target, first=ABSOLUTE, Host="ignored.example"))
        path, raw, rest = (told + " a.example:8080").replace("/b c", "/b_c").split(" ", 2)
        assert peer.text() == f"/api{path} /api{raw} {rest}".replace("_", " ")


def test_the_origin_is_compared_with_the_host_of_the_target(uvicorns: Uvicorn, others: Uvicorn) -> None:
    for server in (uvicorns, others):
        server.run(WatershedASGI(tell_scope))
        with Peer(server.port) as peer:
            peer.open_with(head("/", first=ABSOLUTE, Host="ignored.example", Origin="http://a.example:8080"))
        with Peer(server.port) as peer:
            peer.send(head("/", first=ABSOLUTE, Host="ignored.example", Origin="http://ignored.example"))
            assert peer.refusal().status == 403


def tell_environ(environ: dict[str, Any], start_response: Any) -> Any:
    """Accept, and send what the environ says about the target."""
    connection = environ["watershed"].accept()
    connection.send(" ".join(str(environ.get(name)) for name in ("PATH_INFO", "QUERY_STRING", "HTTP_HOST", "RAW_URI")))
    return ()


def test_an_absolute_form_target_works_under_wsgi() -> None:
    with Werkzeug(WatershedWSGI(tell_environ)) as server, Peer(server.port) as peer:
        peer.open_with(head("/a%2Fb?x=1", first=ABSOLUTE, Host="ignored.example", Origin="http://a.example:8080"))
        assert peer.text() == "/a/b x=1 a.example:8080 /a%2Fb?x=1"


@pytest.mark.parametrize("door", ["asgi", "wsgi"])
def test_an_absolute_form_target_works_with_a_proxy(door: str) -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        host = dict(scope["headers"])[b"x-forwarded-host"].decode()
        await send({"type": "websocket.send", "text": f"{scope['path']} {scope['query_string'].decode()} {host}"})
        await receive()

    with Uvicorn(tell) as upstream:
        proxy: Any = WebSocketProxy(f"ws://127.0.0.1:{upstream.port}")
        front = Uvicorn(proxy) if door == "asgi" else Werkzeug(proxy)
        with front, Peer(front.port) as peer:
            peer.open_with(head("/chat?x=1", first=ABSOLUTE, Host="b.example", Origin="http://a.example:8080"))
            assert peer.text() == "/chat x=1 a.example:8080"
            peer.send(close())
            assert peer.close()[0] == 1000


@pytest.mark.parametrize(
    "environ",
    [
        {"PATH_INFO": "http://a.example/chat", "QUERY_STRING": "x=1"},
        {"PATH_INFO": "/chat", "QUERY_STRING": "x=1", "RAW_URI": "http://a.example/chat?x=1"},
        {"PATH_INFO": "/chat", "QUERY_STRING": "x=1", "REQUEST_URI": "http://a.example/chat?x=1"},
    ],
    ids=["as gevent", "as gunicorn", "as waitress"],
)
def test_environs_of_other_servers_are_understood(environ: dict[str, str]) -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        return environ["watershed"].reject(403)(environ, start_response)

    more = {"REQUEST_METHOD": "GET", "HTTP_UPGRADE": "websocket", "HTTP_HOST": "b.example"}
    WatershedWSGI(app)({**environ, **more, "SERVER_PROTOCOL": "HTTP/1.1"}, lambda *_: None)
    assert seen[0]["PATH_INFO"] == "/chat"
    assert seen[0]["HTTP_HOST"] == "a.example"
    for name in ("RAW_URI", "REQUEST_URI"):
        assert seen[0].get(name, "/chat?x=1") == "/chat?x=1"


def test_an_absolute_form_target_works_in_raw_heads_and_other_objects() -> None:
    request, _ = read_request_head(head("/chat?x=1", first=ABSOLUTE))
    assert (request.target, request.headers.get("host")) == ("/chat?x=1", "a.example:8080")

    class Handler:
        """As of `http.server`."""

        command, request_version, path = "GET", "HTTP/1.1", "HTTPS://a.example?x=1"
        headers = {"Host": "b.example"}  # noqa: RUF012

    request = as_request(Handler())
    assert (request.target, request.headers.get("host")) == ("/?x=1", "a.example")


@pytest.mark.parametrize("first", ["GET http://a.example@evil/ HTTP/1.1", "GET http:///chat HTTP/1.1"])
def test_an_absolute_target_without_a_proper_host_is_refused(uvicorns: Uvicorn, first: str) -> None:
    refused(uvicorns, first=first)


@pytest.mark.parametrize("host", [None, ["a.example:8080", "a.example:8080"]], ids=["no", "two"])
def test_an_absolute_target_does_not_replace_a_missing_host(uvicorns: Uvicorn, host: Any) -> None:
    """RFC 9112 section 3.2: a request without a Host field, or with two, is answered with 400 in any case."""
    refused(uvicorns, first=ABSOLUTE, Host=host)


@pytest.mark.parametrize("target", ["*", "ftp://a.example/chat"])
def test_a_target_that_is_not_a_path_is_refused(uvicorns: Uvicorn, target: str) -> None:
    refused(uvicorns, first=f"GET {target} HTTP/1.1")


def refused(server: Uvicorn, **changes: Any) -> bytes:
    """The body of the refusal, which the application must not see."""
    run = server.run(tell_scope)
    with Peer(server.port) as peer:
        peer.send(head("/", **changes))
        answer = peer.refusal()
    assert answer.status == 400
    assert run.empty
    return answer.body


def test_an_upgrade_of_http_1_0_is_refused(every_uvicorn: Uvicorn) -> None:
    """RFC 6455 section 4.2.1: "An HTTP/1.1 or higher GET request". uvicorn passes it on as HTTP/1.1."""
    assert b"expected HTTP/1.1 or later" in refused(every_uvicorn, first="GET / HTTP/1.0")


@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_an_invalid_host_is_refused(every_uvicorn: Uvicorn, host: str) -> None:
    assert b"expected a Host header such as 'a.example:8000'" in refused(every_uvicorn, Host=host)


@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_an_invalid_host_is_refused_by_the_other_integrations(others: Uvicorn, host: str) -> None:
    run = others.run(WatershedASGI(tell_scope))
    with Peer(others.port) as peer:
        peer.send(head("/", Host=host))
        assert peer.refusal().status == 400
    assert run.outcome() is None
    with Werkzeug(WatershedWSGI(tell_environ)) as server, Peer(server.port) as peer:
        peer.send(head("/", Host=host))
        assert peer.refusal().status == 400


@pytest.mark.parametrize("byte", ["\0", "\x0b", "\x7f"], ids=["NUL", "VT", "DEL"])
@pytest.mark.parametrize("place", ["X-Anything", "Host", "Origin", "Cookie"])
def test_a_control_character_in_the_head_is_refused(every_uvicorn: Uvicorn, place: str, byte: str) -> None:
    refused(every_uvicorn, **{place.replace("-", "_"): f"a{byte}b"})


@pytest.mark.parametrize("byte", ["\0", "\x0b", "\x7f"], ids=["NUL", "VT", "DEL"])
@pytest.mark.parametrize("place", ["X-Anything", "Host", "Origin", "Cookie"])
def test_a_control_character_that_a_wsgi_server_accepts_is_refused(place: str, byte: str) -> None:
    with Werkzeug(WatershedWSGI(tell_environ)) as server, Peer(server.port) as peer:
        peer.send(head("/", **{place.replace("-", "_"): f"a{byte}b"}))
        assert peer.refusal().status == 400


def test_a_control_character_in_the_target_is_refused() -> None:
    with Werkzeug(WatershedWSGI(tell_environ)) as server, Peer(server.port) as peer:
        peer.send(head("/a\0b"))
        assert b"control character" in peer.refusal().body
    with Werkzeug(WatershedWSGI(tell_environ)) as server, Peer(server.port) as peer:
        peer.open_with(head("/a%00b"))
        assert peer.text().startswith("/a\0b ")


def test_an_oversized_head_is_refused_before_it_is_parsed(uvicorns: Uvicorn) -> None:
    """h11 under uvicorn has its own limit; httptools has none, and passes on any head."""
    run = uvicorns.run(tell_scope)
    with Peer(uvicorns.port) as peer:
        peer.send(head("/", X_Anything=["y" * 1000] * 66))
        assert peer.refusal().status in (400, 431)
    assert run.empty
    with pytest.raises(HandshakeError, match="at most 65536 bytes") as refusal:
        read_request_head(head("/", X_Anything=["y" * 1000] * 66))
    assert refusal.value.status == 431


def test_the_head_limit_excludes_data_after_the_head(uvicorns: Uvicorn) -> None:
    uvicorns.run(tell_scope)
    with Peer(uvicorns.port) as peer:
        peer.open_with(head("/") + b"".join(text("x" * 1000) for _ in range(50)))
    assert read_request_head(head("/") + bytes(100_000))[1] == bytes(100_000)
