"""Hypothesis strategies for a peer's bytes: any messages, any fragments, any chunking, and broken streams.

Streams are built with ``wire.py`` and zlib only, independently of the package's own code.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.support import wire
from tests.support.deliveries import cut, peer_key
from watershed_mw.core.events import CloseReceived, Event, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateOptions, DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.states import Role

SMALL = Limits(max_message_size=2000, max_fragments=20, ping_interval=20, ping_timeout=15)
"""Limits that random streams do run into."""

roles = st.sampled_from(Role)
texts = st.text(max_size=200) | st.integers(0, 70_000).map(lambda size: "é" * size)
datas = st.binary(max_size=200) | st.integers(0, 70_000).map(lambda size: b"\xff\x00" * (size // 2))
short = st.binary(max_size=125)
sendable = st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
deflate_options = st.builds(
    DeflateOptions,
    window_bits=st.integers(9, 15),
    memory_level=st.sampled_from([1, 5, 9]),
    level=st.sampled_from([-1, 0, 1, 9]),
    context_takeover=st.booleans(),
    threshold=st.sampled_from([0, 1, 64]),
)
agreements = st.builds(
    DeflateParameters,
    local_no_context_takeover=st.booleans(),
    remote_no_context_takeover=st.booleans(),
    local_max_window_bits=st.integers(9, 15),
    remote_max_window_bits=st.integers(9, 15),
    options=deflate_options,
)


def mirrored(parameters: DeflateParameters) -> DeflateParameters:
    """The same agreement from the other end's point of view."""
    return DeflateParameters(
        local_no_context_takeover=parameters.remote_no_context_takeover,
        remote_no_context_takeover=parameters.local_no_context_takeover,
        local_max_window_bits=parameters.remote_max_window_bits,
        remote_max_window_bits=parameters.local_max_window_bits,
        options=parameters.options,
    )


@dataclass(frozen=True)
class Stream:
    """The bytes of a peer that follows the rules, and their meaning."""

    role: Role
    parameters: DeflateParameters | None
    data: bytes
    events: list[Event]


class Peer:
    """Writes a stream for a protocol of ``role``; ``source`` decides about fragments and compression."""

    def __init__(self, role: Role, parameters: DeflateParameters | None, source: random.Random) -> None:
        self._key = peer_key(role)
        self._parameters = parameters
        self._source = source
        self._deflater: zlib._Compress | None = None
        self.data = b""
        self.events: list[Event] = []

    def control(self, event: Ping | Pong | CloseReceived) -> None:
        """Write a control frame."""
        self.events.append(event)
        if isinstance(event, CloseReceived):
            code = b"" if event.code == 1005 else event.code.to_bytes(2, "big")
            self.data += wire.frame(wire.CLOSE, code + event.reason.encode(), key=self._key)
        else:
            opcode = wire.PING if isinstance(event, Ping) else wire.PONG
            self.data += wire.frame(opcode, event.payload, key=self._key)

    def message(self, message: str | bytes, between: list[Ping | Pong]) -> None:
        """Write a message, in at least as many frames as control frames have to go between them."""
        payload = message.encode() if isinstance(message, str) else message
        opcode = wire.TEXT if isinstance(message, str) else wire.BINARY
        rsv = 0
        if self._parameters is not None and self._source.random() < 0.7:
            payload, rsv = self._compressed(payload, self._parameters), 4
        cuts = sorted(self._source.randint(0, len(payload)) for _ in range(self._source.randint(len(between), 6)))
        controls = [*between, *[None] * (len(cuts) - len(between))]
        position = 0
        for number, (end, control) in enumerate(zip([*cuts, len(payload)], [*controls, None], strict=True)):
            self.data += wire.frame(
                wire.CONTINUATION if number else opcode,
                payload[position:end],
                fin=number == len(cuts),
                rsv=0 if number else rsv,
                key=self._key,
            )
            position = end
            if control is not None:
                self.control(control)
        self.events.append(message)

    def _compressed(self, payload: bytes, parameters: DeflateParameters) -> bytes:
        deflater = self._deflater
        if deflater is None or parameters.remote_no_context_takeover:
            level = self._source.choice([-1, 0, 1, 9])
            deflater = zlib.compressobj(level, zlib.DEFLATED, -parameters.remote_max_window_bits)
            self._deflater = deflater
        return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


pings = st.builds(Ping, short)
pongs = st.builds(Pong, short)
closes = st.just(CloseReceived(1005, "")) | st.builds(CloseReceived, sendable, st.text(max_size=30))


@st.composite
def streams(draw: st.DrawFn, *, agreed: st.SearchStrategy[DeflateParameters | None] | None = None) -> Stream:
    """Any sequence of messages and control frames, in any fragmentation, possibly with a Close at its end."""
    role = draw(roles)
    parameters = draw(st.none() | agreements if agreed is None else agreed)
    peer = Peer(role, parameters, random.Random(draw(st.integers(0, 2**32))))
    for item in draw(st.lists(texts | datas | pings | pongs, max_size=6)):
        if isinstance(item, (Ping, Pong)):
            peer.control(item)
        else:
            peer.message(item, draw(st.lists(pings | pongs, max_size=2)))
    end = draw(st.none() | closes)
    if end is not None:
        peer.control(end)
    return Stream(role, parameters, peer.data, peer.events)


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """``data`` in any chunking, from byte by byte to whole."""
    most = draw(st.sampled_from([1, 2, 5, 20, 200, 5_000, 200_000]))
    source = random.Random(draw(st.integers(0, 2**32)))
    # Byte by byte only for short streams: longer ones contain the same kinds of frame.
    return cut(data, source, max(most, len(data) // 500))


@st.composite
def broken(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few bits flipped, and bytes removed, inserted, duplicated or cut off."""
    mutated = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(mutated)))
        size = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "double", "cut", "swap"]))
        if kind == "flip" and position < len(mutated):
            mutated[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            mutated[position:position] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "delete":
            del mutated[position : position + size]
        elif kind == "double":
            mutated[position:position] = mutated[position : position + size]
        elif kind == "cut":
            del mutated[position:]
        elif kind == "swap":
            mutated[position : position + size] = bytes(reversed(mutated[position : position + size]))
    return bytes(mutated)
