"""Options that an integration does not have: an error where they are passed, which names the right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from flask import Flask
from werkzeug.test import Client

from tests.support.asgi import Receive, Scope, Send
from tests.support.peers import Peer
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import Gate
from watershed_mw import Watershed, WatershedASGI, WatershedWSGI
from watershed_mw import client as clients
from watershed_mw.fastapi import Accepted
from watershed_mw.flask import Shed, UpgradeResponse
from watershed_mw.starlette import WatershedRoute
from watershed_mw.testing import connect as connect_for_test

Door: TypeAlias = Callable[..., Any]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application that is never called."""


def flask_route(**options: Any) -> Any:
    return Shed(Flask(__name__)).route("/", connection_options=options)  # type: ignore[arg-type]


def client_of_testing(**options: Any) -> None:
    with connect_for_test(Client(lambda environ, start_response: []), "/", **options):
        pass


# The callables that take options of an integration, of one accepted connection, and of a client.
DOORS: dict[str, Door] = {
    "Watershed": Watershed,
    "WatershedASGI": lambda **options: WatershedASGI(app, **options),
    "WatershedWSGI": lambda **options: WatershedWSGI(lambda environ, start_response: [], **options),
    "Shed": lambda **options: Shed(Flask(__name__), **options),
    "WatershedRoute": lambda **options: WatershedRoute("/", app, **options),  # type: ignore[arg-type]
}
ACCEPTS: dict[str, Door] = {
    "Accepted()": Accepted,
    "a connection": flask_route,
    "UpgradeResponse()": lambda **options: UpgradeResponse(print, **options),
}
CLIENTS: dict[str, Door] = {
    "connect()": lambda **options: clients.connect("ws://a.example", **options),
    "testing.connect()": client_of_testing,
}
EVERYWHERE = {**DOORS, **ACCEPTS, **CLIENTS}


@pytest.mark.parametrize("door", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_misspelt_option_is_an_error_that_suggests_the_right_one(door: Door) -> None:
    with pytest.raises(TypeError, match=r"^expected options (of .*)?among .*max_message_size, ") as caught:
        door(colour=1, ping_intervall=2)
    assert str(caught.value).endswith("; got colour, ping_intervall (did you mean ping_interval?)")


@pytest.mark.parametrize("door", EVERYWHERE.values(), ids=EVERYWHERE)
def test_an_invalid_value_is_an_error_immediately(door: Door) -> None:
    with pytest.raises(ValueError, match="expected max_message_size"):
        door(max_message_size=-1)


@pytest.mark.parametrize("name", ["origins", "max_connections"])
@pytest.mark.parametrize("where", [*ACCEPTS, *CLIENTS])
def test_an_option_of_the_middleware_is_an_error_that_says_where_it_belongs(where: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"; got {name} \(an option of WatershedASGI and WatershedWSGI\)$") as caught:
        EVERYWHERE[where](**{name: 1})
    listed = str(caught.value).partition(" among ")[2].partition(";")[0].split(", ")
    assert "origins" not in listed
    assert "max_connections" not in listed
    assert "max_message_size" in listed


@pytest.mark.parametrize("where", CLIENTS)
def test_shutdown_code_is_not_an_option_of_a_client(where: str) -> None:
    with pytest.raises(TypeError, match=r"; got shutdown_code \(an option of WatershedASGI and WatershedWSGI\)$"):
        CLIENTS[where](shutdown_code=1012)


def test_the_error_of_connect_lists_all_options() -> None:
    with pytest.raises(TypeError, match=r"got protocls \(did you mean protocols\?\)$") as caught:
        clients.connect("ws://a.example", protocls=["a"])  # type: ignore[call-arg]
    listed = str(caught.value).partition(" among ")[2].partition(";")[0].split(", ")
    assert {"protocols", "open_timeout", "retry", "max_redirects", "ping_interval", "trace"} <= set(listed)
    assert "shutdown_code" not in listed


@pytest.mark.parametrize("ws", ["watershed_mw.uvicorn:WatershedProtocol", "websockets-sansio"])
def test_asgi_accept_takes_options_of_a_connection(ws: str) -> None:
    said = Gate[str]()

    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError) as caught:
            await scope["watershed"].accept(origins="*")
        said.put(str(caught.value))
        connection = await scope["watershed"].accept(ping_interval=5.0)  # nothing has been answered
        await connection.end()

    with Uvicorn(WatershedASGI(accepting), ws=ws) as server, Peer(server.port) as peer:
        peer.open()
        assert peer.close() == (1000, "")
    assert said.get().startswith("expected options of accept() among close_timeout, ")
    assert said.get().endswith("; got origins (an option of WatershedASGI and WatershedWSGI)")


def test_wsgi_accept_takes_options_of_a_connection() -> None:
    said = Gate[str]()

    def accepting(environ: dict[str, Any], start_response: Any) -> Any:
        with pytest.raises(TypeError) as caught:
            environ["watershed"].accept(max_connections=1)
        said.put(str(caught.value))
        environ["watershed"].accept(ping_interval=5.0).end()
        return []

    with connect_for_test(Client(WatershedWSGI(accepting)), "/") as connection:
        assert list(connection) == []
    assert said.get().endswith("; got max_connections (an option of WatershedASGI and WatershedWSGI)")
