"""Django and exceptions that leave a view: responses and warnings, not server errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.peers import Peer, close, head, text
from tests.support.programs import Program

pytestmark = pytest.mark.programs

APP = """
import sys
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from werkzeug.serving import make_server
from watershed_mw import WatershedWSGI

settings.configure(
    SECRET_KEY="secret", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], DEBUG=sys.argv[1] == "debug",
    LOGGING={
        "version": 1, "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {"django": {"handlers": ["console"], "level": "INFO", "propagate": False}},
    },
)

def talk(request):
    conn = request.environ["watershed"].accept()
    while True:
        conn.send(conn.receive())

def crash(request):
    conn = request.environ["watershed"].accept()
    raise RuntimeError(conn.receive())

urlpatterns = [path("talk", talk), path("crash", crash)]
server = make_server("127.0.0.1", 0, WatershedWSGI(get_wsgi_application(), max_connections=1), threaded=True)
print(f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
"""


@pytest.fixture(params=["production", "debug"])
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    script = tmp_path / "served.py"
    script.write_text(APP)
    with Program(sys.executable, str(script), request.param) as program:
        yield program


@pytest.mark.need(13, 15)
@pytest.mark.parametrize("leave", ["close", "vanish"])
def test_a_view_need_not_catch_the_end(program: Program, leave: str) -> None:
    with Peer(program.port()) as peer:
        peer.open("/talk")
        peer.send(text("hi"))
        assert peer.text() == "hi"
        if leave == "close":
            peer.send(close(1000))
            assert peer.close() == (1000, "")
        else:
            peer.vanish()
    program.wait_for_line(re.compile(r"^WARNING django\.request .*connection has ended", re.MULTILINE))
    program.wait_for_line(re.compile(r'GET /talk HTTP/1\.1.*" 101 '))
    assert "ERROR" not in program.output


@pytest.mark.need(9, 13)
@pytest.mark.parametrize(
    "changes, status",
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Version": "8"}, 400),
    ],
)
def test_a_refusal_is_a_django_response(program: Program, changes: Any, status: int) -> None:
    with Peer(program.port()) as peer:
        peer.send(head("/talk", **changes))
        assert peer.refusal().status == status
    assert "ERROR" not in program.output


def test_other_exceptions_are_reported_as_errors(program: Program) -> None:
    with Peer(program.port()) as peer:
        peer.open("/crash")
        peer.send(text("on purpose"))
        assert peer.close()[0] == 1011
        peer.send(close(1011))
        peer.end()
    program.wait_for_line(re.compile(r"^ERROR django\.request Internal Server Error: /crash", re.MULTILINE), LIMIT)
    program.wait_for_line(re.compile(r"RuntimeError: on purpose"))
