"""The pages on WSGI, executed: every Python block of wsgi.md, flask.md and moving-wsgi.md is served and used.

The table of servers is compared with the one that the servers' tests use.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import LIMIT, PROJECT
from tests.support.pages import Block, blocks, tables
from tests.support.peers import Peer, close, dial, head, text
from tests.support.programs import Program, free_port, listens
from tests.support.threaded_servers import Werkzeug
from tests.support.waiting import eventually
from tests.support.wsgi_servers import SERVERS, Kind

pytestmark = pytest.mark.programs

PAGES = ("wsgi.md", "flask.md", "moving-wsgi.md")
PYTHON = [block for block in blocks() if block.language == "python" and block.page.name in PAGES]


@contextlib.contextmanager
def served(app: Any) -> Iterator[int]:
    """An application under werkzeug, whose log must stay free of errors."""
    with Werkzeug(app) as server:
        yield server.port
        assert server.troubles == []


@contextlib.contextmanager
def run(block: Block, place: Path, *command: str) -> Iterator[tuple[Program, int]]:
    """The block as ``main.py`` of a program that listens on port 8000 as documented, or on PORT of the command."""
    port = free_port()
    (place / "main.py").write_text(re.sub(r"\b8000\b", str(port), block.code), encoding="utf-8")
    words = [word.replace("PORT", str(port)) for word in command] or ["main.py"]
    with Program(*words, cwd=place) as program:
        eventually(lambda: listens(port), "its listener")
        yield program, port


def refusal(port: int, path: str, **fields: str) -> tuple[int, str]:
    with Peer(port) as peer:
        peer.send(head(path, **fields))
        answer = peer.refusal()
        return answer.status, answer.body.decode()


def page(port: int, path: str) -> tuple[int, str, list[str]]:
    with Peer(port) as peer:
        peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = peer.answer()
        return answer.status, answer.body.decode(), answer.all("set-cookie")


def says(port: int, path: str, message: str, **fields: str) -> str:
    """The answer to one message, followed by an orderly closing handshake."""
    with Peer(port) as peer:
        peer.open(path, **fields)
        peer.send(text(message))
        came = peer.text()
        peer.send(close())
        assert peer.close()[0] == 1000
        peer.end()
        return came


def greeting(port: int, path: str) -> str:
    with dial(port, path) as client:
        return str(client.recv(LIMIT))


# --- wsgi.md -----------------------------------------------------------------------------------------------------


def three_ways(block: Block) -> None:
    with served(block.module().app) as port:
        assert page(port, "/")[:2] == (200, "an ordinary page")
        assert refusal(port, "/async") == (401, "log in first")
        assert refusal(port, "/attic", Cookie="a=b") == (404, "no such room")
        assert refusal(port, "/async", Cookie="a=b", Origin="http://elsewhere.example")[0] == 403
        for path, came in (("/blocking", "hi"), ("/background", "HI"), ("/async", "hi")):
            assert says(port, path, "hi", Cookie="a=b") == came
            with Peer(port) as peer:
                answer = peer.open(path, Cookie="a=b", Sec_WebSocket_Protocol="chat.v0, chat.v1")
                assert (answer["sec-websocket-protocol"], answer["x-served-by"]) == ("chat.v1", "main")


def django(block: Block, place: Path) -> None:
    gunicorn = str(Path(sys.executable).parent / "gunicorn")
    options = ["-k", "gthread", "--threads", "1", "--bind", "127.0.0.1:PORT", "--no-control-socket"]
    options += ["--access-logfile", "-", "--keep-alive", "0"]  # a refusal is over when the stream is
    with run(block, place, gunicorn, "main:app", *options) as (program, port):
        assert page(port, "/talk")[0] == 426
        assert refusal(port, "/talk") == (403, "log in first")
        assert refusal(port, "/nowhere")[0] == 404
        status, _, [cookie] = page(port, "/login?name=ann")
        assert status == 200
        known = {"Cookie": cookie.partition(";")[0]}
        assert refusal(port, "/talk", **known, Origin="http://elsewhere.example")[0] == 403
        assert refusal(port, "/talk", **known, Host="elsewhere.example")[0] == 400
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(port)) for _ in range(3)]  # one thread has them all
            for peer in peers:
                peer.open("/talk", **known)
                peer.send(text("hi"))
                assert peer.text() == "ann: hi"
            assert page(port, "/talk")[0] == 426
            program.stop(signal.SIGTERM)
            for peer in peers:
                assert peer.close()[0] == 1001
        assert "Traceback" not in program.output
        assert "Internal Server Error" not in program.output
        assert program.output.count('"GET /talk HTTP/1.1" 101 ') == 3


def detached_in_wsgi(block: Block) -> None:
    with served(block.module().app) as port, Peer(port) as peer:
        peer.open_with(head("/") + b"early, and ")
        peer.send(b"late")
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.rest() == b"early, and late"


def limits_in_wsgi(block: Block) -> None:
    with served(block.module().app) as port, contextlib.ExitStack() as stack:
        assert says(port, "/echo", "hi", Origin="https://app.example.com") == "hi"
        eventually(lambda: refusal(port, "/nowhere")[0] == 404, "a free place")
        peers = [stack.enter_context(Peer(port)) for _ in range(2)]
        for peer in peers:
            peer.open("/echo")
        assert refusal(port, "/echo")[0] == 503
        peers[0].send(text("x" * (64 * 1024 + 1)))
        assert peers[0].close()[0] == 1009
        peers[1].send(text("hi") * 60)
        assert {peers[1].text() for _ in range(50)} == {"hi"}


# --- flask.md ----------------------------------------------------------------------------------------------------


def routes_in_flask(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    with served(block.module().app) as port:
        assert page(port, "/")[:2] == (200, "an ordinary page")
        assert page(port, "/async")[0] == 400
        assert says(port, "/blocking/7", "hi", Sec_WebSocket_Protocol="chat.v1") == "7 chat.v1 hi"
        assert refusal(port, "/blocking/seven")[0] == 404
        assert says(port, "/background", "hi") == "HI"
        assert says(port, "/async", "hi") == "hi"
        assert says(port, "/events", "hi") == "hi"
        eventually(lambda: "gone with 1000" in capsys.readouterr().out, "the end, printed")


def decisions_in_flask(block: Block) -> None:
    with served(block.module().app) as port:
        assert refusal(port, "/rooms/lobby?full=1") == (429, "come back later")
        assert refusal(port, "/rooms/lobby")[0] == 302
        cookie = page(port, "/login?name=ann")[2][0].partition(";")[0]
        status, body = refusal(port, "/rooms/attic", Cookie=cookie)
        assert (status, json.loads(body)) == (404, {"error": "no such room"})
        assert refusal(port, "/rooms/cellar", Cookie=cookie)[0] == 403
        assert refusal(port, "/rooms/lobby", Cookie=cookie, Origin="http://elsewhere.example")[0] == 403
        with Peer(port) as peer:
            answer = peer.open("/rooms/lobby", Cookie=cookie)
            assert answer["set-cookie"].startswith("session=")
            peer.send(text("hi"))
            assert peer.text() == "ann in lobby: hi"


def context_in_flask(block: Block) -> None:
    with served(block.module().app) as port:
        assert greeting(port, "/async?user=ann") == "hello ann on /async"
        assert says(port, "/background?user=ann", "good bye") == "hello ann, good bye"


def blueprints(block: Block) -> None:
    with served(block.module().create_app()) as port:
        assert greeting(port, "/api/rooms/lobby") == "this is lobby"
        assert says(port, "/echo", "hi") == "hi"


def flask_testing(block: Block) -> None:
    module = block.module()
    tests = [name for name in vars(module) if name.startswith("test_")]
    assert len(tests) == 3
    for name in tests:
        getattr(module, name)()


# --- moving-wsgi.md ----------------------------------------------------------------------------------------------


def shouts_in_flask(block: Block) -> None:
    with Werkzeug(block.module().app) as server, dial(server.port, "/shout") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "HELLO"


def shouts_in_wsgi(block: Block) -> None:
    with Werkzeug(block.module().app) as server, dial(server.port, "/") as client:
        client.send("hello")
        assert client.recv(LIMIT) == "HELLO"


def shouts_under_gevent(block: Block, place: Path) -> None:
    with run(block, place) as (program, port):
        with dial(port) as one, dial(port) as other:
            for client in (other, one):
                client.send("hello")
                assert client.recv(LIMIT) == "HELLO"
        assert "Traceback" not in program.output


TESTS: dict[str, Callable[..., None]] = {
    test.__name__: test
    for test in (
        *(three_ways, django, detached_in_wsgi, limits_in_wsgi),
        *(routes_in_flask, decisions_in_flask, context_in_flask, blueprints, flask_testing),
        *(shouts_in_flask, shouts_in_wsgi, shouts_under_gevent),
    )
}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(block: Block, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert block.name in TESTS, f"{block} names no test of TESTS: put <!-- test: name --> in front of it"
    test = TESTS[block.name]
    known = {"block": block, "place": tmp_path, "capsys": capsys}
    test(**{name: known[name] for name in inspect.signature(test).parameters})


def test_every_block_test_has_its_block() -> None:
    assert {block.name for block in PYTHON} == set(TESTS)


# --- the table of servers ----------------------------------------------------------------------------------------

ROWS = {
    "werkzeug (`flask run`)": "werkzeug",
    "werkzeug, `processes=`": "werkzeug-processes",
    "gunicorn sync": "gunicorn-sync",
    "gunicorn gthread": "gunicorn-gthread",
    "gunicorn gevent": "gunicorn-gevent",
    "gunicorn gevent_pywsgi": "gunicorn-gevent_pywsgi",
    "gevent's pywsgi, unpatched": "pywsgi",
    "gevent's pywsgi, patched": "pywsgi-patched",
    "waitress": "waitress",
    "cheroot": "cheroot",
    "wsgiref": "wsgiref",
    "Django's `runserver`": "django",
    "Django's `runserver --nothreading`": "django-nothreading",
    "eventlet": "eventlet",
    "uWSGI, `--http-socket`": "uwsgi",
    "uWSGI, `--http`": "uwsgi-router",
}


def test_the_server_table_matches_the_server_tests() -> None:
    shown = {row[0]: row[1:] for row in tables("names")["wsgi_servers"]}
    assert set(shown) == set(ROWS)
    for title, (blocking, background, asynchronous, tls, early, _) in shown.items():
        kind: Kind = SERVERS[ROWS[title]]
        assert blocking.partition(",")[0] == ("one" if kind.single else "yes"), title
        assert background == asynchronous == ("yes" if kind.background else "no"), title
        assert (tls == "yes") == kind.tls, title
        assert early == ("yes" if kind.early else "lost"), title


def test_every_tested_server_is_on_the_page() -> None:
    variants = {"werkzeug-single", "werkzeug-debugger", "gunicorn-preload", "gunicorn-unix"}
    assert set(ROWS.values()) | variants == set(SERVERS)


def test_example_pages_exist() -> None:
    assert {page.name for page in (PROJECT / "docs").glob("*.md")} >= set(PAGES)
