"""``echo``, and options that the serving commands share."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trustme

from tests.support import SOON
from tests.support.cli_server import PROGRAM, Server, connect
from tests.support.peers import Peer, close, head, text
from tests.support.programs import Program
from tests.support.threaded_servers import Uvicorn
from watershed_mw import WatershedASGI
from watershed_mw.cli.commands import run
from watershed_mw.cli.heads import bounded
from watershed_mw.cli.parameters import Address

pytestmark = pytest.mark.programs

# --- echo, and what serving commands share -------------------------------------------------------------------


def test_echo_shuts_down_gracefully_while_a_client_is_connected() -> None:
    allowed = ("--allow-origin", "https://elsewhere.example")
    with Program(*PROGRAM, "echo", "--listen", "localhost:0", *allowed) as program, Peer(program.port()) as peer:
        peer.open("/", Origin="https://elsewhere.example")
        os.kill(program.pid, signal.SIGTERM)
        assert peer.close() == (1012, "the server restarts")
        peer.send(close(1012))
        peer.end()
        peer.sock.close()
        assert program.wait() == 0
        assert re.fullmatch(r"(ws://(127\.0\.0\.1|\[::1\]):\d+/\n)+", program.output)


def test_echo_describes_itself_to_plain_http_requests(echo: int) -> None:
    with Peer(echo) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = peer.answer()
        assert (answer.status, answer.body) == (426, b"This is a WebSocket server that echoes.\n")


def test_tls_works_with_cacert_or_insecure(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--tls-cert", tmp_path / "server.pem") as program:
        port = program.wait_for_line(re.compile(r"^wss://127\.0\.0\.1:(\d+)/$", re.MULTILINE))[1]
        url = f"wss://127.0.0.1:{port}/"
        with ThreadPoolExecutor() as pool:
            trusting, trustful = pool.map(
                lambda trust: connect(url, *trust, stdin=b"hi\n"),
                (("--cacert", str(tmp_path / "ca.pem")), ("--insecure",)),
            )
    assert (trusting.returncode, trusting.stdout, trusting.stderr) == (0, b"hi\n", b"")
    assert (trustful.returncode, trustful.stdout, trustful.stderr) == (0, b"hi\n", b"")


def test_an_address_without_a_host_listens_on_ipv4_and_ipv6() -> None:
    sockets = Address("", 0).listen()
    try:
        hosts = {one.getsockname()[0] for one in sockets}
        assert hosts in ({"0.0.0.0", "::"}, {"0.0.0.0"})
        assert len({one.getsockname()[1] for one in sockets}) == 1
        with socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1])):
            pass
    finally:
        for one in sockets:
            one.close()


def test_proxy_options_apply(proxied: list[Any]) -> None:
    assert run(["proxy", "--listen", ":8080", "--to", "ws://127.0.0.1:9000"]) == 0
    everything = (
        "proxy --listen [::1]:0 --to wss://b.example/x --no-keep-host --strip-prefix /chat --header X-A:1 -H 'X-B: 2' "
        "--open-timeout 1 --idle-timeout 2.5 --max-duration 60 --max-bytes 1000 --origin https://a.example "
        "--origin *.b.example --insecure --verbose"
    )
    assert run(shlex.split(everything)) == 0
    (guarded, *where), (guarded_too, *elsewhere) = proxied
    first, second = guarded._app, guarded_too._app
    assert where == [("", 8080), None, None, False]
    assert first.given == {
        "upstream": "ws://127.0.0.1:9000", "keep_host": True, "strip_prefix": "", "headers": [], "open_timeout": 10.0,
        "idle_timeout": 3600.0, "max_duration": None, "max_bytes": None, "ssl": None,
    }  # fmt: skip
    assert elsewhere == [("::1", 0), None, None, True]
    context = second.given.pop("ssl")
    assert not context.check_hostname
    assert second.given == {
        "upstream": "wss://b.example/x", "keep_host": False, "strip_prefix": "/chat",
        "headers": [("X-A", "1"), ("X-B", "2")], "open_timeout": 1.0, "idle_timeout": 2.5, "max_duration": 60.0,
        "max_bytes": 1000, "origins": ["https://a.example", "*.b.example"],
    }  # fmt: skip


# Header fields of a request, and the status of its answer.
Pages: TypeAlias = list[tuple[dict[str, Any], int]]
PAGES: Pages = [
    ({}, 101),
    ({"Host": "localhost:1"}, 101),
    ({"Host": "app.localhost"}, 101),
    ({"Host": "[::1]:8080"}, 101),
    ({"Host": "192.0.2.1"}, 101),
    ({"Host": "own.example"}, 101),
    ({"Host": "a.below.example:80"}, 101),
    ({"Host": "own.example", "Origin": "http://own.example"}, 101),
    ({"Origin": "https://page.example"}, 101),
    # A page whose name points here (DNS rebinding).
    ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
    # A page that asks this machine by its own name.
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Host": "a evil"}, 400),
    ({"Host": "a@localhost"}, 400),
]
OPTIONS = ("--allow-host", "own.example", "--allow-host", "*.below.example", "--allow-origin", "https://page.example")


def answers_to(port: int, pages: Pages) -> Pages:
    answers: Pages = []
    for changes, _ in pages:
        with Peer(port) as peer:
            peer.send(head(**changes))
            answers.append((changes, peer.answer().status))
    return answers


def test_pages_of_other_sites_are_refused(echo: int) -> None:
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", *OPTIONS) as program:
        port = program.port()
        pages: Pages = [*PAGES, ({"Origin": "http://localhost:3000"}, 101), ({"Origin": "https://[::1]"}, 101)]
        assert answers_to(port, pages) == pages
    with Program(*PROGRAM, "proxy", "--listen", "127.0.0.1:0", "--to", f"ws://127.0.0.1:{echo}", *OPTIONS) as program:
        port = program.port()
        # The server behind it judges as well, and knows neither name.
        hosts: Pages = [(changes, status) for changes, status in PAGES if status != 101]
        hosts += [({"Origin": "http://localhost:3000"}, 403), ({"Host": "localhost:2"}, 101)]
        assert answers_to(port, hosts) == hosts
        with Peer(port) as peer:
            peer.send(head(Host="own.example"))
            assert b"--allow-host" in peer.answer().body, "the answer of the echo behind it"


def test_allow_origin_star_admits_every_page() -> None:
    with Program(*PROGRAM, "echo", "--listen", "127.0.0.1:0", "--allow-host", "*", "--allow-origin", "*") as program:
        pages: Pages = [
            ({"Host": "any.example", "Origin": "http://other.example"}, 101),
            ({"Origin": "null"}, 101),
            ({"Host": "a evil"}, 400),
        ]
        assert answers_to(program.port(), pages) == pages


# --- heads ---------------------------------------------------------------------------------------------------


HEADS = {
    "fields": head(X_A="y")[:-2] + b"X-B: z\r\n" * 250,
    "value": head()[:-2] + b"X-A: " + b"y" * 2**16,
    "target": b"GET /" + b"y" * 2**16,
    "many": b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(67)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_an_endless_head_is_refused(echo: int, kind: str) -> None:
    with Peer(echo) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(HEADS[kind])
        assert peer.rest()[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b""), "an end, and no wait"


@pytest.fixture(params=["h11", "httptools"])
def bounded_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uvicorn]:
    """A server in this process with the same limits, and shorter timeouts."""
    monkeypatch.setattr("watershed_mw.cli.heads._SECONDS", 0.5)
    name = "H11Protocol" if request.param == "h11" else "HttpToolsProtocol"
    http = getattr(import_module(f"uvicorn.protocols.http.{request.param}_impl"), name)
    with Uvicorn(WatershedASGI(Server(), origins="*"), http=bounded(http)) as running:
        yield running


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", head()[:-1]], ids=["nothing", "some", "most"])
def test_a_slow_head_is_refused(bounded_server: Uvicorn, sent: bytes) -> None:
    with Peer(bounded_server.port) as peer, Peer(bounded_server.port) as other:
        other.open()
        peer.send(sent)
        began = time.monotonic()
        answer = peer.rest()
        assert 0.2 < time.monotonic() - began < SOON
        assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""
        # Whoever has a WebSocket has all the time in the world.
        other.send(text("still here"))
        assert other.text() == "still here"


def test_heads_may_arrive_in_pieces_with_data_behind_them(bounded_server: Uvicorn) -> None:
    request = head()
    for cut in (1, len(request) - 3, len(request) - 2, len(request) - 1, len(request)):
        with Peer(bounded_server.port) as peer:
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.send(request[:cut])
            peer.open_with(request[cut:] + (text("x" * 100_000) if cut < len(request) else b""))
            if cut < len(request):
                assert peer.text() == "x" * 100_000


def test_a_large_complete_head_is_accepted(bounded_server: Uvicorn) -> None:
    with Peer(bounded_server.port) as peer:
        peer.open(Cookie="c" * 60_000)
    with Peer(bounded_server.port) as peer:
        peer.send(head(Cookie="c" * 70_000))
        assert peer.rest()[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")


def test_proxy_forwards_to_a_server(echo: int) -> None:
    command = ("proxy", "--listen", "127.0.0.1:0", "--to", f"ws://127.0.0.1:{echo}", "--verbose")
    with Program(*PROGRAM, *command) as program:
        port = program.port()
        done = connect(port, "--protocol", "chat.v1", stdin="Grüße\n".encode())
        assert (done.returncode, done.stdout.decode()) == (0, "Grüße\n"), done.stderr
        with Peer(port) as peer:
            peer.open()
            os.kill(program.pid, signal.SIGTERM)
            assert peer.close() == (1012, "the server restarts")
            peer.send(close(1012))
            peer.end()
            peer.sock.close()
            assert program.wait() == 0
        assert "Traceback" not in program.output
