"""Beginners' mistakes: handlers that nothing runs, and functions that cannot be awaited, in every integration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Uvicorn, Werkzeug
from tests.support.waiting import eventually
from watershed_mw import AsyncConnection, ThreadConnection, WatershedASGI, WatershedWSGI
from watershed_mw.asgi import ASGIUpgrade
from watershed_mw.client import connect
from watershed_mw.fastapi import Accepted, upgrade
from watershed_mw.flask import Shed
from watershed_mw.starlette import WatershedRoute

CLASSES = ["watershed_mw.uvicorn:WatershedProtocol", "websockets-sansio"]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about handlers that were never called."""
    return [record.getMessage() for record in caplog.records if "never called" in record.getMessage()]


async def forgets_run(connection: AsyncConnection) -> None:
    connection.on("text", print)
    connection.on("end", lambda code, reason: None)
    connection.on("binary", print)


def forgets_run_in_thread(connection: ThreadConnection) -> None:
    connection.on("text", print)
    connection.on("binary", print)


def see_it_end(port: int) -> None:
    with Peer(port) as peer:
        peer.open()
        assert peer.close() == (1000, "")
        peer.send(close())


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    assert eventually(lambda: warnings_in(caplog))
    (warning,) = warnings_in(caplog)
    return warning


# --- handlers that were registered and never run ------------------------------------------------------------


@pytest.mark.parametrize("ws", CLASSES)
def test_a_route_that_forgets_run_is_logged(caplog: pytest.LogCaptureFixture, ws: str) -> None:
    with Uvicorn(Starlette(routes=[WatershedRoute("/", forgets_run)]), ws=ws) as server:
        see_it_end(server.port)
    assert "is ended as it is left, with handlers for binary, text that were never called: call run()" in one_warning(
        caplog
    )
    assert [record.levelno for record in caplog.records if "never called" in record.getMessage()] == [logging.WARNING]


@pytest.mark.parametrize("handler", [forgets_run, forgets_run_in_thread], ids=["background", "blocking"])
def test_a_flask_route_that_forgets_run_is_logged(
    caplog: pytest.LogCaptureFixture, handler: Callable[[Any], Any]
) -> None:
    app = Flask(__name__)
    Shed(app).route("/")(handler)
    with Werkzeug(app) as server:
        see_it_end(server.port)
    assert "handlers for binary, text" in one_warning(caplog)


def test_a_wsgi_application_that_forgets_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        forgets_run_in_thread(environ["watershed"].accept())
        return []

    with Werkzeug(WatershedWSGI(app)) as server:
        see_it_end(server.port)
    assert one_warning(caplog)


@pytest.mark.parametrize("flavour", ["threads", "asyncio"])
def test_a_client_that_forgets_run_is_logged(caplog: pytest.LogCaptureFixture, flavour: str) -> None:
    async def app(connection: AsyncConnection) -> None:
        async for _ in connection:
            pass

    async def leave(url: str) -> None:
        async with connect(url) as connection:
            connection.on("text", print)

    with Uvicorn(Starlette(routes=[WatershedRoute("/", app)])) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        if flavour == "asyncio":
            asyncio.run(leave(url))
        else:
            with connect(url) as connection:
                connection.on("text", print)
    assert "handlers for text" in one_warning(caplog)


@pytest.mark.parametrize("ws", CLASSES)
@pytest.mark.parametrize("how", ["run", "wait_closed", "another way", "raises", "ends"])
def test_correct_programs_log_no_warning(caplog: pytest.LogCaptureFixture, ws: str, how: str) -> None:
    async def endpoint(connection: AsyncConnection) -> None:
        got = asyncio.Event()

        @connection.on("text")
        def on_text(message: str) -> None:
            got.set()

        if how == "another way":
            await got.wait()
        elif how == "raises":
            raise LookupError
        elif how == "ends":
            await connection.end()
        else:
            await getattr(connection, how)()

    with Uvicorn(Starlette(routes=[WatershedRoute("/", endpoint)]), ws=ws) as server, Peer(server.port) as peer:
        peer.open()
        peer.send(text("hello") + (close() if how in ("run", "wait_closed") else b""))
        assert peer.close()[0] == (1011 if how == "raises" else 1000)
        peer.send(close())
        peer.end()
    assert warnings_in(caplog) == []


# --- functions that are not async ---------------------------------------------------------------------------


def plain(connection: Any) -> None:
    """An object that cannot be awaited."""


class Endpoint:
    async def __call__(self, connection: AsyncConnection) -> None: ...

    async def method(self, connection: AsyncConnection) -> None: ...

    def plain(self, connection: AsyncConnection) -> None: ...


@pytest.mark.parametrize("endpoint", [plain, lambda connection: None, Endpoint().plain, print], ids=str)
def test_a_route_refuses_a_plain_function_immediately(endpoint: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a coroutine function \(async def\) as the endpoint of a Watershed"):
        WatershedRoute("/", endpoint)


@pytest.mark.parametrize("endpoint", [forgets_run, Endpoint(), Endpoint().method], ids=str)
def test_a_route_accepts_every_kind_of_async_callable(endpoint: Any) -> None:
    assert WatershedRoute("/", endpoint).endpoint is endpoint


def test_a_plain_function_is_refused_with_accept_false(caplog: pytest.LogCaptureFixture) -> None:
    def decide(request: HTTPConnection, upgrade: ASGIUpgrade) -> None: ...

    route = WatershedRoute("/", decide, accept=False)  # type: ignore[call-overload]
    with Uvicorn() as server, Peer(server.port) as peer:
        run = server.run(Starlette(routes=[route]))
        peer.send(head())
        assert peer.refusal().status == 500
        assert str(run.outcome()).startswith("expected a coroutine function (async def)")


@pytest.mark.parametrize("dependency", [Accepted(), upgrade], ids=["Accepted", "upgrade"])
def test_a_plain_endpoint_of_fastapi_is_refused_before_the_101(
    dependency: Callable[..., Awaitable[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()

    @app.websocket("/")
    def endpoint(got: Any = Depends(dependency)) -> None: ...  # noqa: B008  # as FastAPI has it

    with Uvicorn() as server, Peer(server.port) as peer:
        run = server.run(WatershedASGI(app))
        peer.send(head())
        assert peer.refusal().status == 500
        assert str(run.outcome()).startswith("expected a coroutine function (async def) as the endpoint of /, got")
