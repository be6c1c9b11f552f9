"""RFC 6455 and RFC 7692 between this package and four others, both ways.

Every peer's client talks to each of our integrations, and each of our clients to every peer's server. A scenario runs
for all pairs that have the features it needs; nothing is skipped at run time.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import pytest

from tests.support.parties import (
    Client,
    Ending,
    Feature,
    Message,
    Refused,
    Server,
    Session,
    node_peers,
    ours,
    python_peers,
)

pytestmark = pytest.mark.programs

PEER_CLIENTS = {
    "websockets": python_peers.WebsocketsClient.features,
    "picows": python_peers.PicowsClient.features,
    "npm-ws": node_peers.FEATURES["ws"],
    "npm-watershed": node_peers.FEATURES["watershed"],
}
PEER_SERVERS = PEER_CLIENTS | {"websockets": python_peers.WebsocketsServer.features}
OUR_CLIENTS = {"our-threads": ours.ThreadClient.features, "our-asyncio": ours.AsyncClient.features}
OUR_SERVERS = {
    "raw-threads": ours.RawThreadServer.features,
    "raw-asyncio": ours.RawAsyncServer.features,
    "uvicorn": ours.UvicornServer.features,
    "asgi": ours.AsgiServer.features,
    "wsgi": ours.WsgiServer.features,
    "wsgi-background": ours.WsgiServer.features,
}
PAIRS = [
    *((client, server) for client in PEER_CLIENTS for server in OUR_SERVERS),
    *((client, server) for client in OUR_CLIENTS for server in PEER_SERVERS),
]
CLIENTS = PEER_CLIENTS | OUR_CLIENTS
SERVERS = PEER_SERVERS | OUR_SERVERS
NO_NODE = os.environ.get("WATERSHED_MW_NO_NODE") == "1"


def pairs(client: set[Feature] | None = None, server: set[Feature] | None = None) -> pytest.MarkDecorator:
    """Run the test with every pair whose client and server have these features."""
    chosen = []
    for one, other in PAIRS:
        if (client or set()) <= CLIENTS[one] and (server or set()) <= SERVERS[other]:
            left_out = NO_NODE and (one.startswith("npm-") or other.startswith("npm-"))
            marks = [pytest.mark.skip(reason="WATERSHED_MW_NO_NODE=1")] if left_out else []
            chosen.append(pytest.param(one, other, id=f"{one}-to-{other}", marks=marks))
    assert chosen
    return pytest.mark.parametrize("client, server", chosen, indirect=True)


@pytest.fixture
def path() -> str:
    """A path of its own for each test: servers record by path how a connection ended."""
    return f"/{uuid.uuid4().hex}"


class Dial(Protocol):
    """Opens a connection from the test's client to its server."""

    def __call__(self, protocols: Sequence[str] = (), *, compression: bool = False) -> Session: ...


@pytest.fixture
def dial(client: Client, server: Server, path: str) -> Iterator[Dial]:
    with ExitStack() as stack:

        def dial(protocols: Sequence[str] = (), *, compression: bool = False) -> Session:
            session = client.open(server.url + path, protocols, compression=compression)
            stack.callback(session.abort)  # without effect, unless the test failed half-way
            return session

        yield dial


@pytest.fixture
def session(dial: Dial) -> Session:
    return dial()


def finish(session: Session, server: Server, path: str) -> None:
    """Close in an orderly way: neither side may see anything but a normal closing handshake."""
    session.close(1000, "")
    assert server.ending(path) == Ending(1000, "", reset=False)
    assert not session.ending().reset


MESSAGES: list[Message] = [
    "plain",
    "Grüße, 水, 🌊",
    "",
    b"",
    bytes(range(256)),
    # Both sides of the two places where the length of a frame takes more bytes (section 5.2).
    "a" * 125,
    "b" * 126,
    b"c" * 65535,
    b"d" * 65536,
]


@pairs()
def test_text_and_binary_messages_are_echoed(session: Session, server: Server, path: str) -> None:
    for message in MESSAGES:
        session.send(message)
        assert session.receive() == message
    finish(session, server, path)


@pairs()
def test_one_mebibyte_is_echoed(session: Session, server: Server, path: str) -> None:
    binary = random.Random(1).randbytes(2**20)
    text = "水🌊é!" * (2**20 // 10)
    for message in (binary, text):
        session.send(message)
        assert session.receive() == message
    finish(session, server, path)


@pairs()
def test_a_burst_is_echoed_in_order(session: Session, server: Server, path: str) -> None:
    sent = [f"message {number}" for number in range(300)]
    for message in sent:
        session.send(message)
    assert [session.receive() for _ in sent] == sent
    finish(session, server, path)


@pairs(client={Feature.FRAGMENTS})
def test_a_fragmented_message_from_the_client_is_joined(session: Session, server: Server, path: str) -> None:
    text = "Grüße, 水, 🌊".encode()
    session.send_fragments([text[i : i + 1] for i in range(len(text))], text=True)  # cuts through characters
    assert session.receive() == text.decode()
    session.send_fragments([b"", b"\x00\x01", b"", b"\xff", b""], text=False)
    assert session.receive() == b"\x00\x01\xff"
    finish(session, server, path)


@pairs(server={Feature.FRAGMENTS})
def test_a_fragmented_message_from_the_server_is_joined(session: Session, server: Server, path: str) -> None:
    session.send("!fragments")
    assert session.receive() == "one two three"
    finish(session, server, path)


@pairs()
def test_the_common_subprotocol_is_chosen(dial: Dial, server: Server, path: str) -> None:
    session = dial(["unknown.v1", "json"])
    assert session.protocol == "json"
    finish(session, server, path)


@pairs()
def test_without_an_offer_no_subprotocol_is_chosen(session: Session, server: Server, path: str) -> None:
    assert session.protocol is None
    finish(session, server, path)


@pairs(server={Feature.REFUSAL})
def test_unknown_subprotocols_are_refused(dial: Dial) -> None:
    with pytest.raises(Refused) as refusal:
        dial(["JSON"])
    assert refusal.value.status == 400


@pairs()
def test_a_refusal_reaches_the_client_with_its_status(client: Client, server: Server) -> None:
    with pytest.raises(Refused) as refusal:
        client.open(server.url + "/forbidden")
    assert refusal.value.status == 403


@pairs(client={Feature.PING})
def test_a_ping_from_the_client_is_answered(session: Session, server: Server, path: str) -> None:
    for data in (b"are you there?", b"", bytes(range(125))):
        assert session.ping(data) == data
    finish(session, server, path)


@pairs(server={Feature.PING})
def test_a_ping_from_the_server_is_answered(session: Session, server: Server, path: str) -> None:
    session.send("!ping are you there?")
    assert session.receive() == "pong are you there?"
    finish(session, server, path)


@pairs(client={Feature.COMPRESSION}, server={Feature.COMPRESSION})
def test_compressed_messages_are_echoed(dial: Dial, server: Server, path: str) -> None:
    session = dial(compression=True)
    assert session.compressed
    noise = random.Random(2).randbytes(100_000)
    # The same messages twice: the second time the compressor looks back into the first (context takeover).
    for message in ("water " * 30_000, noise, "", "short", "water " * 30_000, noise):
        session.send(message)
        assert session.receive() == message
    finish(session, server, path)


@pairs(client={Feature.COMPRESSION, Feature.FRAGMENTS}, server={Feature.COMPRESSION})
def test_a_compressed_and_fragmented_message_is_echoed(dial: Dial, server: Server, path: str) -> None:
    session = dial(compression=True)
    session.send_fragments([b"water " * 5_000, b"", b"and more water " * 5_000], text=True)
    assert session.receive() == "water " * 5_000 + "and more water " * 5_000
    finish(session, server, path)


@pairs()
def test_without_an_offer_nothing_is_compressed(session: Session, server: Server, path: str) -> None:
    assert not session.compressed
    finish(session, server, path)


@pairs()
def test_close_code_and_reason_from_the_client_arrive(
    client: Client, server: Server, session: Session, path: str
) -> None:
    code = 4001 if Feature.ANY_CODE in client.features & server.features else 1000
    session.close(code, "bis später 🌊")
    assert server.ending(path) == Ending(code, "bis später 🌊", reset=False)
    assert not session.ending().reset


@pairs(client={Feature.BARE_CLOSE})
def test_a_close_without_a_code_is_1005(session: Session, server: Server, path: str) -> None:
    session.close(None)
    assert server.ending(path) == Ending(1005, "", reset=False)


@pairs()
def test_close_code_and_reason_from_the_server_arrive(
    client: Client, server: Server, session: Session, path: str
) -> None:
    code = 4002 if Feature.ANY_CODE in client.features & server.features else 1000
    session.send("the last message")
    session.send(f"!close {code} bis später 🌊")
    assert session.receive() == "the last message"
    assert session.ending() == Ending(code, "bis später 🌊", reset=False)
    assert not server.ending(path).reset


@pairs(client={Feature.ABORT})
def test_the_server_notices_that_the_client_vanished(session: Session, server: Server, path: str) -> None:
    session.send("still here")
    assert session.receive() == "still here"
    session.abort()
    assert server.ending(path).reset


@pairs(server={Feature.ABORT})
def test_the_client_notices_that_the_server_vanished(session: Session, server: Server, path: str) -> None:
    session.send("!abort")
    assert session.ending().reset
