"""core/frames/codec.py: framing and masking (RFC 6455 sections 5.2, 5.3 and 5.5; the examples are section 5.7)."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import Build
from tests.support.deliveries import chunkings, cut
from tests.support.memory import measured
from tests.support.wire import KEY, Frame, frame
from watershed_mw.core.frames import codec
from watershed_mw.errors import RemoteProtocolError

# Section 5.7: what the bytes are, and what they stand for.
EXAMPLES = [
    pytest.param("81 05 48 65 6c 6c 6f", [Frame(wire.TEXT, b"Hello")], id="unmasked text"),
    pytest.param("81 85 37 fa 21 3d 7f 9f 4d 51 58", [Frame(wire.TEXT, b"Hello", key=KEY)], id="masked text"),
    pytest.param(
        "01 03 48 65 6c 80 02 6c 6f",
        [Frame(wire.TEXT, b"Hel", fin=False), Frame(wire.CONTINUATION, b"lo")],
        id="fragmented unmasked text",
    ),
    pytest.param("89 05 48 65 6c 6c 6f", [Frame(wire.PING, b"Hello")], id="unmasked ping"),
    pytest.param("8a 85 37 fa 21 3d 7f 9f 4d 51 58", [Frame(wire.PONG, b"Hello", key=KEY)], id="masked pong"),
    pytest.param("82 7e 01 00" + " 5a" * 256, [Frame(wire.BINARY, b"Z" * 256)], id="256 bytes"),
    pytest.param("82 7f 00 00 00 00 00 01 00 00" + " 5a" * 65536, [Frame(wire.BINARY, b"Z" * 65536)], id="64 KiB"),
]
LENGTHS = [0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537, 100_000]


@dataclass
class Reading:
    """A reader's record of one frame."""

    opcode: int
    fin: bool
    rsv1: bool
    length: int
    payload: bytes


def read(reader: codec.FrameReader, chunks: Iterable[bytes]) -> list[Reading]:
    """Feed ``chunks`` and join the pieces, checking that they mark a frame's beginning and end."""
    readings: list[Reading] = []
    last = True
    for chunk in chunks:
        reader.feed(chunk)
        while reader.read():
            assert reader.first == last, "a piece did not tell that it was the first"
            if reader.first:
                readings.append(Reading(reader.opcode, reader.fin, reader.rsv1, reader.length, b""))
            readings[-1].payload += reader.take()
            last = reader.last
            assert last == (len(readings[-1].payload) == reader.length)
    return readings


def read_one(build: Build, data: bytes, masked: bool = True, rsv1: bool = False) -> Reading:
    """The only frame in ``data``."""
    (reading,) = read(build.FrameReader(masked, rsv1), [data])
    return reading


def refused(build: Build, data: bytes, masked: bool = True, rsv1: bool = False) -> str:
    """The text with which a reader refuses ``data``, whole and byte by byte."""
    texts = set()
    for chunks in chunkings(data):
        with pytest.raises(RemoteProtocolError) as caught:
            read(build.FrameReader(masked, rsv1), chunks)
        assert caught.value.close_code == 1002
        texts.add(str(caught.value))
    (text,) = texts
    return text


# --- the worked examples of section 5.7 -----------------------------------------------------------


@pytest.mark.parametrize("example, expected", EXAMPLES)
def test_examples_of_section_5_7_are_read(build: Build, example: str, expected: list[Frame]) -> None:
    masked = expected[0].key is not None
    data = bytes.fromhex(example)
    for chunks in chunkings(data) if len(data) < 1000 else [[data]]:
        readings = read(build.FrameReader(masked, False), chunks)
        assert [(item.opcode, item.fin, item.payload) for item in readings] == [
            (item.opcode, item.fin, item.payload) for item in expected
        ]


@pytest.mark.parametrize("example, expected", EXAMPLES)
def test_examples_of_section_5_7_are_written(build: Build, example: str, expected: list[Frame]) -> None:
    written = b"".join(
        build.encode_frame(item.opcode, item.payload, item.key, 0x80 if item.fin else 0) for item in expected
    )
    assert written == bytes.fromhex(example)


# --- masking --------------------------------------------------------------------------------------


def test_masking_is_the_algorithm_of_section_5_3(build: Build) -> None:
    data = bytes(random.Random(1).randbytes(300))
    for size in range(70):
        for phase in range(4):
            turned = KEY[phase:] + KEY[:phase]
            assert build.mask(data, 0, size, KEY, phase) == wire.xor(data[:size], turned)


@pytest.mark.parametrize("start, stop", [(0, 0), (5, 5), (300, 300), (3, 300), (1, 2), (17, 211)])
def test_masking_takes_a_slice(build: Build, start: int, stop: int) -> None:
    data = bytes(random.Random(2).randbytes(300))
    assert build.mask(data, start, stop, KEY, 0) == wire.xor(data[start:stop], KEY)


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 32_768, 50_003])
def test_masking_works_on_large_payloads(build: Build, size: int) -> None:
    data = bytes(random.Random(4).randbytes(size + 5))
    for phase in range(4):
        assert build.mask(data, 5, 5 + size, KEY, phase) == wire.xor(data[5:], KEY[phase:] + KEY[:phase])


@pytest.mark.parametrize("key", [bytes(4), b"\xff" * 4, b"\x80\x00\x00\x01", KEY])
def test_masking_is_its_own_inverse(build: Build, key: bytes) -> None:
    data = bytes(random.Random(3).randbytes(1001))
    assert build.mask(build.mask(data, 0, 1001, key, 3), 0, 1001, key, 3) == data


def test_the_masking_phase_counts_modulo_four(build: Build) -> None:
    assert build.mask(b"Hello", 0, 5, KEY, 6) == build.mask(b"Hello", 0, 5, KEY, 2)


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_masking_never_changes_the_callers_buffer(build: Build, size: int) -> None:
    # node-watershed masked in place. A new object each time, not one that the interpreter shares.
    source = bytearray(random.Random(size).randbytes(size))
    data = bytes(source)
    key = bytes(bytearray(KEY))
    masked = build.mask(data, 0, size, key, 0)
    build.encode_frame(wire.BINARY, data, key)
    assert data == source
    assert key == KEY
    assert type(masked) is bytes


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("size", LENGTHS)
def test_lengths_are_written_in_their_shortest_form(build: Build, size: int, key: bytes | None) -> None:
    payload = bytes(size)
    data = build.encode_frame(wire.BINARY, payload, key)
    assert data == frame(wire.BINARY, payload, key=key)
    form = 2 if size < 126 else 4 if size < 65536 else 10
    assert len(data) == form + (4 if key else 0) + size


@pytest.mark.parametrize("bits", [0x00, 0x40, 0x80, 0xC0])
def test_header_bits_are_written_as_given(build: Build, bits: int) -> None:
    assert build.encode_frame(wire.TEXT, b"", None, bits) == bytes([bits | 1, 0])


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", LENGTHS)
def test_lengths_of_every_form_are_read(build: Build, size: int, masked: bool) -> None:
    payload = bytes(random.Random(size).randbytes(size))
    data = frame(wire.BINARY, payload, key=KEY if masked else None)
    assert read_one(build, data, masked) == Reading(wire.BINARY, True, False, size, payload)


@pytest.mark.parametrize("masked", [True, False])
def test_any_chunking_gives_the_same_frames(build: Build, masked: bool) -> None:
    key = KEY if masked else None
    data = b"".join(frame(wire.BINARY, bytes(range(size % 256)) + bytes(200), key=key) for size in range(0, 400, 37))
    expected = read(build.FrameReader(masked, False), [data])
    assert len(expected) == 11
    for chunks in chunkings(data):
        assert read(build.FrameReader(masked, False), chunks) == expected


@pytest.mark.parametrize("declared", [65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1])
def test_lengths_of_63_bits_are_read_without_reserving_memory(build: Build, declared: int) -> None:
    data = frame(wire.BINARY, b"only this", key=KEY, declared=declared, form=64)
    reader = build.FrameReader(True, False)
    with measured() as memory:
        reader.feed(data)
        assert reader.read()
        assert (reader.length, reader.take(), reader.first, reader.last) == (
            declared,
            b"only this",
            True,
            False,
        )
        assert not reader.read()
    assert memory.peak < 50_000


@pytest.mark.parametrize("declared", [2**63, 2**63 + 5, 2**64 - 1])
def test_a_length_with_its_highest_bit_set_is_refused(build: Build, declared: int) -> None:
    data = frame(wire.BINARY, declared=declared, form=64, key=KEY)
    assert refused(build, data) == "expected a frame length below 2**63, got its highest bit set"


@pytest.mark.parametrize("form, declared", [(16, 0), (16, 1), (16, 125), (64, 0), (64, 125), (64, 126), (64, 65535)])
@pytest.mark.parametrize("masked", [True, False])
def test_only_the_shortest_form_of_a_length_is_accepted(build: Build, form: int, declared: int, masked: bool) -> None:
    data = frame(wire.BINARY, bytes(declared), form=form, key=KEY if masked else None)
    expected = f"expected the shortest form of a frame's length, got {declared} in {form} bits"
    assert refused(build, data, masked) == expected


@pytest.mark.parametrize("form, declared", [(16, 125), (64, 65535), (64, 2**63)])
def test_a_length_is_checked_before_the_masking_key_arrives(build: Build, form: int, declared: int) -> None:
    # A peer that trickles must not be waited for.
    data = frame(wire.BINARY, declared=declared, form=form, key=KEY)
    refused(build, data[: 4 if form == 16 else 10])


@pytest.mark.parametrize("size", range(14))
def test_a_header_in_two_parts_is_read(build: Build, size: int) -> None:
    data = frame(wire.BINARY, bytes(65536), key=KEY)
    (reading,) = read(build.FrameReader(True, False), [data[:size], data[size:]])
    assert reading.payload == bytes(65536)


def test_reading_an_empty_chunk_is_harmless(build: Build) -> None:
    reader = build.FrameReader(True, False)
    assert not reader.read()
    reader.feed(b"")
    assert not reader.read()
    assert read(reader, [b"", frame(wire.TEXT, b"a", key=KEY), b""])[0].payload == b"a"


def test_a_frame_without_payload_yields_one_empty_piece(build: Build) -> None:
    reader = build.FrameReader(False, False)
    reader.feed(frame(wire.TEXT))
    assert reader.read()
    assert (reader.first, reader.last, reader.take()) == (True, True, b"")
    assert not reader.read()


def test_a_partial_payload_is_passed_on_immediately(build: Build) -> None:
    data = frame(wire.BINARY, b"abcdef", key=KEY)
    reader = build.FrameReader(True, False)
    pieces = []
    for chunk in (data[:7], data[7:9], data[9:]):
        reader.feed(chunk)
        while reader.read():
            pieces.append(reader.take())
    assert pieces == [b"a", b"bc", b"def"]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("key", [None, KEY])
def test_ascii_needs_no_encoding(build: Build, size: int, key: bytes | None) -> None:
    text = "abcdefg" * (size // 7) + "abcdefg"[: size % 7]
    assert build.encode_frame(wire.TEXT, text, key) == build.encode_frame(wire.TEXT, text.encode(), key)


def test_other_text_needs_encoding(build: Build) -> None:
    with pytest.raises(ValueError, match="expected ASCII"):
        build.encode_frame(wire.TEXT, "é", None)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("step", [1, 7, 4096, 5000, 262144])
def test_pieces_are_joined(build: Build, masked: bool, step: int) -> None:
    sizes = [1, 3, 125, 126, 4095, 4096, 4097, 70_000] if step < 4096 else [70_000, 1_000_001]
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    data = b"".join(frame(wire.BINARY, payload, key=KEY if masked else None) for payload in payloads)
    reader = build.FrameReader(masked, False)
    buffer = build.PayloadBuffer(0)
    gathered = []
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        while reader.read():
            if reader.first:
                buffer = build.PayloadBuffer(reader.length)
            reader.gather(buffer)
            if reader.last:
                gathered.append(buffer.take())
    assert gathered == payloads


def test_a_declared_length_reserves_little_memory_until_data_arrives(build: Build) -> None:
    payload = bytes(2**20)
    data = frame(wire.BINARY, payload, key=KEY)
    reader = build.FrameReader(True, False)
    buffer = build.PayloadBuffer(len(payload))
    come = 0
    for chunk in (100, 900, 9_000, 90_000):
        with measured() as memory:
            reader.feed(data[come : come + chunk])
            while reader.read():
                reader.gather(buffer)
        come += chunk
        assert memory.held < 17 * come + 5_000


# --- what is refused ------------------------------------------------------------------------------

EVERY_FIRST_BYTE = range(256)
KNOWN = {wire.CONTINUATION, wire.TEXT, wire.BINARY, wire.CLOSE, wire.PING, wire.PONG}


def allowed(first: int, rsv1: bool) -> bool:
    """Whether a frame of an empty payload may begin with this byte: section 5.2, in one expression."""
    opcode, fin = first & 0x0F, first >= 0x80
    reserved = first & (0x30 if rsv1 and opcode in (wire.TEXT, wire.BINARY) else 0x70)
    return opcode in KNOWN and not reserved and (fin or opcode < 8)


@pytest.mark.parametrize("rsv1", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_every_first_byte_is_handled_as_section_5_2_says(build: Build, masked: bool, rsv1: bool) -> None:
    taken = set()
    for first in EVERY_FIRST_BYTE:
        reader = build.FrameReader(masked, rsv1)
        reader.feed(bytes([first]) + (b"\x80" + KEY if masked else b"\x00"))
        try:
            assert reader.read()
        except RemoteProtocolError:
            continue
        assert (reader.opcode, reader.fin, reader.rsv1) == (first & 15, first >= 0x80, bool(first & 0x40))
        taken.add(first)
    assert taken == {first for first in EVERY_FIRST_BYTE if allowed(first, rsv1)}


@pytest.mark.advisory("engine.io 4.x")
@pytest.mark.parametrize("rsv", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("opcode", [wire.TEXT, wire.CONTINUATION, wire.PING, wire.CLOSE, 3])
def test_rsv2_and_rsv3_are_refused(build: Build, opcode: int, rsv: int) -> None:
    data = frame(opcode, rsv=rsv, key=KEY)
    message = "expected reserved bits of 0, got one that no extension has given a meaning"
    assert refused(build, data, rsv1=True) == message
    assert refused(build, data, rsv1=False) == message


def test_rsv1_is_refused_without_compression(build: Build) -> None:
    message = "expected reserved bits of 0, got one that no extension has given a meaning"
    assert refused(build, frame(wire.TEXT, b"a", rsv=4, key=KEY)) == message


@pytest.mark.parametrize("opcode", [wire.CONTINUATION, wire.CLOSE, wire.PING, wire.PONG])
def test_rsv1_is_only_allowed_on_the_first_frame_of_a_message(build: Build, opcode: int) -> None:
    # RFC 7692 section 6.1
    message = "expected RSV1 on the first frame of a message alone, got it on another frame"
    assert refused(build, frame(opcode, rsv=4, key=KEY), rsv1=True) == message
    for first in (wire.TEXT, wire.BINARY):
        assert read_one(build, frame(first, rsv=4, key=KEY), rsv1=True).rsv1


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_unknown_opcodes_are_refused(build: Build, opcode: int) -> None:
    assert refused(build, frame(opcode, key=KEY)) == f"expected a known opcode, got {opcode}"


@pytest.mark.parametrize("opcode", sorted(KNOWN))
def test_clients_mask_and_servers_do_not(build: Build, opcode: int) -> None:
    # Section 5.1
    assert refused(build, frame(opcode, b""), masked=True) == "expected a masked frame, got an unmasked one"
    unmasked = refused(build, frame(opcode, b"", key=KEY), masked=False)
    assert unmasked == "expected an unmasked frame, got a masked one"


@pytest.mark.parametrize("opcode", [wire.CLOSE, wire.PING, wire.PONG])
def test_control_frames_are_not_fragmented(build: Build, opcode: int) -> None:
    data = frame(opcode, b"a", fin=False, key=KEY)
    assert refused(build, data) == "expected a control frame in one piece, got a fragment"


@pytest.mark.parametrize("opcode", [wire.CLOSE, wire.PING, wire.PONG])
@pytest.mark.parametrize("size", [126, 65535, 65536])
def test_control_frames_hold_at_most_125_bytes(build: Build, opcode: int, size: int) -> None:
    data = frame(opcode, bytes(size), key=KEY)[:14]
    assert refused(build, data) == "expected a control frame of at most 125 bytes, got a longer one"
    assert read_one(build, frame(opcode, bytes(125), key=KEY)).length == 125


@pytest.mark.parametrize(
    "header",
    [b"\xf1\x85", b"\x81\x05", b"\x83\x80", b"\x09\x80", b"\x89\xfe", b"\x89\xff"],
    ids=["reserved bit", "no mask", "opcode", "fragment", "126 bytes", "more bytes"],
)
def test_two_bytes_are_enough_to_refuse_a_frame(build: Build, header: bytes) -> None:
    refused(build, header)


def test_one_byte_is_never_enough_to_refuse_a_frame(build: Build) -> None:
    for first in EVERY_FIRST_BYTE:
        reader = build.FrameReader(True, False)
        reader.feed(bytes([first]))
        assert not reader.read()


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rest", [0, 1, 2, 5, 13])
def test_an_idle_reader_keeps_no_chunk(build: Build, masked: bool, rest: int) -> None:
    key = KEY if masked else None
    reader = build.FrameReader(masked, False)
    beginning = frame(wire.BINARY, declared=70_000, form=64, key=key)[:rest]
    whole = frame(wire.BINARY, bytes(100_000), key=key)
    with measured() as memory:
        reader.feed(whole + beginning)
        while reader.read():
            pass
    assert memory.held < 5_000


def test_a_cleared_reader_keeps_nothing(build: Build) -> None:
    reader = build.FrameReader(False, False)
    chunk = frame(wire.BINARY, b"x") + bytes(100_000)
    with measured() as memory:
        reader.feed(bytes(bytearray(chunk)))
        assert reader.read()
        reader.forget()
    assert memory.held < 5_000
    assert not reader.read()


@pytest.mark.advisory("aiohttp#13350")
def test_a_trickled_payload_is_not_kept(build: Build) -> None:
    # aiohttp#13350: data that arrived byte by byte took 28 times its size.
    reader = build.FrameReader(True, False)
    reader.feed(frame(wire.BINARY, declared=2**40, form=64, key=KEY))
    with measured() as memory:
        for _ in range(5_000):
            while reader.read():
                pass
            reader.feed(b"x")
        while reader.read():
            pass
    assert memory.peak < 10_000


# --- the two builds -------------------------------------------------------------------------------


def test_the_interpreted_build_does_not_need_cython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cython", None)  # an import of it now fails
    source = Path(codec.__file__ or "").with_name("codec.py")
    spec = importlib.util.spec_from_file_location("watershed_mw.core.frames.codec_without_cython", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.encode_frame(wire.TEXT, b"Hello", KEY) == frame(wire.TEXT, b"Hello", key=KEY)


# --- whatever comes -------------------------------------------------------------------------------


@given(data=st.binary(max_size=300), masked=st.booleans(), rsv1=st.booleans(), seed=st.integers(0, 999))
def test_garbage_is_read_or_refused_identically_in_any_chunking(
    build: Build, data: bytes, masked: bool, rsv1: bool, seed: int
) -> None:
    results = []
    for chunks in (
        [data],
        [data[index : index + 1] for index in range(len(data))],
        cut(data, random.Random(seed), 9),
    ):
        reader = build.FrameReader(masked, rsv1)
        readings: list[Reading] = []
        error = ""
        try:
            for chunk in chunks:
                reader.feed(chunk)
                while reader.read():
                    if reader.first:
                        readings.append(Reading(reader.opcode, reader.fin, reader.rsv1, reader.length, b""))
                    readings[-1].payload += reader.take()
        except RemoteProtocolError as refusal:
            error = str(refusal)
        results.append((readings, error))
    assert results[0] == results[1] == results[2]
