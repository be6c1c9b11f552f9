"""Messages (RFC 6455 section 5.6): everything sent arrives, pulled or pushed, on every kind of connection."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import until
from tests.support.ways import FEW, IN_BACKGROUND, PULLING, Both, Link, Live, Opener, Way
from tests.support.wire_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close_payload
from watershed_mw import ConnectionClosed, LocalProtocolError

pulling = pytest.mark.parametrize("way", PULLING, ids=str)
few = pytest.mark.parametrize("way", FEW, ids=str)

MIB = 2**20
MESSAGES: list[tuple[int, bytes]] = [
    (TEXT, b"hello"),
    (TEXT, "Käse ☕ 🧀".encode()),
    (TEXT, b""),
    (BINARY, b""),
    (BINARY, bytes(range(256))),
    (TEXT, b"x" * 125),
    (TEXT, b"x" * 126),
    (BINARY, b"y" * 65535),
    (BINARY, b"y" * 65536),
    (TEXT, b"z" * MIB),
    (BINARY, b"\xff" * MIB),
]


def echo(conn: Any) -> None:
    conn.on("text", conn.send)
    conn.on("binary", conn.send)


def as_message(opcode: int, payload: bytes) -> str | bytes:
    return payload.decode() if opcode == TEXT else payload


def test_every_message_is_echoed_unchanged(link: Link) -> None:
    live, peer = link(setup=echo)
    over = live.run()
    for opcode, payload in MESSAGES:
        peer.send(opcode, payload)
        peer.expect(opcode, payload)
    peer.begin_close(1000, "bye")
    assert over.result(LIMIT) == (1000, "bye")


@pulling
def test_every_message_is_pulled_unchanged(link: Link) -> None:
    live, peer = link()
    for opcode, payload in MESSAGES:
        peer.send(opcode, payload)
        assert live.receive() == as_message(opcode, payload)
        live.send(as_message(opcode, payload))
        peer.expect(opcode, payload)


@pulling
def test_fragments_become_one_message(link: Link) -> None:
    live, peer = link()
    euro = "a€b".encode()
    peer.send(TEXT, euro[:2], fin=False)  # cut within a character
    peer.send(CONTINUATION, b"", fin=False)
    peer.send(PING, b"between")
    peer.send(CONTINUATION, euro[2:])
    peer.send_all([Frame(BINARY, b"1", False), Frame(CONTINUATION, b"2", False), Frame(CONTINUATION, b"3")])
    assert live.receive() == "a€b"
    assert live.receive() == b"123"
    peer.expect(PONG, b"between")


@pytest.mark.advisory("aiohttp#13350")
@pulling
def test_bytes_may_arrive_one_at_a_time(link: Link) -> None:
    live, peer = link()
    receiving = live.begin("receive", LIMIT)
    for octet in peer.frame(TEXT, "slow") + peer.frame(BINARY, b"slower"):
        peer.write(bytes([octet]))
    assert receiving.result(LIMIT) == "slow"
    assert live.receive() == b"slower"


# Larger than what is read at a time, and smaller; several large ones in a row, and small ones between.
SIZES = (300_000, 300_001, 5, 200_000, 0, 1_000_000, 1_000_000, 131_072, 131_058, 70, 65_536, 250_000, 126, 400_000)
PIECES = (1, 50_000, 131_072, 3, 400_000, 131_071, 14, 262_144)


@pulling
def test_large_messages_arrive_with_small_ones_in_between(opener: Opener, way: Way) -> None:
    """In pieces that match neither messages nor reads, alternating between two connections of one loop."""
    live, peer = zip(*(opener.open(way) for _ in range(2)), strict=True)
    messages = [
        [
            bytes((number + size + index) % 256 for index in range(251)) * (size // 251) + bytes(size % 251)
            for size in SIZES
        ]
        for number in range(2)
    ]

    async def on_loop(conn: Any) -> list[bytes]:
        return [await conn.receive() for _ in SIZES]

    def in_threads(conn: Any) -> list[bytes]:
        return [conn.receive() for _ in SIZES]

    receiving = [end.do(on_loop if way.on_loop else in_threads) for end in live]
    streams = [
        memoryview(b"".join(end.frame(BINARY, data) + end.frame(PING) for data in stream))
        for end, stream in zip(peer, messages, strict=True)
    ]
    for size in itertools.cycle(PIECES):
        for number, end in enumerate(peer):
            end.write(bytes(streams[number][:size]))
            streams[number] = streams[number][size:]
        if not any(streams):
            break
    assert [future.result(LIMIT) for future in receiving] == messages
    for end in peer:
        for _ in SIZES:
            end.expect(PONG)


@pulling
def test_large_and_small_messages_may_alternate(link: Link, way: Way) -> None:
    """Enough small ones, one at a time, to return reading to its state before the large one."""
    live, peer = link()

    def reads_in_place() -> bool:
        return way.on_loop and live.do(lambda conn: conn._flow.reader is not None).result(LIMIT) is True

    for number in range(3):
        large = bytes([number]) * 200_000
        peer.send(BINARY, large)
        assert live.receive() == large
        assert reads_in_place() is way.on_loop
        for text in map(str, range(40)):
            peer.send(TEXT, text)
            assert live.receive() == text
        assert not reads_in_place()


def test_all_flavours_interoperate(both: Both) -> None:
    """Compression included, which the hand-driven peer does not support."""
    live, other = both(setup=echo, compression=True)
    over = live.run()
    for opcode, payload in MESSAGES:
        other.send(as_message(opcode, payload))
        assert other.receive() == as_message(opcode, payload)
    other.call("end", "done", code=4321)
    assert over.result(LIMIT) == (4321, "done")
    assert live.conn.stats.messages_received == len(MESSAGES)
    assert live.conn.stats.bytes_received == other.conn.stats.bytes_sent


@pytest.mark.parametrize("buffer", [bytearray, memoryview], ids=["bytearray", "memoryview"])
def test_the_callers_buffer_is_not_modified(link: Link, buffer: Any) -> None:
    """Masking uses other memory, and a change after ``send`` does not affect the sent message."""
    live, peer = link()
    if not _pulls(live):
        live.run()
    original = bytes(range(256)) * 10
    data = bytearray(original)
    live.send(buffer(data))
    assert data == original
    data[:] = bytes(len(data))
    peer.expect(BINARY, original)


def test_a_strided_view_is_sent_as_its_contents(link: Link) -> None:
    live, peer = link()
    if not _pulls(live):
        live.run()
    live.send(memoryview(b"abcdef")[::2])
    peer.expect(BINARY, b"ace")


@few
@pytest.mark.parametrize("wrong", [None, 5, 1.5, ["x"], object()], ids=lambda value: type(value).__name__)
def test_other_types_are_refused_and_nothing_is_sent(link: Link, wrong: Any) -> None:
    live, peer = link()
    if not _pulls(live):
        live.run()
    with pytest.raises(TypeError, match="expected str"):
        live.send(wrong)
    live.send("fine")
    peer.expect(TEXT, "fine")


def test_a_lone_surrogate_is_refused_and_nothing_is_sent(link: Link) -> None:
    live, peer = link()
    if not _pulls(live):
        live.run()
    with pytest.raises(LocalProtocolError, match="UTF-8"):
        live.send("\ud800")
    live.send("fine")
    peer.expect(TEXT, "fine")


def _pulls(live: Live) -> bool:
    return type(live).__name__ != "LiveInBackground"


# --- pull ---------------------------------------------------------------------------------------------


@pytest.mark.need(30)
@pulling
def test_a_timeout_of_receive_loses_nothing(link: Link) -> None:
    """Wherever within the frames the timeout strikes."""
    live, peer = link()
    stream = peer.frame(TEXT, "first") + peer.frame(TEXT, "second")
    for piece in (stream[:1], stream[1:5]):
        peer.write(piece)
        with pytest.raises(TimeoutError):
            live.receive(0.02)
    peer.write(stream[5:])
    assert live.receive() == "first"
    assert live.receive() == "second"
    with pytest.raises(TimeoutError):
        live.receive(0.02)


@pytest.mark.need(30)
@pulling
def test_a_timeout_of_zero_returns_an_available_message(link: Link) -> None:
    """Polling returns messages, too."""
    live, peer = link()
    peer.send(TEXT, "there")
    until(lambda: _poll(live) == "there", "the message is polled")
    with pytest.raises(TimeoutError):
        live.receive(0)


def _poll(live: Live) -> str | bytes | None:
    try:
        return live.receive(0)
    except TimeoutError:
        return None


@pulling
def test_iteration_stops_without_an_error_and_close_code_says_why(link: Link) -> None:
    live, peer = link()
    collecting = live.collect()
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(100)))
    peer.begin_close(4001, "enough")
    assert collecting.result(LIMIT) == [str(number) for number in range(100)]
    assert live.ended() == (4001, "enough")
    assert (live.conn.close_code, live.conn.close_reason, live.conn.closed) == (4001, "enough", True)


@pytest.mark.need(15, 30)
@pulling
def test_receive_raises_after_the_last_message(link: Link) -> None:
    live, peer = link()
    peer.write(peer.frame(TEXT, "last"), peer.frame(CLOSE, close_payload(1001, "leaving")))
    assert live.receive() == "last"
    receiving = live.begin("receive", LIMIT)
    peer.expect_close(1001)
    peer.finish()
    for _ in range(2):
        with pytest.raises(ConnectionClosed) as caught:
            receiving.result(LIMIT)
        assert (caught.value.code, caught.value.reason) == (1001, "leaving")
        receiving = live.begin("receive", LIMIT)
    with pytest.raises(ConnectionError):
        receiving.result(LIMIT)


@pytest.mark.need(30)
@pulling
def test_messages_from_before_the_end_can_be_received_after_it(link: Link) -> None:
    live, peer = link(reply_timeout=0.05)
    peer.write(peer.frame(TEXT, "one"), peer.frame(BINARY, b"two"), peer.frame(CLOSE, close_payload(1000)))
    assert live.receive() == "one"
    peer.close()
    assert live.receive() == b"two"
    with pytest.raises(ConnectionClosed):
        live.receive()


# --- push or pull -------------------------------------------------------------------------------------


@pulling
def test_messages_cannot_be_pulled_while_handlers_are_registered(link: Link) -> None:
    live, _peer = link(record=("binary",))
    with pytest.raises(LocalProtocolError, match="pulled or pushed"):
        live.receive()
    with pytest.raises(LocalProtocolError, match="pulled or pushed"):
        live.collect().result(LIMIT)


@pulling
def test_messages_can_be_pulled_beside_handlers_of_other_events(link: Link) -> None:
    live, peer = link(record=("ping", "pong", "drain"))
    peer.write(peer.frame(PING, b"p"), peer.frame(TEXT, "pulled"))
    assert live.receive() == "pulled"
    assert live.log.events == [("ping", b"p")]


def test_messages_without_a_handler_of_their_type_are_dropped(link: Link) -> None:
    live, peer = link(record=("binary",))
    over = live.run()
    peer.write(peer.frame(TEXT, "dropped"), peer.frame(BINARY, b"kept"))
    peer.begin_close()
    over.result(LIMIT)
    assert live.log.events == [("binary", b"kept")]


def test_messages_cannot_be_pulled_in_the_background(opener: Opener) -> None:
    live, _peer = opener.open(IN_BACKGROUND[0])
    live.run()
    with pytest.raises(LocalProtocolError, match="pulled or pushed"):
        live.receive()
