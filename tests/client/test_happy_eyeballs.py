"""Host names with several addresses (RFC 8305): the first that answers is used, in both flavours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.support import LIMIT, SOON
from tests.support.clients import Client
from tests.support.scripted import Script, echoing, http_proxy, silent_address, socks_proxy
from watershed_mw.client import happy_eyeballs
from watershed_mw.client.happy_eyeballs import Address, connect_first

Names = Callable[..., None]
REFUSED: Address = (socket.AF_INET, ("127.0.0.1", 1))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Resolve the name ``many.test`` to these addresses, on every event loop and in threads."""
    known: dict[str, list[Address]] = {}
    resolve, resolve_blocking = happy_eyeballs.resolve, happy_eyeballs.resolve_blocking

    async def of_loop(host: str, port: int) -> list[Address]:
        return known[host] if host in known else await resolve(host, port)

    def of_thread(host: str, port: int) -> list[Address]:
        return known[host] if host in known else resolve_blocking(host, port)

    monkeypatch.setattr(happy_eyeballs, "resolve", of_loop)
    monkeypatch.setattr(happy_eyeballs, "resolve_blocking", of_thread)
    return lambda *addresses: known.update({"many.test": list(addresses)})


@pytest.fixture(scope="module")
def holes() -> Iterator[list[Address]]:
    """Addresses that neither accept nor refuse connections."""
    with silent_address() as one, silent_address() as other:
        yield [one, other]


def at(server: Any) -> Address:
    return socket.AF_INET, ("127.0.0.1", server.port)


@pytest.mark.slow
def test_an_address_that_does_not_answer_is_skipped(
    client: Client, serve: Serve, names: Names, holes: list[Address]
) -> None:
    server = serve(echoing)
    names(*holes, at(server), REFUSED)
    began = time.monotonic()
    talk = client.open("ws://many.test/", open_timeout=LIMIT)
    assert 2 * happy_eyeballs.DELAY <= time.monotonic() - began < SOON
    talk.echo()
    talk.end()
    assert server.heads[0].lower().count(b"host: many.test\r\n") == 1


def test_an_address_that_refuses_causes_no_delay(client: Client, serve: Serve, names: Names) -> None:
    """Each of them would add a quarter of a second, if its failure did not start the next one."""
    server = serve(echoing)
    names(*[(socket.AF_INET, (f"127.0.0.{number}", 1)) for number in range(1, 120)], at(server))
    talk = client.open("ws://many.test/", open_timeout=LIMIT)
    talk.echo()
    talk.end()


def test_if_none_answers_the_error_lists_a_reason_for_each(client: Client, names: Names) -> None:
    names(REFUSED, (socket.AF_INET6, ("::1", 1, 0, 0)))
    with pytest.raises(ConnectionRefusedError) as caught:
        client.open("ws://many.test/", open_timeout=LIMIT)
    assert "no address answers: 127.0.0.1:1: " in str(caught.value)
    assert "; [::1]:1: " in str(caught.value)


@pytest.mark.slow
def test_all_addresses_share_the_timeout(client: Client, names: Names, holes: list[Address]) -> None:
    names(REFUSED, *holes)
    with pytest.raises(TimeoutError, match="open_timeout") as caught:
        client.open("ws://many.test/", open_timeout=0.4)
    if client.loop is None:
        assert str(caught.value.__cause__).startswith("no address answered in time; 127.0.0.1:1: ")


@pytest.mark.parametrize("kind, script", [("http", http_proxy()), ("socks5h", socks_proxy())])
def test_addresses_of_a_proxy_are_raced_too(
    client: Client, serve: Serve, names: Names, holes: list[Address], kind: str, script: Script
) -> None:
    names(holes[0], at(serve(script)))
    server = serve(echoing)
    talk = client.open(server.url(), proxy=f"{kind}://many.test", open_timeout=LIMIT)
    talk.echo()
    talk.end()


def test_cancelling_leaves_nothing_open(async_client: Client, holes: list[Address]) -> None:
    async def begin() -> None:
        task = asyncio.create_task(connect_first(holes))
        while len(asyncio.all_tasks()) < 4:  # noqa: ASYNC110  # this, that, and an attempt for each
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    async_client.run(begin())


def test_the_second_connection_is_closed(async_client: Client, serve: Serve) -> None:
    async def race() -> None:
        server = at(serve(lambda visit: visit.wait_until_gone()))
        for _ in range(20):
            with contextlib.closing(await connect_first([server, server, server])) as sock:
                assert sock.getpeername() == server[1]

    async_client.run(race())


@pytest.mark.parametrize(
    "given, order",
    [
        ("6a 6b 4a 4b", "6a 4a 6b 4b"),
        ("4a 4b 4c 6a", "4a 6a 4b 4c"),
        ("6a 4a", "6a 4a"),
        ("4a 4a 4b", "4a 4b"),
        ("4a", "4a"),
    ],
)
def test_address_families_alternate(monkeypatch: pytest.MonkeyPatch, given: str, order: str) -> None:
    families = {"4": socket.AF_INET, "6": socket.AF_INET6}
    infos = [(families[each[0]], socket.SOCK_STREAM, 6, "", (each, 80)) for each in given.split()]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: infos)
    assert [address[0] for _, address in happy_eyeballs.resolve_blocking("many.test", 80)] == order.split()


def test_a_literal_address_is_not_resolved() -> None:
    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("a thread was asked")

    loop = Loop()
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        ((found, address),) = loop.run_until_complete(happy_eyeballs.resolve(host, 80))
        assert (found, address[:2]) == (family, (host, 80))
    loop.close()
