"""The proxy under servers in processes of their own: granian, daphne and gunicorn's workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import asgi_servers as servers
from tests.support.peers import Peer, close, head, text
from tests.support.programs import listens
from tests.support.proxy_fronts import fields_of, target_of
from tests.support.scripted import Server, Visit
from tests.support.waiting import eventually
from tests.support.wire_peer import CLOSE, response_head

pytestmark = pytest.mark.programs

APP = "tests.support.proxy_app:application"
NAMES = ("granian", "daphne", "gunicorn-asgi")
WORKERS = {
    f"gunicorn-{worker}": ("gunicorn", APP, "--bind", "127.0.0.1:{port}", "-k", worker, *threads, "--no-control-socket")
    for worker, threads in (("gthread", ("--threads", "4")), ("gevent", ()))
}


def script(visit: Visit) -> None:
    """Refuse requests for /no; echo to the others."""
    visit.request()
    if visit.target == "/no":
        visit.answer("401 Unauthorized", ("X-Why", "no"), body=b"upstream's word")
    else:
        visit.write(response_head(visit.field("sec-websocket-key") or "", ("Sec-WebSocket-Protocol", "b")))
        while (frame := visit.read()).opcode != CLOSE:
            visit.send(frame.opcode, frame.payload)
        visit.server.closes.append(frame.payload)  # type: ignore[attr-defined]
        visit.send(CLOSE, frame.payload)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(script) as server:
        server.closes = []  # type: ignore[attr-defined]
        monkeypatch.setenv("WATERSHED_MW_TEST_UPSTREAM", server.url())
        yield server


def converse(port: int, upstream: Server) -> None:
    with Peer(port) as peer:
        answer = peer.open("/x%2Fy?z", Sec_WebSocket_Protocol="a, b")
        assert answer["sec-websocket-protocol"] == "b"
        assert target_of(upstream).endswith("y?z")
        assert dict(fields_of(upstream))["x-forwarded-for"] == "127.0.0.1"
        for message in ("Hello", "Grüße", "x" * 70_000):
            peer.send(text(message))
            assert peer.text() == message
        peer.send(close(4001, "enough"))
        peer.close()  # with the code that the server likes
    assert eventually(lambda: upstream.closes)[-1][:2] == (4001).to_bytes(2, "big")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "server", [one for one in servers.PORTABLE if one.name in ("granian", "daphne", "gunicorn-asgi")]
)
def test_the_proxy_relays_messages(server: servers.Server, upstream: Server) -> None:
    command = [part.replace(servers.APPLICATION, APP) for part in server.command]
    with servers.running(*command, probe=False) as (program, port):
        eventually(lambda: listens(port))  # granian says so before it is true
        converse(port, upstream)
        with Peer(port) as peer:
            peer.send(head("/no"))
            answer = peer.answer()
            assert answer.status == (401 if server.denial else 403)
            assert (answer.body == b"upstream's word") is server.denial
        with Peer(port) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert peer.answer().status == 426
        assert "Traceback" not in program.output


@pytest.mark.parametrize("worker", WORKERS)
def test_the_proxy_relays_bytes(worker: str, upstream: Server) -> None:
    with servers.running(*WORKERS[worker], probe=False) as (program, port):
        converse(port, upstream)
        with Peer(port) as peer:
            peer.send(head("/no"))
            answer = peer.answer()
            assert (answer.status, answer["x-why"], answer.body) == (401, "no", b"upstream's word")
        assert "Traceback" not in program.output
