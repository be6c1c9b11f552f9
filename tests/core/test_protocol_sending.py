"""core/protocol.py: sending, and compression in both directions."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import Outcome, chunkings, deliver, failure, feed, outcome, peer_key
from tests.support.wire import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from watershed_mw.core.events import Ping
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.states import Role
from watershed_mw.errors import ConnectionClosed, LocalProtocolError

ROLES = [Role.SERVER, Role.CLIENT]
COMPRESSION = DeflateParameters(options=DeflateOptions(window_bits=15, threshold=0))


def arrives(build: Build, data: bytes, role: Role = Role.SERVER, **options: Any) -> Outcome:
    """The events of ``data``, in any chunking."""
    return deliver(lambda: build.make(role, **options), data, role)


# --- compression ---------------------------------------------------------------------------------------------


def compressed(payload: bytes) -> bytes:
    """A first message as a peer with zlib sends it."""
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


# --- sending -------------------------------------------------------------------------------------------------


def sent(subject: Any) -> list[wire.Frame]:
    """The outgoing frames of ``subject``."""
    return wire.frames(subject.data_to_send())


def test_a_server_sends_unmasked_frames(build: Build) -> None:
    subject = build.make(Role.SERVER)
    subject.send_text("é")
    subject.send_binary(b"\xff")
    subject.ping(b"p", START)
    assert sent(subject) == [wire.Frame(TEXT, "é".encode()), wire.Frame(BINARY, b"\xff"), wire.Frame(PING, b"p")]
    assert subject.data_to_send() == b""


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_client_masks_every_frame(build: Build, size: int) -> None:
    subject = build.make(Role.CLIENT)
    payload = random.Random(size).randbytes(size)
    subject.send_binary(payload)
    subject.ping(b"p", START)
    subject.receive_data(frame(PING, b"q"), START)
    subject.close(1000, "", START)
    frames = sent(subject)
    assert [(item.opcode, item.payload) for item in frames] == [
        (BINARY, payload),
        (PING, b"p"),
        (PONG, b"q"),
        (wire.CLOSE, b"\x03\xe8"),
    ]
    assert all(item.key is not None for item in frames)


def test_masking_keys_do_not_repeat(build: Build) -> None:
    # Section 5.3: fresh and unpredictable for every frame, and for every connection.
    keys = []
    for _ in range(2):
        subject = build.make(Role.CLIENT)
        for _ in range(600):
            subject.send_binary(b"")
        keys += [item.key for item in sent(subject)]
    assert len(set(keys)) > 1190
    assert len({key[0] for key in keys if key}) > 200


def test_sending_never_changes_the_callers_buffer(build: Build) -> None:
    for role in ROLES:
        for parameters in (None, COMPRESSION):
            source = bytearray(random.Random(1).randbytes(1000))
            message, payload = bytes(source), bytes(source[:125])
            subject = build.make(role, parameters=parameters)
            subject.send_binary(message)
            subject.ping(payload, START)
            assert message == source
            assert payload == source[:125]


def test_receiving_never_changes_the_callers_buffer(build: Build) -> None:
    source = bytearray(frame(BINARY, b"abc" * 100, key=wire.KEY) + frame(PING, b"x", key=wire.KEY))
    for chunks in chunkings(bytes(source)):
        feed(build.make(), chunks)
        assert b"".join(chunks) == source


def test_outgoing_bytes_are_returned_once_and_together(build: Build) -> None:
    subject = build.make()
    assert subject.data_to_send() == b""
    subject.send_text("a")
    first = subject.data_to_send()
    subject.send_text("b")
    subject.send_text("c")
    assert wire.frames(first) == [wire.Frame(TEXT, b"a")]
    assert subject.outgoing.unsent_size == 6
    assert sent(subject) == [wire.Frame(TEXT, b"b"), wire.Frame(TEXT, b"c")]
    assert subject.outgoing.unsent_size == 0


@pytest.mark.parametrize("role", ROLES)
def test_text_with_a_lone_surrogate_is_a_local_error_and_nothing_is_sent(build: Build, role: Role) -> None:
    subject = build.make(role)
    with pytest.raises(LocalProtocolError, match=r"^expected text that UTF-8 can encode: surrogates not allowed"):
        subject.send_text("a\ud800")
    assert outcome(subject, []) == outcome(build.make(role), [])
    subject.send_text("ok")


def test_a_ping_of_more_than_125_bytes_is_a_local_error_and_nothing_is_sent(build: Build) -> None:
    subject = build.make()
    subject.ping(bytes(125), START)
    assert len(sent(subject)) == 1
    with pytest.raises(LocalProtocolError, match=r"^expected at most 125 bytes in a PING, got 126"):
        subject.ping(bytes(126), START)
    assert subject.data_to_send() == b""


@pytest.mark.parametrize("size", [2_047, 2_048, 65_535, 65_536, 200_000])
def test_a_server_does_not_copy_a_large_payload_into_its_frame(build: Build, size: int) -> None:
    payload = bytes(size)
    subject = build.make(Role.SERVER)
    subject.send_text("before")
    subject.send_binary(payload)
    unsent = subject.outgoing.unsent_size
    pieces = subject.outgoing.pieces_to_send()
    assert (sum(map(len, pieces)), subject.outgoing.unsent_size, subject.data_to_send()) == (unsent, 0, b"")
    assert wire.frames(b"".join(pieces)) == [wire.Frame(TEXT, b"before"), wire.Frame(BINARY, payload)]
    assert any(piece is payload for piece in pieces) is (size >= 2_048)


def test_unwritten_bytes_go_first(build: Build) -> None:
    subject = build.make(Role.SERVER)
    subject.send_text("one")
    rest = subject.data_to_send()[2:]
    subject.send_text("two")
    subject.put_back(rest)
    assert subject.outgoing.unsent_size == len(rest) + 5
    assert subject.data_to_send() == rest + frame(TEXT, b"two")
    subject.abort()
    subject.put_back(rest)
    assert (subject.outgoing.unsent_size, subject.data_to_send()) == (0, b"")


def test_nothing_is_sent_after_the_end(build: Build) -> None:
    subject = build.make()
    subject.close(1001, "going", START)
    subject.data_to_send()
    for action, arguments in (
        (subject.send_text, ("a",)),
        (subject.send_binary, (b"a",)),
        (subject.ping, (b"", START)),
    ):
        with pytest.raises(ConnectionClosed) as caught:
            action(*arguments)
        assert (caught.value.code, caught.value.reason) == (1001, "going")
    assert subject.data_to_send() == b""


def test_frames_messages_and_bytes_are_counted(build: Build) -> None:
    subject = build.make(Role.CLIENT)
    incoming = wire.message(TEXT, [b"a", b"b"]) + frame(PING) + frame(BINARY, b"c")
    subject.receive_data(incoming, START)
    subject.send_text("a" * 200)
    subject.ping(b"", START)
    data = subject.data_to_send()
    assert (subject.counts().frames_received, subject.counts().messages_received, subject.counts().bytes_received) == (
        4,
        2,
        len(incoming),
    )
    assert (subject.counts().frames_sent, subject.messages_sent, subject.counts().bytes_sent) == (3, 1, len(data))


# --- compression ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("opcode, text", [(TEXT, "é" * 200), (BINARY, b"\xff" * 200), (TEXT, ""), (BINARY, b"")])
def test_compressed_messages_arrive(build: Build, role: Role, opcode: int, text: str | bytes) -> None:
    payload = compressed(text.encode() if isinstance(text, str) else text)
    for count in (1, 2, 5):
        step = len(payload) // count + 1
        pieces = [payload[index : index + step] for index in range(0, len(payload), step)]
        data = wire.message(opcode, pieces, rsv=4, key=peer_key(role))
        assert arrives(build, data, role, parameters=COMPRESSION).events == [text]


def test_uncompressed_messages_may_arrive_between_compressed_ones(build: Build) -> None:
    shared = bytes.fromhex("f2 00 11 00 00")
    data = (
        frame(TEXT, compressed(b"Hello"), rsv=4)
        + frame(TEXT, b"plain")
        + wire.message(TEXT, [b"pla", b"in"])
        + frame(TEXT, shared, rsv=4)
    )
    result = arrives(build, data, Role.CLIENT, parameters=COMPRESSION)
    assert result.events == ["Hello", "plain", "plain", "Hello"]


@pytest.mark.advisory("aiohttp changelog")
def test_control_frames_may_arrive_between_compressed_fragments(build: Build) -> None:
    payload = compressed(b"Hello")
    data = frame(TEXT, payload[:3], fin=False, rsv=4) + frame(PING, b"x") + frame(CONTINUATION, payload[3:])
    result = arrives(build, data, Role.CLIENT, parameters=COMPRESSION)
    assert result.events == [Ping(b"x"), "Hello"]
    assert result.sent == [wire.Frame(PONG, b"x")]


def test_compressed_garbage_is_a_violation(build: Build) -> None:
    data = frame(BINARY, b"\x07\x07\x07", rsv=4)
    (event,) = arrives(build, data, Role.CLIENT, parameters=COMPRESSION).events
    assert failure(event) == ("invalid DEFLATE data in a compressed message", 1007)


def test_a_compressed_frame_without_negotiated_compression_is_a_violation(build: Build) -> None:
    (event,) = arrives(build, frame(BINARY, compressed(b"a"), rsv=4), Role.CLIENT).events
    assert failure(event) == ("expected reserved bits of 0, got one that no extension has given a meaning", 1002)


@pytest.mark.parametrize("role", ROLES)
def test_messages_are_sent_compressed_from_the_threshold_on(build: Build, role: Role) -> None:
    parameters = DeflateParameters(options=DeflateOptions(window_bits=15, threshold=10))
    subject = build.make(role, parameters=parameters)
    subject.send_text("a" * 9)
    subject.send_text("b" * 10)
    subject.send_binary(b"c" * 9)
    subject.send_binary(b"d" * 10)
    subject.ping(b"e" * 100, START)
    frames = sent(subject)
    assert [(item.opcode, item.rsv, item.fin) for item in frames] == [
        (TEXT, 0, True),
        (TEXT, 4, True),
        (BINARY, 0, True),
        (BINARY, 4, True),
        (PING, 0, True),
    ]
    inflater = zlib.decompressobj(-15)
    texts = [inflater.decompress(item.payload + b"\x00\x00\xff\xff") for item in frames if item.rsv]
    assert texts == [b"b" * 10, b"d" * 10]


@pytest.mark.advisory("aiohttp changelog")
def test_a_refused_message_does_not_affect_the_compressor(build: Build) -> None:
    subject = build.make(parameters=COMPRESSION)
    subject.send_text("Hello")
    with pytest.raises(LocalProtocolError):
        subject.send_text("Hello\ud800")
    subject.send_text("Hello")
    inflater = zlib.decompressobj(-15)
    texts = [inflater.decompress(item.payload + b"\x00\x00\xff\xff") for item in sent(subject)]
    assert texts == [b"Hello", b"Hello"]
