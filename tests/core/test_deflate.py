"""core/deflate.py: permessage-deflate's payloads (RFC 7692 section 7.2; the examples are section 7.2.3)."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.load import document
from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import deliver
from tests.support.memory import measured
from watershed_mw.core.deflate import Deflate
from watershed_mw.core.events import Event
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.states import Role
from watershed_mw.errors import RemoteProtocolError

ZLIB_DEFAULTS = DeflateOptions(window_bits=15, memory_level=8)
HELLO = bytes.fromhex("f2 48 cd c9 c9 07 00")
EMPTY = b"\x00"
MEBIBYTE = 2**20


def parameters(**changes: Any) -> DeflateParameters:
    """Full windows, context takeover both ways, zlib's defaults, except for ``changes``."""
    return DeflateParameters(**{"options": ZLIB_DEFAULTS, **changes})


def deflated(payload: bytes, bits: int = 15, level: int = -1) -> bytes:
    """A first message as a peer with zlib compresses it."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payloads: list[bytes], bits: int = 15) -> list[bytes]:
    """Our messages as a peer with zlib and context takeover inflates them."""
    inflater = zlib.decompressobj(-bits)
    return [inflater.decompress(payload + b"\x00\x00\xff\xff") for payload in payloads]


def inflate_all(deflate: Deflate, pieces: list[bytes], room: int = -1) -> bytes:
    """A message that arrives in these pieces."""
    message = b""
    for index, piece in enumerate(pieces):
        left = room if room < 0 else room - len(message)
        message += deflate.inflate(piece, left, index == len(pieces) - 1)
        while deflate.pending:
            message += deflate.inflate_more(room if room < 0 else room - len(message))
    return message


def refusal(deflate: Deflate, pieces: list[bytes], room: int = -1) -> RemoteProtocolError:
    """The error that refuses a message that arrives in these pieces."""
    with pytest.raises(RemoteProtocolError) as caught:
        inflate_all(deflate, pieces, room)
    return caught.value


# --- the worked examples of section 7.2.3 ---------------------------------------------------------

EXAMPLES = [
    pytest.param(["f2 48 cd c9 c9 07 00"], [b"Hello"], id="7.2.3.1 one block"),
    pytest.param(["f2 48 cd c9 c9 07 00", "f2 00 11 00 00"], [b"Hello", b"Hello"], id="7.2.3.2 shared window"),
    pytest.param(["00 05 00 fa ff 48 65 6c 6c 6f 00"], [b"Hello"], id="7.2.3.3 no compression"),
    pytest.param(["f3 48 cd c9 c9 07 00 00"], [b"Hello"], id="7.2.3.4 BFINAL"),
    pytest.param(["f2 48 05 00 00 00 ff ff ca c9 c9 07 00"], [b"Hello"], id="7.2.3.5 two blocks"),
    pytest.param(["00"], [b""], id="7.2.3.6 an empty fragment"),
]


@pytest.mark.parametrize("payloads, messages", EXAMPLES)
def test_examples_of_section_7_2_3_are_inflated(build: Build, payloads: list[str], messages: list[bytes]) -> None:
    deflate = build.Deflate(parameters())
    assert [deflate.inflate(bytes.fromhex(payload), -1, True) for payload in payloads] == messages
    assert deflate.inflate(HELLO, 5, True) == b"Hello"  # the context has come to no harm


@pytest.mark.parametrize("payloads, messages", EXAMPLES)
def test_examples_of_section_7_2_3_arrive_in_any_chunking(
    build: Build, payloads: list[str], messages: list[bytes]
) -> None:
    data = b"".join(wire.frame(wire.TEXT, bytes.fromhex(payload), rsv=4) for payload in payloads)
    expected: list[Event] = [message.decode() for message in messages]
    result = deliver(lambda: build.make(Role.CLIENT, parameters=parameters()), data, Role.CLIENT)
    assert result.events == expected


@pytest.mark.parametrize(
    "data, message",
    [
        ("c1 07 f2 48 cd c9 c9 07 00", "Hello"),  # 7.2.3.1, one frame
        ("41 03 f2 48 cd 80 04 c9 c9 07 00", "Hello"),  # 7.2.3.1, two fragments
        ("c1 0b 00 05 00 fa ff 48 65 6c 6c 6f 00", "Hello"),  # 7.2.3.3
        ("c1 08 f3 48 cd c9 c9 07 00 00", "Hello"),  # 7.2.3.4
        ("c1 0d f2 48 05 00 00 00 ff ff ca c9 c9 07 00", "Hello"),  # 7.2.3.5
        ("41 0b f2 48 cd c9 c9 07 00 00 00 ff ff 80 01 00", "Hello"),  # 7.2.3.6, the end came later
    ],
)
def test_frames_of_section_7_2_3_are_received(build: Build, data: str, message: str) -> None:
    result = deliver(lambda: build.make(Role.CLIENT, parameters=parameters()), bytes.fromhex(data), Role.CLIENT)
    assert result.events == [message]


def test_example_of_section_7_2_3_1_is_compressed(build: Build) -> None:
    assert build.Deflate(parameters()).compress(b"Hello") == HELLO


def test_example_of_section_7_2_3_2_is_compressed(build: Build) -> None:
    deflate = build.Deflate(parameters())
    assert [deflate.compress(b"Hello"), deflate.compress(b"Hello")] == [
        HELLO,
        bytes.fromhex("f2 00 11 00 00"),
    ]


def test_without_context_takeover_every_message_stands_alone(build: Build) -> None:
    deflate = build.Deflate(parameters(local_no_context_takeover=True))
    assert [deflate.compress(b"Hello"), deflate.compress(b"Hello")] == [HELLO, HELLO]


# --- compressing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("level", [0, 1, -1, 9])
def test_no_distance_exceeds_the_negotiated_window(build: Build, bits: int, level: int) -> None:
    block = random.Random(bits).randbytes(20_000)  # what repeats, repeats only within 32 KiB
    options = DeflateOptions(window_bits=15, memory_level=9, level=level)
    deflate = build.Deflate(parameters(local_max_window_bits=bits, options=options))
    messages = [block + block, block[:300], b"", block]
    # zlib refuses a distance that its window does not hold.
    assert inflated([deflate.compress(message) for message in messages], bits) == messages


@given(messages=st.lists(st.binary(max_size=300), max_size=6), takeover=st.booleans())
def test_compressing_and_inflating_round_trip(build: Build, messages: list[bytes], takeover: bool) -> None:
    sender = build.Deflate(parameters(local_no_context_takeover=not takeover))
    receiver = build.Deflate(parameters(remote_no_context_takeover=not takeover))
    for message in messages:
        assert receiver.inflate(sender.compress(message), len(message), True) == message


def test_compressing_empty_messages_repeatedly_gives_a_block_each_time(build: Build) -> None:
    deflate = build.Deflate(parameters())
    payloads = [deflate.compress(b"") for _ in range(3)]
    assert all(payloads)
    assert inflated(payloads) == [b"", b"", b""]


def test_the_threshold_comes_from_the_options(build: Build) -> None:
    assert build.Deflate(parameters(options=DeflateOptions(threshold=7))).threshold == 7


# --- inflating ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(9, 16))
def test_every_window_of_the_peer_is_inflated(build: Build, bits: int) -> None:
    block = random.Random(bits).randbytes(20_000)
    deflate = build.Deflate(parameters(remote_max_window_bits=bits))
    assert deflate.inflate(deflated(block + block, bits), -1, True) == block + block


def test_a_window_of_256_bytes_is_inflated_although_zlib_does_not_support_it(build: Build) -> None:
    deflate = build.Deflate(parameters(remote_max_window_bits=8))
    assert deflate.inflate(HELLO, -1, True) == b"Hello"


def test_a_distance_beyond_the_negotiated_window_is_refused(build: Build) -> None:
    block = random.Random(1).randbytes(20_000)
    deflate = build.Deflate(parameters(remote_max_window_bits=9))
    assert refusal(deflate, [deflated(block + block, 15)]).close_code == 1007


def test_the_peers_context_is_kept_or_dropped_as_negotiated(build: Build) -> None:
    second = bytes.fromhex("f2 00 11 00 00")  # points into the first message
    keeping = build.Deflate(parameters())
    assert [keeping.inflate(payload, -1, True) for payload in (HELLO, second)] == [b"Hello", b"Hello"]
    dropping = build.Deflate(parameters(remote_no_context_takeover=True))
    assert dropping.inflate(HELLO, -1, True) == b"Hello"
    assert refusal(dropping, [second]).close_code == 1007


def test_chunks_are_inflated_as_they_arrive(build: Build) -> None:
    payload = random.Random(1).randbytes(2_000)
    deflate = build.Deflate(parameters())
    compressed = deflated(payload)
    pieces = [compressed[index : index + 100] for index in range(0, len(compressed), 100)]
    result = [deflate.inflate(piece, -1, piece is pieces[-1]) for piece in pieces]
    assert b"".join(result) == payload
    assert sum(map(bool, result)) > 1, "everything was held back until the end"


@pytest.mark.parametrize("garbage", [b"\xff", b"\x07", b"\x00\x01\x02\x03\x04\x05", b"\xf2\x48\xff\xff\xff\xff"])
def test_data_that_is_not_deflate_is_refused_with_1007(build: Build, garbage: bytes) -> None:
    error = refusal(build.Deflate(parameters()), [garbage + bytes(10)])
    assert (str(error), error.close_code) == (
        "invalid DEFLATE data in a compressed message",
        1007,
    )


# --- the limit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, 1000, 70_000])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_message_at_the_limit_is_accepted_and_one_byte_more_is_not(build: Build, size: int, count: int) -> None:
    payload = random.Random(size).randbytes(size)
    for message, fits in ((payload, True), (payload + b"x", False)):
        compressed = deflated(message)
        step = len(compressed) // count + 1
        pieces = [compressed[index : index + step] for index in range(0, len(compressed), step)]
        deflate = build.Deflate(parameters())
        if fits:
            assert inflate_all(deflate, pieces, size) == message
        else:
            error = refusal(deflate, pieces, size)
            assert (str(error), error.close_code) == (
                "message exceeds max_message_size during decompression",
                1009,
            )


def test_the_limit_includes_output_of_the_tail(build: Build) -> None:
    # The last block's end-of-block code may wait in the 4 bytes that the sender left out.
    deflater = zlib.compressobj(0, zlib.DEFLATED, -15)
    stored = deflater.compress(b"x" * 100) + deflater.flush(zlib.Z_SYNC_FLUSH)
    assert build.Deflate(parameters()).inflate(stored[:-4], 100, True) == b"x" * 100
    assert refusal(build.Deflate(parameters()), [stored[:-4]], 99).close_code == 1009


@pytest.mark.advisory("aiohttp#11898", "CVE-2018-1000518")
@pytest.mark.parametrize("pieces", [1, 50])
def test_a_bomb_is_stopped_during_decompression(build: Build, pieces: int) -> None:
    # aiohttp#11898: 32 MiB of zeros in 32 KiB.
    bomb = deflated(bytes(32 * MEBIBYTE))
    assert len(bomb) < 33_000
    step = len(bomb) // pieces + 1
    parts = [bomb[index : index + step] for index in range(0, len(bomb), step)]
    deflate = build.Deflate(parameters())
    with measured() as memory:
        error = refusal(deflate, parts, MEBIBYTE)
    assert error.close_code == 1009
    assert memory.peak < 3 * MEBIBYTE


def test_a_flood_of_streams_in_one_message_is_refused(build: Build) -> None:
    # Each block with BFINAL makes a new zlib context, 7 KiB and more, for two bytes on the wire.
    last_block = b"\x03\x00"
    deflate = build.Deflate(parameters())
    for _ in range(3):  # the count is a message's, not a connection's
        assert deflate.inflate(last_block * 64 + EMPTY, -1, True) == b""
    error = refusal(deflate, [last_block * 65 + EMPTY])
    assert (str(error), error.close_code) == ("too many DEFLATE streams in one message (max 64)", 1008)


def test_a_flood_of_streams_in_many_fragments_is_refused(build: Build) -> None:
    deflate = build.Deflate(parameters())
    for _ in range(64):
        assert deflate.inflate(b"\x03\x00", -1, False) == b""
    assert refusal(deflate, [b"\x03\x00"]).close_code == 1008


def test_streams_count_towards_the_same_limit(build: Build) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    kibibyte = stream.compress(bytes(1024)) + stream.flush()
    assert build.Deflate(parameters()).inflate(kibibyte * 10 + EMPTY, 10_240, True) == bytes(10_240)
    assert refusal(build.Deflate(parameters()), [kibibyte * 10 + EMPTY], 10_239).close_code == 1009


# --- giving contexts back -------------------------------------------------------------------------

json_like = st.builds(lambda number, name: b'{"number":%d,"name":"%s"}' % (number, name), st.integers(), st.binary())
contents = st.lists(
    st.one_of(
        json_like,
        st.binary(max_size=300),
        st.integers(0, 9000).map(lambda size: random.Random(size % 7).randbytes(9000)[:size]),
    ),
    max_size=12,
)


class ZlibPeer:
    """The other end, with zlib only: one context each way for the whole connection, or for one message."""

    def __init__(self, bits: int, takeover: bool) -> None:
        self._bits = bits
        self._takeover = takeover
        self._new()

    def _new(self) -> None:
        self._deflater = zlib.compressobj(wbits=-max(9, self._bits))
        self._inflater = zlib.decompressobj(-self._bits)

    def compress(self, message: bytes, final: bool) -> bytes:
        if not self._takeover:
            self._new()
        if final:  # section 7.2.3.4
            payload = self._deflater.compress(message) + self._deflater.flush() + EMPTY
            self._new()
            return payload
        return (self._deflater.compress(message) + self._deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def inflate(self, payload: bytes) -> bytes:
        if not self._takeover:
            self._new()
        return self._inflater.decompress(payload + b"\x00\x00\xff\xff")


@settings(max_examples=60)
@given(
    messages=contents,
    bits=st.integers(9, 15),
    takeover=st.booleans(),
    choices=st.randoms(use_true_random=False),
)
def test_messages_pass_whenever_contexts_are_released(
    build: Build, messages: list[bytes], bits: int, takeover: bool, choices: random.Random
) -> None:
    agreed = parameters(
        local_no_context_takeover=not takeover,
        remote_no_context_takeover=not takeover,
        local_max_window_bits=bits,
        remote_max_window_bits=bits,
    )
    deflate, into, out_of = build.Deflate(agreed), ZlibPeer(bits, takeover), ZlibPeer(bits, takeover)
    for message in messages:
        payload = into.compress(message, final=takeover and choices.random() < 0.2)
        pieces = [payload]
        if choices.random() < 0.3:
            cut = choices.randint(0, len(payload))
            pieces = [payload[:cut], payload[cut:]]
        came = b""
        for number, piece in enumerate(pieces):
            came += deflate.inflate(piece, -1, number == len(pieces) - 1)
            if choices.random() < 0.5:
                deflate.give_back(choices.random() < 0.5)  # in the middle of a message as well
        assert came == message
        if choices.random() < 0.7:
            assert out_of.inflate(deflate.compress(message)) == message


@pytest.mark.parametrize("bits", [8, 9, 12, 15])
def test_a_distance_of_a_full_window_reaches_into_the_saved_history(build: Build, bits: int) -> None:
    # zlib itself looks back by 262 bytes less than its window; other senders may use all of it.
    window = 1 << max(9, bits)
    block = random.Random(bits).randbytes(window)
    deflate = build.Deflate(parameters(remote_max_window_bits=bits))
    for pack in (False, True):
        assert deflate.inflate(deflated(b"before" + block, bits=15, level=0), -1, True) == b"before" + block
        deflate.give_back(pack)
        assert deflate.inflate(three_bytes_from(max(9, bits)), -1, True) == block[:3]
        deflate.give_back(pack)
        # Now three bytes later, as three have come.
        assert deflate.inflate(three_bytes_from(max(9, bits)), -1, True) == block[3:6]
        deflate.give_back(pack)


def three_bytes_from(exponent: int) -> bytes:
    """A block of fixed codes (RFC 1951 section 3.2.6) that copies 3 bytes from 2**exponent bytes back."""
    bits = "0" + "10"  # not the last block; type 01, the least significant bit first
    bits += "0000001"  # code 257: 3 bytes
    bits += f"{2 * exponent - 1:05b}" + "1" * (exponent - 2)  # the longest distance of this code
    bits += "0000000" + "000"  # end of the block; then one that is not compressed, for the flush
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[index : index + 8][::-1], 2) for index in range(0, len(bits), 8))


def test_a_peer_may_end_a_message_within_a_block(build: Build) -> None:
    # Against section 7.2.1, but zlib accepts it: the block continues in the next message.
    deflater = zlib.compressobj(wbits=-15)
    stream = deflater.compress(b"".join(b"%d," % number for number in range(2000)))
    stream += deflater.flush()
    results = []
    for give_back in (False, True):
        deflate = build.Deflate(parameters())
        outcome: list[object] = []
        for piece in (stream[:20], stream[20:]):
            try:
                outcome.append(deflate.inflate(piece, -1, True))
            except RemoteProtocolError as error:
                outcome.append(error.close_code)
                break
            if give_back:
                deflate.give_back(True)
        results.append(outcome)
    assert results[0] == results[1]


def test_the_saved_history_is_dropped_at_the_end_of_a_stream(build: Build) -> None:
    second = bytes.fromhex("f2 00 11 00 00")  # points into the message before
    deflate = build.Deflate(parameters())
    assert deflate.inflate(HELLO, -1, True) == b"Hello"
    deflate.give_back(False)
    assert deflate.inflate(bytes.fromhex("f3 48 cd c9 c9 07 00 00"), -1, True) == b"Hello"
    deflate.give_back(False)
    assert refusal(deflate, [second]).close_code == 1007


def test_after_another_connections_message_the_next_one_refers_to_nothing(build: Build) -> None:
    deflate = build.Deflate(parameters())
    assert deflate.compress(b"Hello") == HELLO
    deflate.reset_context()
    assert deflate.compress(b"Hello") == HELLO


def holders(deflates: list[Deflate]) -> list[int]:
    return [number for number, deflate in enumerate(deflates) if deflate.holding]


def test_a_loop_bounds_its_contexts_and_keeps_those_of_frequent_users_longest(build: Build) -> None:
    pool = build.Contexts(2, 2)
    deflates = [build.Deflate(parameters()) for _ in range(8)]
    for deflate in deflates:
        deflate.share(pool)
    busy, *others = deflates
    busy.compress(b"1")
    busy.compress(b"2")
    for deflate in others:
        deflate.compress(b"once")
        deflate.inflate(HELLO, -1, True)
    assert holders(deflates) == [0, 6, 7]
    assert len(pool) == 3
    for number in (2, 3, 4):  # returning makes them frequent users
        deflates[number].compress(b"again")
    assert len(pool) == 4
    assert holders(deflates)[-2:] == [6, 7]
    assert deflates[4].holding
    for deflate in deflates:
        deflate.close()
    assert len(pool) == 0
    assert holders(deflates) == []


def test_connections_that_use_their_contexts_keep_them(build: Build) -> None:
    pool = build.Contexts(1, 2)
    deflates = [build.Deflate(parameters()) for _ in range(4)]
    for deflate in deflates:
        deflate.share(pool)
        deflate.give_back(True)  # none of them is a newcomer any more
    for number in (0, 1, 0, 2):
        deflates[number].compress(b"x")
    assert holders(deflates) == [0, 2]


def test_an_existing_context_is_counted_when_its_connection_joins_a_pool(build: Build) -> None:
    deflate, pool = build.Deflate(parameters()), build.Contexts()
    deflate.compress(b"in a thread")
    deflate.share(pool)
    assert len(pool) == 1
    deflate.release()
    assert len(pool) == 0


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.need(18)
def test_contexts_are_created_on_first_use(build: Build) -> None:
    # uvicorn#1862: 4 GB for thousands of connections that never compressed anything.
    with measured() as idle:
        idle_ones = [build.make(parameters=parameters()) for _ in range(50)]
    with measured() as plain:
        plain_ones = [build.make() for _ in range(50)]
    assert len(idle_ones) == len(plain_ones)
    assert (idle.held - plain.held) / 50 < 1000
    subject = idle_ones[0]
    with measured() as sending:
        subject.send_binary(bytes(100))
    with measured() as receiving:
        subject.receive_data(wire.frame(wire.BINARY, HELLO, rsv=4, key=wire.KEY), START)
    assert sending.held > 100_000  # zlib says: (1 << (windowBits + 2)) + (1 << (memLevel + 9))
    assert receiving.held > 5_000


@pytest.mark.need(18)
def test_an_idle_connection_keeps_its_history_and_no_context(build: Build) -> None:
    pool = build.Contexts(2, 2)
    agreed = parameters(local_max_window_bits=12, remote_max_window_bits=12)
    deflates = [build.Deflate(agreed) for _ in range(102)]
    message = deflated(document(4096), 12)
    with measured() as memory:
        for deflate in deflates:
            deflate.share(pool)
            deflate.inflate(message, -1, True)
            deflate.compress(document(4096))
        for deflate in deflates[-2:]:
            deflate.close()
    assert memory.held / 100 < 1200


@pytest.mark.need(18)
def test_a_protocol_releases_unused_contexts(build: Build) -> None:
    protocol = build.make(parameters=parameters())
    assert protocol.release_due is None
    protocol.send_binary(bytes(100))
    assert protocol.release_due == START + 1
    for later in (0.5, 1.0):
        protocol.release_idle(START + later)
        assert protocol.release_due is not None
    protocol.release_idle(START + 2.0)
    assert protocol.release_due is None


@pytest.mark.need(18)
def test_keepalive_releases_contexts(build: Build) -> None:
    protocol = build.make(parameters=parameters(), limits=Limits(ping_interval=20))
    protocol.send_binary(bytes(100))
    protocol.handle_timeout(START + 20, 0)
    assert protocol.release_due is not None
    protocol.receive_data(wire.frame(wire.PONG, b"keepalive 1", key=wire.KEY), START + 21)
    protocol.handle_timeout(START + 40, 0)
    assert protocol.release_due is None


@pytest.mark.need(18)
def test_an_ended_protocol_holds_no_context(build: Build) -> None:
    pool = build.Contexts()
    protocol = build.make(parameters=parameters())
    protocol.share_contexts(pool)
    protocol.send_binary(bytes(100))
    assert len(pool) == 1
    protocol.receive_eof()
    assert len(pool) == 0


@pytest.mark.need(18)
def test_without_context_takeover_no_context_outlives_its_message(build: Build) -> None:
    agreed = parameters(local_no_context_takeover=True, remote_no_context_takeover=True)
    deflate = build.Deflate(agreed)
    with measured() as memory:
        deflate.compress(bytes(1000))
        deflate.inflate(HELLO, -1, True)
    assert memory.held < 2_000


@pytest.mark.need(18)
def test_default_options_use_little_memory(build: Build) -> None:
    deflate = build.Deflate(DeflateParameters(local_max_window_bits=12, remote_max_window_bits=12))
    with measured() as memory:
        for _ in range(10):
            deflate.inflate(deflate.compress(bytes(1000)), -1, True)
    assert memory.held < 56 * 1024
