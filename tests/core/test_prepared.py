"""core/prepared.py: frames encoded once for many connections (RFC 6455 section 5.2, RFC 7692 section 7.2.1)."""

from __future__ import annotations

import pytest

from tests.support import wire
from tests.support.builds import START, Build
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.states import Role
from watershed_mw.errors import ConnectionClosed, LocalProtocolError

AGREED = DeflateParameters(options=DeflateOptions(threshold=10))


def test_servers_without_compression_share_the_same_bytes(build: Build) -> None:
    shared = build.PreparedMessage("hé")
    one, two = (build.make().send_prepared(shared) for _ in range(2))
    assert one is two
    assert one == wire.frame(wire.TEXT, "hé".encode())


def test_servers_with_the_same_window_and_level_compress_once(build: Build) -> None:
    shared = build.PreparedMessage(b"a message of some length")
    protocols = [build.make(parameters=AGREED) for _ in range(2)]
    one, two = (protocol.send_prepared(shared) for protocol in protocols)
    assert one is two
    assert one[0] == 0xC2
    smaller = build.make(parameters=DeflateParameters(local_max_window_bits=9, options=AGREED.options))
    assert smaller.send_prepared(shared) is not one
    # What a connection sends by itself afterwards refers to nothing.
    fresh = build.make(parameters=AGREED)
    for protocol in (protocols[0], fresh):
        protocol.send_binary(b"a message of some length")
    assert protocols[0].data_to_send() == fresh.data_to_send() == one


def test_below_the_threshold_nothing_is_compressed(build: Build) -> None:
    sent = build.make(parameters=AGREED).send_prepared(build.PreparedMessage(b"short"))
    assert sent == wire.frame(wire.BINARY, b"short")


def test_pending_bytes_go_first_and_counters_agree(build: Build) -> None:
    protocol = build.make()
    protocol.send_text("first")
    assert protocol.send_prepared(build.PreparedMessage("second")) == b""
    assert protocol.data_to_send() == wire.frame(wire.TEXT, b"first") + wire.frame(wire.TEXT, b"second")
    sent = protocol.send_prepared(build.PreparedMessage("third"))
    assert (protocol.counts().frames_sent, protocol.messages_sent, protocol.outgoing.unsent_size) == (3, 3, 0)
    assert protocol.counts().bytes_sent == 7 + 8 + len(sent)


def test_a_client_queues_a_frame_of_its_own(build: Build) -> None:
    protocol = build.make(Role.CLIENT)
    assert protocol.send_prepared(build.PreparedMessage("x")) == b""
    assert len(protocol.data_to_send()) == 2 + 4 + 1


def test_nothing_is_sent_after_a_close(build: Build) -> None:
    protocol = build.make()
    protocol.close(1000, "", START)
    with pytest.raises(ConnectionClosed):
        protocol.send_prepared(build.PreparedMessage("late"))
    with pytest.raises(LocalProtocolError):
        build.PreparedMessage("\ud800")
