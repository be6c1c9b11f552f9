"""core/protocol.py: messages, fragments and control frames (RFC 6455 sections 5.4, 5.5, 5.6, 6 and 8.1).

Closing, limits and time have files of their own: ``test_protocol_closing.py``, ``..._limits.py``, ``..._time.py``.
"""

from __future__ import annotations

import itertools
import random
import signal
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import Outcome, deliver, failure, feed, outcome, peer_key, plain
from tests.support.wire import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from watershed_mw.core.events import CloseReceived, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.rate import MessageRate
from watershed_mw.core.states import Role, State

ROLES = [Role.SERVER, Role.CLIENT]
NOT_UTF8 = ("expected UTF-8 in a TEXT message, got other bytes", 1007)
COMPRESSION = DeflateParameters(options=DeflateOptions(window_bits=15, threshold=0))


def arrives(build: Build, data: bytes, role: Role = Role.SERVER, **options: Any) -> Outcome:
    """The events of ``data``, in any chunking."""
    return deliver(lambda: build.make(role, **options), data, role)


# --- messages that come --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("text", ["", "Hello", "é", "κόσμε", "\U0001f600", "\ufeffbom", "\x00", "\uffff", "x" * 300])
def test_text_arrives_as_str(build: Build, role: Role, text: str) -> None:
    result = arrives(build, frame(TEXT, text.encode(), key=peer_key(role)), role)
    assert result.events == [text]
    assert result.state is State.OPEN
    assert result.sent == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("data", [b"", b"Hello", bytes(range(256)), b"\xff" * 1000])
def test_binary_arrives_as_bytes(build: Build, role: Role, data: bytes) -> None:
    result = arrives(build, frame(BINARY, data, key=peer_key(role)), role)
    assert result.events == [data]
    assert type(result.events[0]) is bytes


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 200_000])
def test_messages_of_every_length_arrive(build: Build, size: int) -> None:
    data = random.Random(size).randbytes(size)
    subject = build.make()
    source = frame(BINARY, data, key=wire.KEY)
    assert feed(subject, [source[:1000], source[1000:70_000], source[70_000:]]) == [data]
    subject = build.make()
    assert subject.receive_data(source * 2, START) == [data, data]


def put(subject: Any, data: bytes, most: int) -> tuple[int, list[Any]]:
    """Put the beginning of ``data`` where ``subject`` wants it; return how much it took, and the events."""
    space = subject.receiver.get_buffer()
    size = min(len(space), len(data), most)
    assert 0 < size <= subject.receiver.payload_to_come()
    space[:size] = data[:size]
    return size, subject.receive_in_place(size, START)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("seed", range(6))
def test_the_payload_of_a_large_message_may_be_read_in_place(build: Build, role: Role, opcode: int, seed: int) -> None:
    """Any part of it, between parts that are not read in place, and with other frames behind it."""
    dice = random.Random(seed)
    payload = ("0123é€" * 15_000).encode()
    source = frame(opcode, payload, key=peer_key(role)) + frame(PING, b"behind", key=peer_key(role))
    subject, other = build.make(role), build.make(role)
    expected = other.receive_data(source, START)
    events, position = [], 0
    while position < len(source):
        most = dice.choice((1, dice.randrange(1, 20), dice.randrange(1, 60_000)))
        if subject.receiver.payload_to_come() and dice.random() < 0.6:
            taken, news = put(subject, source[position:], most)
        else:
            taken, news = most, subject.receive_data(source[position : position + most], START)
        position += taken
        events += news
    assert events == expected
    assert subject.receiver.payload_to_come() == 0
    assert outcome(subject, events) == outcome(other, expected)
    assert subject.counts() == other.counts()


@pytest.mark.parametrize("role", ROLES)
def test_text_read_in_place_is_checked_as_it_arrives(build: Build, role: Role) -> None:
    source = frame(TEXT, b"x" * 90_000 + b"\xff" + b"x" * 90_000, key=peer_key(role))
    subject = build.make(role)
    position = 10_000
    assert subject.receive_data(source[:position], START) == []
    events: list[Any] = []
    while not events:
        taken, events = put(subject, source[position:], 10_000)
        position += taken
    assert position < 110_000
    assert [failure(event) for event in plain(events)] == [NOT_UTF8]
    assert subject.receiver.payload_to_come() == 0


def test_a_declared_length_costs_no_memory_when_read_in_place(build: Build) -> None:
    subject = build.make(limits=Limits(max_message_size=None))
    subject.receive_data(frame(BINARY, b"", key=wire.KEY, declared=2**40), START)
    assert subject.receiver.payload_to_come() == 2**40
    assert len(subject.receiver.get_buffer()) <= 256 * 2**10


def test_bytes_read_in_place_after_the_end_are_dropped(build: Build) -> None:
    subject = build.make()
    subject.receive_data(frame(BINARY, bytes(1000), key=wire.KEY)[:500], START)
    size = subject.receiver.payload_to_come()
    subject.receiver.get_buffer()[:size] = bytes(size)
    subject.abort()
    assert subject.receive_in_place(size, START) == []
    assert subject.counts().messages_received == 0


def test_an_interrupt_while_reading_borrowed_memory_ends_the_connection(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may raise anywhere: afterwards nothing is read from memory that others write to."""
    subject = build.make(limits=Limits(max_message_rate=100))
    memory = bytearray(frame(TEXT, b"one", key=wire.KEY) * 3)
    with monkeypatch.context() as patch:
        patch.setattr(MessageRate, "spend", lambda rate, now: signal.default_int_handler(signal.SIGINT, None))
        with pytest.raises(KeyboardInterrupt):
            subject.receive_step(memory, len(memory), START)
    assert subject.close_code == 1006
    assert subject.receive_step(memory, len(memory), START) == []


def test_only_unfragmented_messages_are_read_in_place(build: Build) -> None:
    for source in (
        frame(BINARY, bytes(1000), key=wire.KEY, fin=False),
        frame(BINARY, bytes(1000), key=wire.KEY, rsv=4),
        frame(PING, bytes(100), key=wire.KEY),
        frame(BINARY, bytes(1000), key=wire.KEY) * 2,
    ):
        subject = build.make(parameters=COMPRESSION)
        subject.receive_data(source[:50], START)
        assert (subject.receiver.payload_to_come() > 0) is (source[:2] == b"\x82\xfe")
        subject.abort()
        assert subject.receiver.payload_to_come() == 0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize(
    "pieces",
    [
        [b"Hel", b"lo"],
        [b"", b"Hello"],
        [b"Hello", b""],
        [b"H", b"e", b"l", b"l", b"o"],
        [b"", b"", b"Hello", b"", b""],
    ],
)
def test_fragments_are_joined(build: Build, role: Role, opcode: int, pieces: list[bytes]) -> None:
    result = arrives(build, wire.message(opcode, pieces, key=peer_key(role)), role)
    assert result.events == ["Hello" if opcode == TEXT else b"Hello"]
    assert result.counts == (len(pieces), 0, 1, 0)


@pytest.mark.parametrize("opcode, empty", [(TEXT, ""), (BINARY, b"")])
def test_a_message_of_empty_fragments_is_empty(build: Build, opcode: int, empty: str | bytes) -> None:
    assert arrives(build, wire.message(opcode, [b"", b"", b""], key=wire.KEY)).events == [empty]


@pytest.mark.advisory("aiohttp changelog")
@pytest.mark.parametrize("role", ROLES)
def test_control_frames_may_arrive_between_fragments(build: Build, role: Role) -> None:
    # aiohttp once lost the message.
    key = peer_key(role)
    data = (
        frame(TEXT, b"H\xc3", fin=False, key=key)
        + frame(PING, b"p", key=key)
        + frame(PONG, b"q", key=key)
        + frame(CONTINUATION, b"", fin=False, key=key)
        + frame(PING, b"", key=key)
        + frame(CONTINUATION, b"\xa9", key=key)
    )
    result = arrives(build, data, role)
    assert result.events == [Ping(b"p"), Pong(b"q"), Ping(b""), "Hé"]
    assert result.sent == [wire.Frame(PONG, b"p"), wire.Frame(PONG, b"")]
    assert result.counts == (6, 2, 1, 0)


def test_messages_in_one_chunk_keep_their_order(build: Build) -> None:
    data = b"".join(
        [
            frame(TEXT, b"1", key=wire.KEY),
            wire.message(BINARY, [b"2", b"2"], key=wire.KEY),
            frame(PING, b"3", key=wire.KEY),
            frame(TEXT, b"", key=wire.KEY),
            frame(BINARY, b"", key=wire.KEY),
            wire.close(1000, "5", key=wire.KEY),
        ]
    )
    result = arrives(build, data)
    assert result.events == ["1", b"22", Ping(b"3"), "", b"", CloseReceived(1000, "5")]


def test_a_message_is_released_before_the_next_one(build: Build) -> None:
    data = wire.message(TEXT, [b"a", b"b"], key=wire.KEY) + wire.message(BINARY, [b"c", b"d"], key=wire.KEY)
    assert arrives(build, data * 2).events == ["ab", b"cd", "ab", b"cd"]


# --- what breaks the rules of fragmentation ------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_without_a_first_frame_is_a_violation(build: Build, role: Role, fin: bool) -> None:
    key = peer_key(role)
    data = frame(TEXT, b"before", key=key) + frame(CONTINUATION, b"x", fin=fin, key=key)
    first, second = arrives(build, data, role).events
    assert first == "before"
    assert failure(second) == ("expected the first frame of a message, got a continuation frame", 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_message_inside_a_message_is_a_violation(build: Build, opcode: int, fin: bool) -> None:
    data = frame(TEXT, b"x", fin=False, key=wire.KEY) + frame(opcode, b"y", fin=fin, key=wire.KEY)
    (event,) = arrives(build, data).events
    assert failure(event) == ("expected a continuation frame, got the first frame of another message", 1002)


@pytest.mark.advisory("engine.io 4.x")
@pytest.mark.parametrize(
    "bad",
    [b"\xc1\x80", b"\xa1\x80", b"\x91\x80", b"\x83\x80", b"\x8b\x80", b"\x81\x00", b"\x09\x80", b"\x89\xfe"],
    ids=["RSV1", "RSV2", "RSV3", "data opcode", "control opcode", "no mask", "fragmented ping", "long ping"],
)
def test_a_malformed_frame_is_a_violation_and_nothing_worse(build: Build, bad: bytes) -> None:
    # engine.io once died of RSV2.
    for before in (b"", frame(TEXT, b"x", key=wire.KEY), frame(TEXT, b"x", fin=False, key=wire.KEY)):
        result = arrives(build, before + bad)
        assert failure(result.events[-1])[1] == 1002
        assert result.state in (State.FAILING, State.ENDING)


# --- UTF-8 (section 8.1) -------------------------------------------------------------------------------------


def first_bad_byte(data: bytes) -> int | None:
    """Index of the byte at which ``data`` stops being a prefix of valid UTF-8; table 3-7 of Unicode."""
    need, low, high = 0, 0x80, 0xBF
    for index, octet in enumerate(data):
        if need:
            if not low <= octet <= high:
                return index
            need, low, high = need - 1, 0x80, 0xBF
        elif octet < 0x80:
            pass
        elif 0xC2 <= octet <= 0xDF:
            need = 1
        elif 0xE0 <= octet <= 0xEF:
            need, low, high = 2, 0xA0 if octet == 0xE0 else 0x80, 0x9F if octet == 0xED else 0xBF
        elif 0xF0 <= octet <= 0xF4:
            need, low, high = 3, 0x90 if octet == 0xF0 else 0x80, 0x8F if octet == 0xF4 else 0xBF
        else:
            return index
    return None


BAD_UTF8 = [
    b"\x80",
    b"abc\xbf",
    b"\xc0\xaf",
    b"\xc1\xbf",
    b"\xc3(",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xe2(\xa1",
    b"\xe2\x82(",
    b"\xed\xa0\x80",
    b"\xed\xaf\xbf",
    b"\xed\xbf\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f\x98(",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    "κόσμε".encode() + b"\xed\xa0\x80" + b"edited",
]
UNFINISHED = [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"ab\xf4\x8f\xbf"]


def stored_block(octet: int) -> bytes:
    """One byte in a DEFLATE block that ends with the byte: it must be inflated as soon as it arrives."""
    return b"\x00\x01\x00\xfe\xff" + bytes([octet])


def octets(kind: str, payload: bytes, key: bytes | None) -> list[bytes]:
    """``payload`` on the wire, in pieces that carry exactly one byte of it each."""
    pieces = [payload[index : index + 1] for index in range(len(payload))]
    rest = b"more that never comes"
    if kind == "chunks":
        whole = frame(TEXT, payload + rest, key=key)
        start = len(whole) - len(payload + rest)
        cuts = [0, *range(start + 1, start + 1 + len(payload))]
        return [whole[begin:end] for begin, end in itertools.pairwise(cuts)]
    rsv = 4 if kind == "compressed" else 0
    if kind == "compressed":
        pieces = [stored_block(octet) for octet in payload]
    return [
        frame(CONTINUATION if index else TEXT, piece, fin=False, rsv=0 if index else rsv, key=key)
        for index, piece in enumerate(pieces)
    ]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["chunks", "fragments", "compressed"])
@pytest.mark.parametrize("text", BAD_UTF8)
def test_the_first_invalid_byte_of_a_text_is_a_violation_immediately(
    build: Build, kind: str, role: Role, text: bytes
) -> None:
    bad = first_bad_byte(text)
    assert bad is not None
    subject = build.make(role, parameters=COMPRESSION)
    for index, data in enumerate(octets(kind, text[: bad + 1], peer_key(role))):
        events = plain(subject.receive_data(data, START))
        if index < bad:
            assert events == []
        else:
            assert failure(events[0]) == NOT_UTF8


@pytest.mark.parametrize("text", BAD_UTF8 + UNFINISHED)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_text_that_is_not_utf8_is_a_violation_in_any_chunking(build: Build, text: bytes, count: int) -> None:
    step = len(text) // count + 1
    pieces = [text[index : index + step] for index in range(0, len(text), step)]
    data = frame(TEXT, "vorher é".encode(), key=wire.KEY) + wire.message(TEXT, pieces, key=wire.KEY)
    events = arrives(build, data).events
    assert events[0] == "vorher é"
    assert failure(events[1]) == NOT_UTF8


@pytest.mark.parametrize("text", UNFINISHED)
@pytest.mark.parametrize("kind", ["chunks", "fragments", "compressed"])
def test_a_character_may_be_split_but_not_left_incomplete(build: Build, kind: str, text: bytes) -> None:
    subject = build.make(Role.CLIENT, parameters=COMPRESSION)
    assert feed(subject, octets(kind, text, None)) == []
    if kind != "chunks":
        last = frame(CONTINUATION, b"\x00" if kind == "compressed" else b"")
        (event,) = plain(subject.receive_data(last, START))
        assert failure(event) == NOT_UTF8


@given(payload=st.binary(max_size=12) | st.text(max_size=5).map(str.encode), tail=st.binary(max_size=3))
def test_any_bytes_are_validated_as_unicode_says(build: Build, payload: bytes, tail: bytes) -> None:
    payload += tail
    subject = build.make(Role.CLIENT)
    subject.receive_data(frame(TEXT, fin=False), START)
    bad = first_bad_byte(payload)
    for index, octet in enumerate(payload):
        events = plain(subject.receive_data(frame(CONTINUATION, bytes([octet]), fin=False), START))
        if index == bad:
            assert failure(events[0]) == NOT_UTF8
            return
        assert events == []
    (event,) = plain(subject.receive_data(frame(CONTINUATION), START))
    if _is_utf8(payload):
        assert event == payload.decode()
    else:
        assert failure(event) == NOT_UTF8


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bad", [None, *BAD_UTF8, *UNFINISHED])
def test_a_large_text_frame_is_validated_chunk_by_chunk(build: Build, bad: bytes | None, role: Role) -> None:
    """Runs of ASCII of every length before other characters, because whole machine words are checked at once."""
    good = "".join("a" * run + "é水🙂"[run % 3] for run in range(40)).encode()
    text = good + (bad or b"") + (b"" if bad in UNFINISHED else good)
    wanted = first_bad_byte(text)
    data = frame(TEXT, text, key=peer_key(role))
    head = len(data) - len(text)
    for step in (1, 5, 64, 1000):
        subject = build.make(role)
        for start in range(0, len(data), step):
            events = plain(subject.receive_data(data[start : start + step], START))
            come = start + step - head
            if wanted is not None and come > wanted:
                assert failure(events[0]) == NOT_UTF8
                break
            if come >= len(text):
                assert failure(events[0]) == NOT_UTF8 if bad else events == [text.decode()]
            else:
                assert events == []


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_binary_messages_need_not_be_utf8(build: Build) -> None:
    for text in BAD_UTF8:
        assert arrives(build, frame(BINARY, text, key=wire.KEY)).events == [text]


# --- PING and PONG -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("payload", [b"", b"Hello", b"\xff" * 125])
def test_a_ping_is_answered_with_its_payload(build: Build, role: Role, payload: bytes) -> None:
    result = arrives(build, frame(PING, payload, key=peer_key(role)), role)
    assert result.events == [Ping(payload)]
    assert result.sent == [wire.Frame(PONG, payload)]


def test_every_ping_is_answered_in_order(build: Build) -> None:
    data = b"".join(frame(PING, b"%d" % number, key=wire.KEY) for number in range(20))
    result = arrives(build, data)
    assert result.sent == [wire.Frame(PONG, b"%d" % number) for number in range(20)]


@pytest.mark.parametrize("role", ROLES)
def test_an_unsolicited_pong_is_reported_and_not_answered(build: Build, role: Role) -> None:
    result = arrives(build, frame(PONG, b"x", key=peer_key(role)), role)
    assert result.events == [Pong(b"x")]
    assert result.sent == []


def test_latency_is_the_round_trip_of_the_last_answered_ping(build: Build) -> None:
    subject = build.make()
    assert subject.latency is None
    subject.ping(b"a", START)
    subject.receive_data(frame(PONG, b"b", key=wire.KEY), START + 0.125)
    assert subject.latency is None
    subject.receive_data(frame(PONG, b"a", key=wire.KEY), START + 0.25)
    assert subject.latency == 0.25
    subject.receive_data(frame(PONG, b"a", key=wire.KEY), START + 5)
    assert subject.latency == 0.25, "a PING is answered once"


def test_a_pong_also_answers_earlier_pings(build: Build) -> None:
    # Section 5.5.3: "MAY elect to send a Pong frame for only the most recently processed Ping".
    subject = build.make()
    for number in range(3):
        subject.ping(b"%d" % number, START + number)
    subject.receive_data(frame(PONG, b"1", key=wire.KEY), START + 3)
    assert subject.latency == 2.0
    subject.receive_data(frame(PONG, b"0", key=wire.KEY), START + 9)
    assert subject.latency == 2.0
    subject.receive_data(frame(PONG, b"2", key=wire.KEY), START + 9)
    assert subject.latency == 7.0


def test_a_repeated_ping_is_timed_from_its_last_sending(build: Build) -> None:
    subject = build.make()
    subject.ping(b"a", START)
    subject.ping(b"a", START + 2)
    subject.receive_data(frame(PONG, b"a", key=wire.KEY), START + 3)
    assert subject.latency == 1.0


def test_only_the_newest_pings_are_remembered(build: Build) -> None:
    subject = build.make()
    for number in range(17):
        subject.ping(b"%d" % number, START)
    subject.receive_data(frame(PONG, b"0", key=wire.KEY), START + 1)
    assert subject.latency is None
    subject.receive_data(frame(PONG, b"1", key=wire.KEY), START + 1)
    assert subject.latency == 1.0


# --- compression ---------------------------------------------------------------------------------------------


def compressed(payload: bytes) -> bytes:
    """A first message as a peer with zlib sends it."""
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_compressed_text_that_is_not_utf8_is_a_violation(build: Build) -> None:
    data = frame(TEXT, compressed(b"a\xff"), rsv=4)
    (event,) = arrives(build, data, Role.CLIENT, parameters=COMPRESSION).events
    assert failure(event) == NOT_UTF8
