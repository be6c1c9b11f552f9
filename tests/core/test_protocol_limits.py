"""core/protocol.py: limits, floods and memory, whatever a peer declares or trickles (RFC 6455 section 10.4)."""

from __future__ import annotations

import sys
import zlib

import pytest

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import deliver, failure, feed, plain
from tests.support.memory import measured
from tests.support.wire import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from watershed_mw.core.events import CloseReceived, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role, State

COMPRESSION = DeflateParameters(options=DeflateOptions(window_bits=15))
MEBIBYTE = 2**20


def limits(size: int | None = 1000, fragments: int = 100) -> Limits:
    """Small limits, without keepalive."""
    return Limits(max_message_size=size, max_fragments=fragments, ping_interval=None)


def too_big(size: int, got: int) -> tuple[str, int]:
    """The refusal of a message that is too big."""
    return f"message too large: at most {size} bytes (max_message_size), got {got} or more", 1009


def deflated(payload: bytes, level: int = 9) -> bytes:
    """A first message as a peer with zlib sends it."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


# --- the size of a message ------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("pieces", [[1000], [0, 1000], [500, 500], [999, 1, 0]])
def test_a_message_at_the_limit_is_accepted(build: Build, opcode: int, pieces: list[int]) -> None:
    data = wire.message(opcode, [b"x" * size for size in pieces], key=wire.KEY)
    result = deliver(lambda: build.make(limits=limits()), data)
    assert result.events == ["x" * 1000 if opcode == TEXT else b"x" * 1000]


@pytest.mark.need(6)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("pieces, got", [([1001], 1001), ([1000, 1], 1001), ([500, 501], 1001), ([1, 5000], 5001)])
def test_a_message_above_the_limit_is_refused_with_1009(build: Build, opcode: int, pieces: list[int], got: int) -> None:
    data = wire.message(opcode, [b"x" * size for size in pieces], key=wire.KEY)
    (event,) = deliver(lambda: build.make(limits=limits()), data).events
    assert failure(event) == too_big(1000, got)


def test_every_message_may_use_the_full_limit(build: Build) -> None:
    data = b"".join(wire.message(BINARY, [bytes(400), bytes(600)], key=wire.KEY) for _ in range(5))
    assert build.make(limits=limits()).receive_data(data, START) == [bytes(1000)] * 5


def test_control_frames_do_not_count_towards_the_limit(build: Build) -> None:
    ping = frame(PING, bytes(125), key=wire.KEY)
    data = frame(BINARY, bytes(999), fin=False, key=wire.KEY) + ping * 200 + frame(CONTINUATION, b"x", key=wire.KEY)
    events = build.make(limits=limits(fragments=2)).receive_data(data, START)
    assert events == [Ping(bytes(125))] * 200 + [bytes(999) + b"x"]


@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-44545")
@pytest.mark.parametrize("declared", [2**24 + 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1])
@pytest.mark.parametrize("before", [[], [b"x" * 100]])
def test_a_declared_length_is_refused_before_anything_is_buffered(
    build: Build, declared: int, before: list[bytes]
) -> None:
    # CVE-2026-44545
    data = b"".join(frame(TEXT, piece, fin=False, key=wire.KEY) for piece in before)
    data += frame(CONTINUATION if before else TEXT, declared=declared, form=64, key=wire.KEY)
    subject = build.make()
    with measured() as memory:
        (event,) = plain(subject.receive_data(data, START))
    assert failure(event) == too_big(2**24, declared + 100 * len(before))
    assert memory.peak < 20_000


def test_without_a_limit_any_length_may_be_declared_and_costs_nothing(build: Build) -> None:
    for parameters, rsv in ((None, 0), (COMPRESSION, 4)):
        subject = build.make(limits=limits(None), parameters=parameters)
        data = frame(BINARY, b"x", key=wire.KEY, rsv=rsv, declared=2**63 - 1, form=64)
        with measured() as memory:
            assert subject.receive_data(data, START) == []
        assert subject.state is State.OPEN
        assert memory.peak < 60_000


@pytest.mark.parametrize("size", [2**31, 2**32, 2**62, sys.maxsize - 1, sys.maxsize])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_huge_limit_works_like_any_other(build: Build, size: int, compressed: bool) -> None:
    # sys.maxsize is what many take for "no limit".
    subject = build.make(limits=limits(size), parameters=COMPRESSION)
    payload = deflated(b"Hello") if compressed else b"Hello"
    data = frame(TEXT, payload, rsv=4 if compressed else 0, key=wire.KEY)
    assert plain(subject.receive_data(data, START)) == ["Hello"]
    assert plain(feed(subject, [frame(TEXT, b"Hel", fin=False, key=wire.KEY), frame(0, b"lo", key=wire.KEY)])) == [
        "Hello"
    ]


# --- bombs ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.advisory("aiohttp#11898", "CVE-2018-1000518")
@pytest.mark.parametrize("pieces", [1, 2, 30])
def test_a_bomb_is_refused_during_decompression(build: Build, pieces: int) -> None:
    # aiohttp#11898, CVE-2018-1000518: 1000 : 1, whole and in fragments.
    bomb = deflated(bytes(32 * MEBIBYTE))
    step = len(bomb) // pieces + 1
    parts = [bomb[index : index + step] for index in range(0, len(bomb), step)]
    data = wire.message(BINARY, parts, rsv=4)
    subject = build.make(Role.CLIENT, limits(MEBIBYTE), COMPRESSION)
    with measured() as memory:
        (event,) = plain(subject.receive_data(data, START))
    assert failure(event) == ("message exceeds max_message_size during decompression", 1009)
    assert memory.peak < 5 * MEBIBYTE


@pytest.mark.parametrize("size, fits", [(1000, True), (1001, False)])
@pytest.mark.parametrize("level", [0, 9])
def test_the_inflated_size_counts(build: Build, size: int, fits: bool, level: int) -> None:
    payload = deflated(bytes(size), level)
    for pieces in ([payload], [payload[:3], payload[3:]], [payload, b""]):
        data = wire.message(BINARY, pieces, rsv=4)
        (event,) = deliver(lambda: build.make(Role.CLIENT, limits(), COMPRESSION), data, Role.CLIENT).events
        if fits:
            assert event == bytes(size)
        else:
            assert failure(event) == ("message exceeds max_message_size during decompression", 1009)


def test_incompressible_data_at_the_limit_is_accepted(build: Build) -> None:
    # Compressed it is longer than it is: 5 bytes for each stored block.
    deflater = zlib.compressobj(0, zlib.DEFLATED, -9, 1)
    data = bytes(range(256)) * 256
    payload = (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(payload) > len(data)
    subject = build.make(Role.CLIENT, limits(len(data)), COMPRESSION)
    assert subject.receive_data(frame(BINARY, payload, rsv=4), START) == [data]


def test_compressed_data_without_output_is_limited_too(build: Build) -> None:
    empty_block = b"\x00\x00\x00\xff\xff"
    subject = build.make(Role.CLIENT, limits(), COMPRESSION)
    events = plain(subject.receive_data(frame(BINARY, empty_block * 2000, rsv=4), START))
    assert failure(events[0]) == too_big(1000, 10_000)


def test_a_flood_of_streams_is_refused(build: Build) -> None:
    data = frame(BINARY, b"\x03\x00" * 200, rsv=4)
    (event,) = deliver(lambda: build.make(Role.CLIENT, limits(), COMPRESSION), data, Role.CLIENT).events
    assert failure(event) == ("too many DEFLATE streams in one message (max 64)", 1008)


def stored(data: bytes) -> bytes:
    """``data`` in an uncompressed DEFLATE block."""
    size = len(data).to_bytes(2, "little")
    return b"\x00" + size + bytes(octet ^ 0xFF for octet in size) + data


@pytest.mark.parametrize(
    "fault",
    [b"\x07", stored(bytes(2000)), b"\x03\x00" * 70],
    ids=["no DEFLATE data", "more than the limit", "a flood of streams"],
)
def test_the_first_fault_of_compressed_text_counts_in_any_chunking(build: Build, fault: bytes) -> None:
    # A bad byte comes first; whether it is in one chunk with the other fault must not matter.
    data = frame(TEXT, stored(b"a\xffb") + fault, rsv=4)
    (event,) = deliver(lambda: build.make(Role.CLIENT, limits(), COMPRESSION), data, Role.CLIENT).events
    assert failure(event) == ("expected UTF-8 in a TEXT message, got other bytes", 1007)


@pytest.mark.parametrize(
    "payload",
    [
        stored(b"x" * 1000 + b"\xff"),  # the bad byte is the one that is too many
        stored(b"x" * 999 + b"\xffy"),
        stored(b"x" * 999) + b"\x00\x06\x00\xf9\xff\xc3\xff",  # a block that continues in the omitted 4 bytes
        stored(b"x" * 997) + b"\x00\x06\x00\xf9\xff\xc3\xff",
    ],
    ids=["behind the limit", "before the limit", "beyond the limit with the tail", "within the limit with the tail"],
)
def test_an_invalid_byte_near_the_limit_of_compressed_text_fails_alike_in_any_chunking(
    build: Build, payload: bytes
) -> None:
    data = frame(TEXT, payload, rsv=4)
    (event,) = deliver(lambda: build.make(Role.CLIENT, limits(), COMPRESSION), data, Role.CLIENT).events
    failure(event)


# --- the number of fragments ----------------------------------------------------------------------


def fragments(subject: Protocol, payload: bytes, count: int) -> list[object]:
    """Send a message's beginning in ``count`` fragments; stop at the first event."""
    chunk = frame(CONTINUATION, payload, fin=False) * 1000
    events: list[object] = list(plain(subject.receive_data(frame(BINARY, payload, fin=False), START)))
    for _ in range(count // 1000):
        if events:
            break
        events += plain(subject.receive_data(chunk, START))
    return events


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_with_max_fragments_is_accepted(build: Build, opcode: int) -> None:
    for size in (0, 1):
        data = wire.message(opcode, [b"x" * size] * 100, key=wire.KEY)
        result = deliver(lambda: build.make(limits=limits()), data + data)
        assert result.events == ["x" * 100 * size if opcode == TEXT else b"x" * 100 * size] * 2
        data = wire.message(opcode, [b"x" * size] * 101, key=wire.KEY)
        (event,) = deliver(lambda: build.make(limits=limits()), data).events
        assert failure(event) == ("expected a message in at most 100 frames, got more", 1008)


def test_the_limit_may_be_a_single_frame(build: Build) -> None:
    subject = build.make(limits=limits(fragments=1))
    assert subject.receive_data(frame(TEXT, b"x", key=wire.KEY), START) == ["x"]
    (event,) = plain(subject.receive_data(wire.message(TEXT, [b"", b""], key=wire.KEY), START))
    assert failure(event) == ("expected a message in at most 1 frames, got more", 1008)


@pytest.mark.slow
@pytest.mark.need(6)
@pytest.mark.advisory("CVE-2026-48779")
def test_a_flood_of_empty_fragments_is_refused_and_takes_no_memory(build: Build) -> None:
    # CVE-2026-48779, CVE-2026-12151. websockets 17 takes 200,000 of them.
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        (event,) = fragments(subject, b"", 200_000)
    assert event == ("RemoteProtocolError", "expected a message in at most 131072 frames, got more", 1008)
    assert subject.counts().frames_received == 131_073
    assert memory.peak < 20_000


@pytest.mark.advisory("CVE-2026-48779")
def test_tiny_fragments_take_no_more_memory_than_their_payload(build: Build) -> None:
    # uvicorn keeps 43 MB for 2 MB that come in fragments of 2 bytes.
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        assert fragments(subject, b"xx", 20_000) == []
    assert memory.peak < 4 * 40_000


@pytest.mark.advisory("CVE-2026-54274", "aiohttp#13350")
def test_trickled_bytes_take_no_more_memory_than_their_payload(build: Build) -> None:
    # CVE-2026-54274 and aiohttp#13350: a large frame that never comes to its end, byte by byte.
    subject = build.make(Role.CLIENT)
    subject.receive_data(frame(TEXT, declared=MEBIBYTE, form=64), START)
    with measured() as memory:
        for _ in range(20_000):
            subject.receive_data(b"x", START)
    assert memory.peak < 4 * 20_000
    assert subject.state is State.OPEN


def test_a_trickled_message_arrives_complete(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    data = frame(BINARY, bytes(range(256)) * 20)
    assert feed(subject, [data[index : index + 1] for index in range(len(data))]) == [bytes(range(256)) * 20]


def test_an_idle_connection_keeps_no_chunk(build: Build) -> None:
    message = frame(BINARY, bytes(125))
    chunk = message * 2000 + message[:1]
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        events = subject.receive_data(bytes(bytearray(chunk)), START)
        assert len(events) == 2000
        del events
    assert memory.held < 5_000


def test_a_message_keeps_no_other_data_alive(build: Build) -> None:
    # Kept messages must not pin the reads that they came in.
    chunk = frame(BINARY, b"small") + frame(BINARY, bytes(100_000)) + frame(TEXT, b"text") + frame(PING, b"ping")
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        events = subject.receive_data(bytes(bytearray(chunk)), START)
        del events[1]
        subject.data_to_send()
    assert memory.held < 5_000


# --- PING and PONG floods -------------------------------------------------------------------------


@pytest.mark.advisory("CVE-2026-48802")
def test_only_the_newest_pong_waits_while_writing_is_paused(build: Build) -> None:
    # Section 5.5.3 allows it; CVE-2026-48802 shows what else happens.
    subject = build.make(Role.CLIENT)
    subject.write_paused = True
    with measured() as memory:
        for number in range(5_000):
            assert subject.receive_data(frame(PING, b"%0125d" % number), START) == [Ping(b"%0125d" % number)]
        assert subject.data_to_send() == b""
    assert memory.held < 5_000
    subject.writing_resumed()
    assert not subject.write_paused
    (item,) = wire.frames(subject.data_to_send())
    assert (item.opcode, item.payload) == (PONG, b"%0125d" % 4_999)
    subject.writing_resumed()
    assert subject.data_to_send() == b"", "it is sent once"


def test_pongs_queued_before_the_pause_are_sent(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    subject.receive_data(frame(PING, b"1"), START)
    subject.write_paused = True
    subject.receive_data(frame(PING, b"2") + frame(PING, b"3"), START)
    subject.writing_resumed()
    subject.receive_data(frame(PING, b"4"), START)
    assert [item.payload for item in wire.frames(subject.data_to_send())] == [b"1", b"3", b"4"]


def test_no_pong_is_sent_after_our_close(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    subject.write_paused = True
    subject.receive_data(frame(PING, b"1"), START)
    subject.close(1000, "", START)
    subject.receive_data(frame(PING, b"2"), START)
    subject.writing_resumed()
    assert [item.opcode for item in wire.frames(subject.data_to_send())] == [wire.CLOSE]


def test_no_pong_is_sent_after_the_end_of_the_stream(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    subject.write_paused = True
    subject.receive_data(frame(PING, b"1"), START)
    subject.receive_eof()
    subject.writing_resumed()
    assert subject.data_to_send() == b""


@pytest.mark.advisory("CVE-2026-48802")
def test_a_flood_of_pongs_takes_no_memory(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        for number in range(5_000):
            subject.receive_data(frame(PONG, b"%0125d" % number), START)
    assert memory.held < 5_000
    assert subject.latency is None


def test_our_unanswered_pings_take_bounded_memory(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    with measured() as memory:
        for number in range(5_000):
            subject.ping(b"%0125d" % number, START)
            subject.data_to_send()
    assert memory.held < 10_000


# --- how often the peer sends ---------------------------------------------------------------------


TOO_OFTEN = ("too many messages: at most 3 per second (max_message_rate)", 1008)


def slow_down(rate: float = 3) -> Limits:
    """A rate of 3 a second, without keepalive."""
    return Limits(max_message_rate=rate, ping_interval=None)


@pytest.mark.need(27)
@pytest.mark.parametrize(
    "kind, event",
    [
        (frame(TEXT, b"x", key=wire.KEY), "x"),
        (frame(BINARY, key=wire.KEY), b""),
        (frame(PING, b"x", key=wire.KEY), Ping(b"x")),
        (frame(PONG, b"x", key=wire.KEY), Pong(b"x")),
        (wire.message(TEXT, [b"x", b"", b"y", b"z", b""], key=wire.KEY), "xyz"),
    ],
    ids=["TEXT", "empty", "PING", "PONG", "fragments"],
)
def test_one_message_or_control_frame_too_many_is_refused_with_1008(build: Build, kind: bytes, event: object) -> None:
    subject = build.make(limits=slow_down())
    events = plain(subject.receive_data(kind * 4, START))
    assert events[:3] == [event] * 3
    assert failure(events[3]) == TOO_OFTEN
    assert len(events) == 4
    # Exactly as many as are allowed, in any chunking (and a Close behind them is no message).
    within = deliver(lambda: build.make(limits=slow_down(4)), kind * 3 + wire.close(1000, key=wire.KEY))
    assert within.events == [event] * 3 + [CloseReceived(1000, "")]


@pytest.mark.need(27)
def test_control_frames_and_messages_share_one_allowance(build: Build) -> None:
    data = frame(PING, key=wire.KEY) + frame(TEXT, b"x", key=wire.KEY) + frame(PONG, key=wire.KEY)
    subject = build.make(limits=slow_down())
    assert plain(subject.receive_data(data, START)) == [Ping(b""), "x", Pong(b"")]
    (event,) = plain(subject.receive_data(data, START))
    assert failure(event) == TOO_OFTEN


def test_a_close_never_exceeds_the_rate(build: Build) -> None:
    subject = build.make(limits=slow_down())
    data = frame(TEXT, b"x", key=wire.KEY) * 3 + wire.close(1000, key=wire.KEY)
    assert plain(subject.receive_data(data, START)) == ["x"] * 3 + [CloseReceived(1000, "")]


@pytest.mark.need(27)
def test_the_allowance_refills_over_time(build: Build) -> None:
    subject = build.make(limits=slow_down(4))
    message = frame(TEXT, b"x", key=wire.KEY)
    assert subject.receive_data(message * 4, START) == ["x"] * 4
    for step in range(1, 40):
        assert subject.receive_data(message, START + step / 4) == ["x"]
    assert subject.receive_data(message * 4, START + 500) == ["x"] * 4
    (event,) = plain(subject.receive_data(message, START + 500.125))
    assert failure(event)[1] == 1008
    assert subject.state is State.FAILING
    subject.messages_handed_over(START + 500.125)
    assert subject.close_code == 1008


def test_a_message_is_charged_once_at_its_beginning(build: Build) -> None:
    subject = build.make(limits=slow_down(1))
    begun, ended = frame(TEXT, b"x", fin=False, key=wire.KEY), frame(CONTINUATION, b"y", key=wire.KEY)
    for step in range(5):
        assert subject.receive_data(begun, START + step) == []
        assert subject.receive_data(ended, START + step) == ["xy"]
    (event,) = plain(subject.receive_data(begun, START + 4))
    assert failure(event)[1] == 1008


def test_without_a_rate_any_number_of_messages_may_arrive_at_once(build: Build) -> None:
    assert len(build.make().receive_data(frame(PING, key=wire.KEY) * 5000, START)) == 5000


# --- what the peer's messages inflate to --------------------------------------------------------------


def inflating(ratio: float | None = 64, rate: float = MEBIBYTE, size: int | None = MEBIBYTE) -> Limits:
    """Beyond the ratio, 1 MiB a second and 1 MiB at once."""
    return Limits(max_compression_ratio=ratio, max_inflate_rate=rate, max_message_size=size, ping_interval=None)


TOO_MUCH = (
    (
        "compressed data inflates to more than 64 times its size (max_compression_ratio) plus 1.04858e+06 bytes per "
        "second (max_inflate_rate)"
    ),
    1008,
)
ZEROS = frame(BINARY, deflated(bytes(MEBIBYTE)), rsv=4, key=wire.KEY)


@pytest.mark.need(27)
def test_one_message_of_zeros_is_accepted_and_a_stream_of_them_is_refused(build: Build) -> None:
    subject = build.make(limits=inflating(), parameters=COMPRESSION)
    assert subject.receive_data(ZEROS, START) == [bytes(MEBIBYTE)]
    (event,) = plain(subject.receive_data(ZEROS, START + 0.5))
    assert failure(event) == TOO_MUCH
    assert subject.counts().messages_received == 1


@pytest.mark.need(27)
def test_the_inflate_allowance_refills_over_time(build: Build) -> None:
    subject = build.make(limits=inflating(), parameters=COMPRESSION)
    for second in range(10):
        assert subject.receive_data(ZEROS, START + second) == [bytes(MEBIBYTE)]


@pytest.mark.slow
@pytest.mark.need(27)
def test_the_inflate_rate_is_enforced_during_decompression(build: Build) -> None:
    subject = build.make(limits=inflating(size=None), parameters=COMPRESSION)
    bomb = frame(BINARY, deflated(bytes(256 * MEBIBYTE)), rsv=4, key=wire.KEY)
    with measured() as memory:
        (event,) = plain(subject.receive_data(bomb, START))
    assert failure(event) == TOO_MUCH
    assert memory.peak < 40 * MEBIBYTE  # 64 times the received bytes, and 1 MiB


@pytest.mark.need(27)
@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_data_below_the_compression_ratio_may_arrive_at_any_speed(build: Build, pieces: int) -> None:
    text = b"".join(
        b"2024-05-05 12:%02d:%02d INFO worker-%d took %d ms\n" % (i % 60, i % 7, i % 9, i) for i in range(9000)
    )
    data = deflated(text)
    assert len(data) * 5 < len(text) < len(data) * 64
    cuts = [data[len(data) * i // pieces : len(data) * (i + 1) // pieces] for i in range(pieces)]
    message = wire.message(BINARY, cuts, rsv=4, key=wire.KEY)
    subject = build.make(
        limits=inflating(rate=1000.0),
        parameters=DeflateParameters(options=DeflateOptions(window_bits=15), remote_no_context_takeover=True),
    )
    for _ in range(20):
        assert subject.receive_data(message, START) == [text]


@pytest.mark.need(27)
def test_small_repetitive_messages_are_not_bombs(build: Build) -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    subject = build.make(limits=inflating(rate=1.0, size=4096), parameters=COMPRESSION)
    message = b'{"id": 12345, "name": "a name"}' * 130
    for _ in range(1000):
        data = (deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert subject.receive_data(frame(BINARY, data, rsv=4, key=wire.KEY), START) == [message]


@pytest.mark.need(27)
def test_none_switches_both_limits_off(build: Build) -> None:
    subject = build.make(limits=inflating(ratio=None, rate=1.0), parameters=COMPRESSION)
    for _ in range(5):
        assert subject.receive_data(ZEROS, START) == [bytes(MEBIBYTE)]


def test_text_with_two_faults_fails_with_the_first(build: Build) -> None:
    subject = build.make(limits=inflating(rate=1000.0, size=5 * MEBIBYTE), parameters=COMPRESSION)
    subject.receive_data(frame(BINARY, deflated(bytes(5 * MEBIBYTE)), rsv=4, key=wire.KEY), START)
    data = frame(TEXT, deflated(b"\xff" + bytes(MEBIBYTE)), rsv=4, key=wire.KEY)
    # The window of the first message is zlib's; this one begins anew.
    (event,) = plain(subject.receive_data(data, START))
    assert failure(event)[1] == 1007
