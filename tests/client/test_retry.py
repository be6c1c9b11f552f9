"""Reconnecting: what is retried, after which pause, and how an iteration ends."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.support import LIMIT
from tests.support.clients import Client
from tests.support.scripted import Visit, echoing
from tests.support.waiting import in_thread, until
from tests.support.wire_peer import TEXT
from watershed_mw import ConnectionClosed, HandshakeError, UnsupportedServerError
from watershed_mw.client import Backoff, Connect, connect, worth_retrying
from watershed_mw.client.retry import Attempts

FAST = Backoff(initial=0.001, maximum=0.002)


def each(client: Client, connecting: Connect, stop: Callable[[int, Any], bool]) -> list[Any]:
    """Iterate, receiving what each connection sends, until ``stop(number, messages)`` returns true."""
    seen: list[Any] = []
    if client.loop is None:
        for conn in connecting:
            seen.append(list(conn))
            if stop(len(seen), seen[-1]):
                break
        return seen

    async def iterate() -> None:
        async for conn in connecting:
            seen.append([message async for message in conn])
            if stop(len(seen), seen[-1]):
                break

    client.run(iterate())
    return seen


def greet_and_close(visit: Visit) -> None:
    visit.switch()
    visit.send(TEXT, f"{visit.number}")
    visit.begin_close(1012)


@pytest.mark.need(26, 30)
def test_iterating_yields_one_connection_after_another(client: Client, serve: Serve) -> None:
    """As when a proxy in front is reloaded, or a server restarts."""

    def script(visit: Visit) -> None:
        if visit.number == 1:
            visit.request().reset()
        elif visit.number == 2:
            visit.answer("503 Service Unavailable", ("Retry-After", "0"))
        elif visit.number == 3:
            visit.switch().reset()
        else:
            greet_and_close(visit)

    seen = each(client, connect(serve(script).url(), backoff=FAST), lambda number, _: number == 4)
    assert seen == [["0"], [], ["4"], ["5"]]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "400 Bad Request", "200 OK"])
def test_a_refused_client_does_not_retry(client: Client, serve: Serve, status: str) -> None:
    server = serve(lambda visit: visit.answer(status))
    hook = (lambda error: True) if status[:3] in ("401", "403", "404") else worth_retrying
    with pytest.raises(HandshakeError) as caught:
        each(client, connect(server.url(), backoff=FAST, retry=hook), lambda *_: False)
    assert caught.value.status == int(status[:3])
    # A 400 may be about the parameters with which compression was offered: one more request comes without them.
    assert server.visits == (2 if caught.value.status == 400 else 1)


def test_the_retry_hook_decides(client: Client, serve: Serve) -> None:
    asked: list[Exception] = []

    def hook(error: Exception) -> bool:
        asked.append(error)
        return len(asked) < 3

    server = serve(lambda visit: visit.answer("418 Teapot") if visit.number == 0 else greet_and_close(visit))
    assert each(client, connect(server.url(), backoff=FAST, retry=hook), lambda *_: False) == [["1"], ["2"]]
    assert [type(error) for error in asked] == [HandshakeError, ConnectionClosed, ConnectionClosed]
    assert [getattr(error, "code", None) for error in asked] == [None, 1012, 1012]


def test_breaking_out_ends_the_connection(client: Client, serve: Serve) -> None:
    ended = threading.Event()

    def script(visit: Visit) -> None:
        visit.switch().echo()
        ended.set()

    connecting = connect(serve(script).url())
    if client.loop is None:
        conn = next(iter(connecting))
    else:

        async def iterate() -> Any:
            async for conn in connecting:
                return conn
            return None

        conn = client.run(iterate())
    assert ended.wait(LIMIT)
    until(lambda: conn.close_code == 1000)


def test_breaking_out_at_program_exit_ends_the_connection(serve: Serve) -> None:
    """The event loop is closed right afterwards, and nothing is awaited."""

    async def iterate(connecting: Connect) -> Any:
        async for conn in connecting:
            await conn.send("x")
            return conn
        return None

    server = serve(echoing)
    assert asyncio.run(iterate(connect(server.url()))).close_code == 1000


def test_an_exception_in_the_body_ends_the_connection(client: Client, serve: Serve) -> None:
    ended = threading.Event()

    def script(visit: Visit) -> None:
        visit.switch().echo()
        ended.set()

    connecting = connect(serve(script).url(), backoff=FAST)

    def iterate() -> None:
        for _ in connecting:
            raise ZeroDivisionError

    async def iterate_on_loop() -> None:
        async for _ in connecting:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.do(iterate if client.loop is None else iterate_on_loop)
    assert ended.wait(LIMIT)


def test_an_object_can_be_iterated_twice(client: Client, serve: Serve) -> None:
    connecting = connect(serve(greet_and_close).url(), backoff=FAST)
    if client.loop is None:
        calls = [in_thread(lambda: each(client, connecting, lambda number, _: number == 2)) for _ in range(2)]
        results = [call.result(LIMIT) for call in calls]
    else:

        async def iterate() -> list[Any]:
            seen = []
            async for conn in connecting:
                seen.append([message async for message in conn])
                if len(seen) == 2:
                    break
            return seen

        async def both() -> list[Any]:
            return list(await asyncio.gather(iterate(), iterate()))

        results = client.run(both())
    assert sorted(message for seen in results for messages in seen for message in messages) == ["0", "1", "2", "3"]


def test_cancelling_during_a_pause_stops_the_iteration(async_client: Client, serve: Serve) -> None:
    server = serve(lambda visit: visit.answer("503 No"))
    waiting = asyncio.Event()

    def hook(error: Exception) -> bool:
        waiting.set()
        return True

    async def iterate() -> None:
        async for _ in connect(server.url(), backoff=Backoff(initial=LIMIT, maximum=LIMIT), retry=hook):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(iterate())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async_client.run(cancel())
    assert server.visits == 1


def test_an_interrupt_during_a_pause_stops_the_iteration(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    connections = iter(connect(serve(echoing).url()))
    conn = next(connections)
    with pytest.raises(KeyboardInterrupt):
        next(connections)
    assert conn.close_code == 1000


def test_a_hook_that_fails_fails_the_iteration(client: Client, serve: Serve) -> None:
    def hook(error: Exception) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        each(client, connect(serve(greet_and_close).url(), retry=hook), lambda *_: False)


# --- how long, and what -----------------------------------------------------------------------------------------


def test_the_bound_grows_up_to_a_maximum() -> None:
    backoff = Backoff()
    assert [backoff.bound(number) for number in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.bound(10**6) == 60
    assert Backoff(initial=5, factor=1).bound(100_000) == 5


def test_pauses_are_random_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(1)
    waits = [Backoff().delay(3) for _ in range(1000)]
    assert 0 <= min(waits) < 0.1
    assert 3.9 < max(waits) <= 4


@pytest.mark.parametrize(
    "arguments",
    [{"initial": 0}, {"initial": -1}, {"factor": 0.5}, {"initial": 2, "maximum": 1}, {"maximum": float("nan")}],
)
def test_a_backoff_of_zero_does_not_pause(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 < initial <= maximum and factor >= 1"):
        Backoff(**arguments)


def test_a_connection_that_lasted_resets_the_backoff() -> None:
    attempts = Attempts(Backoff(initial=1, factor=1000, maximum=1e9), lambda error: True)
    assert next(attempts) == 0
    for _ in range(4):
        assert attempts.failed(OSError())
    attempts.ended(1006, "", 60.0)
    assert next(attempts) <= 1
    # One that is taken and dropped at once is a failure like any other.
    attempts.ended(1006, "", 0.1)
    assert next(attempts) is not None
    assert attempts._failures == 2


@pytest.mark.parametrize(
    "fields, least",
    [
        ([("retry-after", "7")], 7.0),
        ([("retry-after", "9" * 30)], 60.0),
        ([("retry-after", "Wed, 21 Oct 2026 07:28:10 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")], 10.0),
        ([("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")], 0.0),
        ([("retry-after", "Wed, 21 Oct 2026 07:28:10 GMT")], 0.0),
        ([("retry-after", "soon")], 0.0),
        ([("retry-after", "-1")], 0.0),
        ([("retry-after", "²")], 0.0),
        ([("retry-after", ",")], 0.0),
    ],
)
def test_retry_after_extends_the_pause(fields: list[tuple[str, str]], least: float) -> None:
    clients = [Attempts(Backoff(), lambda error: True) for _ in "12"]
    assert all(client.failed(HandshakeError("", headers=fields)) for client in clients)
    delays = [next(client) for client in clients]
    assert all(least <= delay <= least + 1 for delay in delays)
    assert delays[0] != delays[1]  # not all of its clients at once
    assert clients[0].failed(OSError())


@pytest.mark.parametrize(
    "error, worth",
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ConnectionClosed(1006), True),
        (ssl.SSLError(), True),
        (ssl.SSLCertVerificationError(), False),
        (HandshakeError("", status=503), True),
        (HandshakeError("", status=429), True),
        (HandshakeError("", status=426), False),
        (HandshakeError("", status=101), False),
        (HandshakeError("", status=407), False),
        (UnsupportedServerError(""), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_worth_retrying_classifies_errors(error: Exception, worth: bool) -> None:
    assert worth_retrying(error) is worth


# --- what is logged ---------------------------------------------------------------------------------------------


def test_each_attempt_is_logged_with_its_cause_and_pause(
    client: Client, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watershed_mw.client")

    def script(visit: Visit) -> None:
        if visit.number == 1:
            visit.request().reset()
        elif visit.number == 2:
            visit.answer("503 Service Unavailable")
        elif visit.number == 4:
            visit.switch().reset()
        else:
            greet_and_close(visit)

    server = serve(script)
    url = server.url("/?token=hidden", user="me:hidden@")
    each(client, connect(url, backoff=FAST), lambda number, _: number == 4)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if "client" in record.name]
    where, pause = re.escape(server.url("/", scheme="http")), r"in 0\.00 s"
    expected = [
        ("INFO", rf"{where}: the WebSocket connection has ended with code 1012; attempt 1 {pause}"),
        ("WARNING", rf"{where}: .*(Reset|HTTP answer).*; attempt 2 {pause}"),
        ("WARNING", rf"{where}: expected status 101 .*, got 503 Service Unavailable from {where}; attempt 3 {pause}"),
        ("INFO", rf"reconnected to {where} at attempt 3"),
        ("INFO", rf"{where}: the WebSocket connection has ended with code 1012; attempt 1 {pause}"),
        ("INFO", rf"reconnected to {where} at attempt 1"),
        ("WARNING", rf"{where}: the WebSocket connection has ended with code 1006; attempt 1 {pause}"),
        ("INFO", rf"reconnected to {where} at attempt 1"),
    ]
    assert [level for level, _ in lines] == [level for level, _ in expected]
    for (_, line), (_, pattern) in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert "hidden" not in str(lines)


def test_a_servers_reason_cannot_add_a_log_line(either: Client, caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(FAST, worth_retrying)
    attempts.ended(4000, "bad\nWARNING forged\x1b[0m", 0.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "watershed_mw.client"]
    assert line.isprintable()


def test_a_single_connection_logs_nothing(client: Client, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "watershed_mw.client")
    client.open(serve(echoing).url()).end()
    assert [record for record in caplog.records if "client" in record.name] == []
