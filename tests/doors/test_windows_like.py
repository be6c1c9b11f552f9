"""WSGI on a platform without ``socketpair``, Unix sockets, ``poll``, fork hooks, ``fcntl`` and SIGHUP.

Each response is a 101 whose connection works, or an UnsupportedServerError that says what to use. It runs on Linux with
the features removed that Windows lacks (``windows_like.py``): this proves nothing about Windows, but finds assumptions
that only hold elsewhere.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers import close, head, text
from tests.support.wsgi_servers import SERVERS, Kind, Running, start

pytestmark = pytest.mark.programs


class WindowsLike(Kind):
    """A row whose server runs on such a platform."""

    def command(self, *args: Any, **options: Any) -> list[str]:
        """The row's command, with the other module."""
        python, flag, _, *words = super().command(*args, **options)
        return [python, flag, "tests.support.windows_like", *words]


@contextmanager
def started(name: str, tls: tuple[Path, ssl.SSLContext] | None = None) -> Iterator[Running]:
    with start(WindowsLike(**vars(SERVERS[name])), tls) as running:
        running.wait_until_it_serves()
        yield running


@pytest.mark.parametrize("name", ["werkzeug", "wsgiref", "django", "cheroot", "werkzeug+tls", "cheroot+tls"])
def test_connections_work_without_posix_features(name: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with started(name.removesuffix("+tls"), certificate if name.endswith("+tls") else None) as server:
        for way in ("blocking", "background", "async"):
            with server.peer() as peer:
                peer.open_with(head(f"/{way}") + text("early"))
                peer.send(text("x" * 200_000) + close(4000, "bye"))
                assert [peer.text(), peer.text()] == ["early", "x" * 200_000]
                assert peer.close() == (4000, "bye")
                peer.end()
        assert server.get().body == b"page"
        with server.peer() as peer:
            peer.open_with(head("/detached?word") + b"early")
            expected = b"raw:early"
            data, peer._rest = peer._rest, b""
            while len(data) < len(expected):
                data += peer.sock.recv(100)
            assert data == expected
        server.program.wait_for_line(re.compile("closed word"))
        assert "Traceback" not in server.program.output


def test_a_server_whose_descriptor_cannot_be_replaced_is_a_clear_error() -> None:
    with started("waitress") as server:
        with server.peer() as peer:
            peer.send(head("/blocking"))
            assert peer.answer().status == 500
        assert server.get().body == b"page"
        error = server.program.wait_for_line(re.compile(r"UnsupportedServerError: (.*)$", re.MULTILINE))[1]
    assert "Windows" in error
    assert "werkzeug" in error, "it names a way out"
