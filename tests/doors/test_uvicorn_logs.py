"""Log lines under the uvicorn class: one at the open, one at the close, and no secret in either."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.support.asgi import Receive, Scope, Send, accept, echo
from tests.support.peers import Peer, close, head, text
from tests.support.threaded_servers import Uvicorn
from tests.support.waiting import Gate, Inbox, eventually
from watershed_mw import WatershedASGI, live_connections
from watershed_mw.uvicorn import WatershedProtocol

CLOSED = re.compile(r'127\.0\.0\.1:(\d+) - "WebSocket (\S+)" \[closed (\d+)\] (\d+\.\d{3}) s, (\d+) bytes received, '
                    r"(\d+) bytes sent")  # fmt: skip


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The INFO records of uvicorn's error logger, to which uvicorn itself logs WebSockets."""
    return [one.getMessage() for one in caplog.records if one.name == "uvicorn.error" and one.levelno == logging.INFO]


def closed(caplog: pytest.LogCaptureFixture, port: int) -> re.Match[str]:
    """The one line about the close of the connection from this port."""
    (found,) = eventually(
        lambda: [found for one in lines(caplog) if (found := CLOSED.fullmatch(one)) and found[1] == str(port)]
    )
    return found


def leave_cleanly(peer: Peer) -> None:
    peer.send(close(4000, "bye"))
    assert peer.close() == (4000, "bye")


def test_a_log_line_below_the_level_is_not_formatted(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")

    def never(*args: object) -> str:
        raise AssertionError(args)

    monkeypatch.setattr("watershed_mw.uvicorn.log.shown_path", never)
    run = uvicorns.run(echo)
    with Peer(uvicorns.port) as peer:
        peer.open()
        leave_cleanly(peer)
    assert run.outcome() is None
    assert caplog.records == []


@pytest.mark.need(28)
@pytest.mark.parametrize("leave, code", [(leave_cleanly, 4000), (Peer.vanish, 1006)], ids=["Close", "RST"])
@pytest.mark.parametrize("native", [False, True], ids=["messages", "native"])
def test_open_and_close_are_logged(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, leave: Callable[[Peer], Any], code: int, native: bool
) -> None:
    async def native_echo(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept()
        async for message in connection:
            await connection.send(message)

    caplog.set_level(logging.INFO)
    uvicorns.run(WatershedASGI(native_echo) if native else echo)
    with Peer(uvicorns.port) as peer:
        port = peer.sock.getsockname()[1]
        peer.open("/a%20b")
        peer.send(text("12345"))
        assert peer.text() == "12345"
        leave(peer)
    found = closed(caplog, port)
    assert f'127.0.0.1:{port} - "WebSocket /a%20b" [accepted]' in lines(caplog)
    sent_close = len(close(4000, "bye")) if code == 4000 else 0
    assert (found[2], found[3]) == ("/a%20b", str(code))
    assert 0 <= float(found[4]) < 10
    assert int(found[5]) == len(text("12345")) + sent_close
    assert int(found[6]) == len(text("12345")) - 4 + (sent_close - 4 if sent_close else 0)  # a server does not mask


@pytest.mark.need(11)
def test_the_values_of_a_query_string_are_not_logged(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/open":
            await accept(receive, send)
        elif scope["path"] == "/denied":
            await receive()
            await send({"type": "websocket.close"})
        else:
            raise LookupError

    caplog.set_level(logging.INFO)
    run = uvicorns.run(app)
    for path, status in (("/open", 101), ("/denied", 403), ("/broken", 500)):
        with Peer(uvicorns.port) as peer:
            peer.send(head(f"{path}?token=secret&room=secret%20blue&secret"))
            assert peer.answer().status == status
        run.outcome()
    with Peer(uvicorns.port) as peer:
        peer.send(head("/bad?token=secret", Sec_WebSocket_Version="7"))
        assert peer.answer().status == 426
    eventually(lambda: any("[closed" in line for line in lines(caplog)))
    shown = "?token=***&room=***&***"
    assert any(f'"WebSocket /open{shown}" [accepted]' in line for line in lines(caplog))
    assert any(f'"WebSocket /denied{shown}" 403' in line for line in lines(caplog))
    assert any(f'"WebSocket /open{shown}" [closed ' in line for line in lines(caplog))
    assert "secret" not in caplog.text


class Talkative(WatershedProtocol):
    log_query = True


def test_log_query_shows_the_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Uvicorn(echo, ws=Talkative) as server:
        with Peer(server.port) as peer:
            peer.open("/open?token=not-so%20secret&x=%0d%0a")
            peer.send(close())
            peer.close()
        eventually(lambda: any("[closed" in line for line in lines(caplog)))
    expected = '"WebSocket /open?token=not-so%20secret&x=%0d%0a" [accepted]'
    assert any(expected in line for line in lines(caplog))


def test_behind_a_proxy_the_logged_client_is_the_forwarded_one(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture
) -> None:
    remotes = Inbox[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = await scope["watershed"].accept()
        remotes.put(connection.remote)

    caplog.set_level(logging.INFO)
    uvicorns.run(ProxyHeadersMiddleware(WatershedASGI(app), trusted_hosts="127.0.0.1"))  # type: ignore[arg-type]
    with Peer(uvicorns.port) as peer:
        peer.open(X_Forwarded_For="192.0.2.7", X_Forwarded_Proto="https")
        peer.close()
    assert remotes.get() == "192.0.2.7"
    eventually(lambda: any(line.startswith('192.0.2.7 - "WebSocket /" [closed ') for line in lines(caplog)))


@pytest.mark.need(28)
@pytest.mark.parametrize("native", [False, True], ids=["messages", "native"])
def test_live_connections_can_be_inspected_and_ended_from_any_thread(uvicorns: Uvicorn, native: bool) -> None:
    accepted = Gate[None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if native:
            connection = await scope["watershed"].accept(["b"])
            accepted.put(None)
            await connection.run()
        else:
            await accept(receive, send, subprotocol="b")
            accepted.put(None)
            while (await receive())["type"] != "websocket.disconnect":
                pass

    before = {one.id for one in live_connections()}
    uvicorns.run(WatershedASGI(app) if native else app)
    with Peer(uvicorns.port) as peer:
        peer.open(Sec_WebSocket_Protocol="a, b")
        accepted.get()
        (live,) = [one for one in live_connections() if one.id not in before]
        assert live.remote == "{}:{}".format(*peer.sock.getsockname())
        assert (live.protocol, live.closed, live.stats.messages_received) == ("b", False, 0)
        assert 0 <= live.duration < 10
        live.end("thrown out", code=4003)  # from the test's thread, which is not the server's
        assert peer.close() == (4003, "thrown out")
        peer.send(close(4003))
        peer.end()
    eventually(lambda: live not in live_connections())
    lasted = live.duration
    assert lasted == live.duration, "it goes on counting after the end"
