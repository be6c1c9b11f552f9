"""Shared by the WSGI tests: a Flask application around one view, and a check that nothing was logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pytest
from flask import Flask, request
from flask.typing import ResponseReturnValue

from tests.support.peers import Answer, Peer
from tests.support.threaded_servers import Werkzeug, errors_in
from watershed_mw import ThreadConnection, WatershedWSGI

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]
View: TypeAlias = Callable[[], ResponseReturnValue]


def flask_app(view: View, *, debug: bool = False, **options: Any) -> Flask:
    """A Flask application with a WebSocket view at /ws and a page at /page."""
    app = Flask(__name__)
    app.debug = debug
    app.add_url_rule("/ws", view_func=view, websocket=True)
    app.add_url_rule("/page", view_func=lambda: "page", endpoint="page")
    app.wsgi_app = WatershedWSGI(app.wsgi_app, **options)  # type: ignore[method-assign]
    return app


def upgrade() -> Any:
    return request.environ["watershed"]


def echo() -> ResponseReturnValue:
    connection: ThreadConnection = upgrade().accept()
    for message in connection:
        connection.send(message)
    return ""


def get(port: int, path: str = "/page") -> Answer:
    with Peer(port) as peer:
        peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        return peer.refusal()


def assert_quiet(server: Werkzeug, caplog: pytest.LogCaptureFixture) -> None:
    """Expect no error and no traceback in any log."""
    assert server.troubles == []
    assert errors_in(caplog.records) == []


def background() -> ResponseReturnValue:
    connection: ThreadConnection = upgrade().accept()
    connection.on("text", connection.send)
    connection.on("binary", connection.send)
    connection.run_in_background()
    return ""


def bare(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A plain WSGI application: an echo for upgrades, a page for other requests."""
    if (asked := environ.get("watershed")) is None:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"plain"]
    with asked.accept() as connection:
        for message in connection:
            connection.send(message)
    return []
