"""Bytes that a client sends in the segment of its request: found in uvicorn's HTTP layer, or the upgrade is refused.

The package reads names there that uvicorn does not promise to keep. These tests pin them for the installed uvicorn;
``servers/test_native.py`` sends early bytes to every supported version.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.support.asgi import accept
from tests.support.peers import Peer, head, text
from tests.support.threaded_servers import Uvicorn


async def echo_one(scope: Any, receive: Any, send: Any) -> None:
    await accept(receive, send)
    await send({"type": "websocket.send", "text": (await receive())["text"]})


@pytest.mark.parametrize("size", [5, 10_000])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_early_bytes_are_kept(http: str, loop: str, size: int) -> None:
    frame = text("e" * size)
    with Uvicorn(echo_one, http=http, loop=loop) as server, Peer(server.port) as peer:
        peer.open_with(head() + frame[:-1])
        peer.send(frame[-1:])
        assert peer.text() == "e" * size


def test_uvicorns_httptools_layer_still_has_the_expected_local_variable() -> None:
    method = HttpToolsProtocol.data_received
    assert method.__code__.co_varnames[: method.__code__.co_argcount] == ("self", "data")


def test_uvicorns_h11_layer_still_has_the_expected_parser_attribute() -> None:
    loop = asyncio.new_event_loop()
    try:
        layer = H11Protocol(uvicorn.Config(echo_one), uvicorn.server.ServerState(), {}, _loop=loop)
        assert layer.conn.trailing_data == (b"", False)
    finally:
        loop.close()


class RenamedVariable(HttpToolsProtocol):
    """A possible later uvicorn: another name for the data."""

    def data_received(self, segment: bytes) -> None:
        """As the base class, with its own code."""
        try:
            self.parser.feed_data(segment)
        except httptools.HttpParserUpgrade:
            self.handle_websocket_upgrade()


class AnotherType(HttpToolsProtocol):
    """A possible later uvicorn: the data is not ``bytes``."""

    def data_received(self, data: Any) -> None:
        """As the base class, with its own code."""
        data = memoryview(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.handle_websocket_upgrade()


class HandledLater(HttpToolsProtocol):
    """A possible later uvicorn: the exception is gone when the WebSocket class is created."""

    def data_received(self, data: bytes) -> None:
        """As the base class, with its own code."""
        stopped = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            stopped = True
        if stopped:
            self.handle_websocket_upgrade()


class OffsetWithheld(HttpToolsProtocol):
    """A possible later httptools: its exception does not say how far it got."""

    def data_received(self, data: bytes) -> None:
        """As the base class, with its own code."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            error.args = ()
            self.handle_websocket_upgrade()


class _Withholding:
    """h11's connection without the bytes that it has read beyond the head."""

    def __init__(self, connection: h11.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        if name == "trailing_data":
            raise AttributeError(name)
        return getattr(self._connection, name)


class NoTrailingData(H11Protocol):
    """A possible later uvicorn or h11: no ``trailing_data``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Withholding(self.conn)  # type: ignore[assignment]


@pytest.mark.parametrize("layer", [RenamedVariable, AnotherType, HandledLater, OffsetWithheld, NoTrailingData])
def test_an_upgrade_is_refused_if_early_bytes_cannot_be_found(layer: type, caplog: pytest.LogCaptureFixture) -> None:
    with Uvicorn(echo_one, http=layer) as server, Peer(server.port) as peer:
        peer.send(head("/here?secret=1") + text("early"))
        answer = peer.refusal()
    assert answer.status == 500
    assert b"uvicorn" not in answer.body
    (line,) = [record.message for record in caplog.records if "refused" in record.message]
    assert '"WebSocket /here?secret=***" refused with 500: expected a uvicorn HTTP class' in line
    assert f"got {layer.__name__} of uvicorn {uvicorn.__version__}" in line
