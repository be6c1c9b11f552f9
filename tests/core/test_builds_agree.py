"""Both builds behave identically: valid streams, broken ones, garbage (RFC 6455 section 5).

Events, error types and texts, state, outgoing bytes, deadlines and counters are compared after every step. Not
collected with ``WATERSHED_MW_PURE=1``, which leaves nothing to compare.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import START, Build, load_build
from tests.support.deliveries import Outcome, outcome, peer_key, plain
from tests.support.strategies import SMALL, Stream, agreements, broken, chunked, deflate_options, roles, short, streams
from watershed_mw.core.handshake.extensions import DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role
from watershed_mw.errors import ConnectionClosed, LocalProtocolError, RemoteProtocolError

BUILDS = [load_build("interpreted"), load_build("compiled")]

Step: TypeAlias = "tuple[str, tuple[Any, ...]]"
"""A method's name and its arguments, or the name of an attribute and the value to set it to."""

Seen: TypeAlias = "tuple[Outcome, str, tuple[object, ...]]"
"""What can be seen after a step: the outcome, an exception, and the rest of the attributes."""

DOCUMENTED = (ConnectionClosed, LocalProtocolError)
"""All that a protocol's methods may raise; what the peer does wrong is an event, never an exception."""


def replay(subject: Protocol, steps: Sequence[Step]) -> list[Seen]:
    """Take each step, and record everything observable after it."""
    seen: list[Seen] = []
    for name, arguments in steps:
        error = ""
        result: object = None
        if name.endswith("_paused"):
            setattr(subject, name, *arguments)
        else:
            try:
                result = getattr(subject, name)(*arguments)
            except DOCUMENTED as refusal:
                error = f"{type(refusal).__name__}: {refusal}"
        size = subject.outgoing.unsent_size
        events = result if isinstance(result, list) else []
        rest = (size, subject.sending, subject.ended, subject.half_close, subject.reset, subject.latency)
        seen.append((outcome(subject, events), error, rest))
    return seen


def both_agree(role: Role, parameters: DeflateParameters | None, limits: Limits, steps: Sequence[Step]) -> list[Seen]:
    """Replay ``steps`` on both builds; everything observable must be equal."""
    interpreted, compiled = (replay(build.make(role, limits, parameters), steps) for build in BUILDS)
    for number, (one, other) in enumerate(zip(interpreted, compiled, strict=True)):
        assert one == other, f"the builds differ after step {number}: {steps[number]}"
    return interpreted


def received(chunks: Sequence[bytes]) -> list[Step]:
    """The chunks as steps, a moment apart."""
    return [("receive_data", (chunk, START + number / 1000)) for number, chunk in enumerate(chunks)]


@given(stream=streams(), limits=st.sampled_from([SMALL, Limits(), Limits(max_message_size=None)]), data=st.data())
def test_builds_agree_on_valid_streams(stream: Stream, limits: Limits, data: st.DataObject) -> None:
    both_agree(stream.role, stream.parameters, limits, received(data.draw(chunked(stream.data))))


@given(stream=streams(), data=st.data())
def test_builds_agree_on_broken_streams(stream: Stream, data: st.DataObject) -> None:
    mutated = data.draw(broken(stream.data))
    both_agree(stream.role, stream.parameters, SMALL, received(data.draw(chunked(mutated))))


@given(stream=streams(), data=st.data())
def test_builds_agree_on_broken_streams_in_any_chunking(stream: Stream, data: st.DataObject) -> None:
    # The interpreted build reads it whole, the compiled one in pieces: chunks mean nothing.
    mutated = data.draw(broken(stream.data))
    results = []
    for build, chunks in zip(BUILDS, ([mutated], data.draw(chunked(mutated))), strict=True):
        subject = build.make(stream.role, SMALL, stream.parameters)
        events = [event for chunk in chunks for event in subject.receive_data(chunk, START)]
        results.append(outcome(subject, events))
    assert results[0] == results[1]


@given(garbage=st.binary(max_size=400), role=roles, parameters=st.none() | agreements, data=st.data())
def test_builds_agree_on_garbage(
    garbage: bytes, role: Role, parameters: DeflateParameters | None, data: st.DataObject
) -> None:
    both_agree(role, parameters, SMALL, received(data.draw(chunked(garbage))))


@st.composite
def almost_frames(draw: st.DrawFn, role: Role) -> bytes:
    """Frames of any bits, opcodes, lengths and masks: closer to the rules than garbage, rarely within them."""
    wrong_mask = draw(st.integers(0, 19)) == 0
    payload = draw(st.binary(max_size=20))
    return wire.frame(
        draw(st.sampled_from([0, 1, 2, 0, 1, 2, 8, 9, 10, 3, 15])),
        payload,
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 0, 0, 4, 4, 1])),
        key=wire.KEY if (role is Role.SERVER) != wrong_mask else None,
        declared=draw(st.sampled_from([None, None, None, None, 125, 2**62])),
        form=64,
    )


NOW = object()
"""Stands in a step for the time at which it is taken."""


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """A step with any of these arguments."""
    return st.tuples(st.just(name), st.tuples(*arguments))


def streams_of(role: Role) -> st.SearchStrategy[bytes]:
    """A message, a control frame or a Close that a peer of ``role`` may send."""
    key = peer_key(role)
    return st.one_of(
        st.text(max_size=20).map(lambda text: wire.frame(wire.TEXT, text.encode(), key=key)),
        short.map(lambda payload: wire.frame(wire.PING, payload, key=key)),
        st.sampled_from([1, 2, 3]).map(lambda number: wire.frame(wire.PONG, b"keepalive %d" % number, key=key)),
        st.sampled_from([1000, 1001, 4000]).map(lambda code: wire.close(code, "x", key=key)),
    )


def scripts(role: Role) -> st.SearchStrategy[list[tuple[float, Step]]]:
    """Anything that a driver and an application may do, in any order, with the seconds before each step."""
    now = st.just(NOW)
    codes = st.sampled_from([1000, 1005, 1006, 4000, 5000, -1, True, None])
    reasons = st.sampled_from(["", "bye", "x" * 124, "\ud800", b"x", None])
    any_step = st.one_of(
        step("receive_data", streams_of(role) | almost_frames(role) | st.binary(max_size=30), now),
        step("send_text", st.sampled_from(["a", "", "é" * 100, "\ud800"])),
        step("send_binary", st.binary(max_size=200)),
        step("ping", st.binary(max_size=130), now),
        step("close", codes, reasons, now),
        step("messages_handed_over", now),
        step("receive_eof"),
        step("abort"),
        step("handle_timeout", now, st.sampled_from([0, 50, 100])),
        step("writing_resumed"),
        step("write_paused", st.booleans()),
        step("read_paused", st.booleans()),
    )
    seconds = st.sampled_from([0.0, 0.25, 1.0, 10.0, 15.0, 20.0])
    return st.lists(st.tuples(seconds, any_step), min_size=1, max_size=12)


def timed(script: Sequence[tuple[float, Step]]) -> list[Step]:
    """The steps, with the times at which they are taken."""
    steps: list[Step] = []
    time = START
    for seconds, (name, arguments) in script:
        time += seconds
        steps.append((name, tuple(time if argument is NOW else argument for argument in arguments)))
    return steps


@given(script=scripts(Role.SERVER), parameters=st.none() | agreements)
def test_builds_agree_on_any_sequence_of_server_events(
    script: list[tuple[float, Step]], parameters: DeflateParameters | None
) -> None:
    both_agree(Role.SERVER, parameters, SMALL, timed(script))


@given(script=scripts(Role.CLIENT), parameters=st.none() | agreements)
def test_builds_agree_on_any_sequence_of_client_events(
    script: list[tuple[float, Step]], parameters: DeflateParameters | None
) -> None:
    both_agree(Role.CLIENT, parameters, SMALL, timed(script))


def test_builds_agree_on_the_deadlines_of_a_long_silence() -> None:
    steps: list[Step] = [("handle_timeout", (START + 5 * number, 0)) for number in range(20)]
    seen = both_agree(Role.SERVER, None, SMALL, steps)
    assert seen[-1][0].close_code == 1011


# --- the parts ------------------------------------------------------------------------------------


def results(call: Callable[[Build], object]) -> list[object]:
    """The result of ``call`` on each build, with an exception as its type and text."""
    seen: list[object] = []
    for build in BUILDS:
        try:
            seen.append(call(build))
        except RemoteProtocolError as error:
            seen.append((type(error), str(error), error.close_code))
    return seen


@given(data=st.binary(max_size=200), key=st.binary(min_size=4, max_size=4), phase=st.integers(0, 7), ends=st.data())
def test_builds_agree_on_masking(data: bytes, key: bytes, phase: int, ends: st.DataObject) -> None:
    start = ends.draw(st.integers(0, len(data)))
    stop = ends.draw(st.integers(start, len(data)))
    one, other = results(lambda build: build.mask(data, start, stop, key, phase))
    assert one == other


@given(
    opcode=st.integers(0, 15),
    payload=st.binary(max_size=300) | st.integers(0, 70_000).map(bytes),
    key=st.none() | st.binary(min_size=4, max_size=4),
    bits=st.sampled_from([0, 0x40, 0x80, 0xC0, 0xF0]),
)
def test_builds_agree_on_encoding(opcode: int, payload: bytes, key: bytes | None, bits: int) -> None:
    one, other = results(lambda build: build.encode_frame(opcode, payload, key, bits))
    assert one == other


@given(options=deflate_options, messages=st.lists(short, max_size=5), bits=st.integers(9, 15), takeover=st.booleans())
def test_builds_agree_on_compressing(options: Any, messages: list[bytes], bits: int, takeover: bool) -> None:
    parameters = DeflateParameters(takeover, takeover, bits, bits, options)
    deflaters = [build.Deflate(parameters) for build in BUILDS]
    for message in messages:
        one, other = (deflater.compress(message) for deflater in deflaters)
        assert one == other


@given(pieces=st.lists(st.binary(max_size=60), max_size=5), room=st.integers(-1, 100))
def test_builds_agree_on_inflating_garbage(pieces: list[bytes], room: int) -> None:
    def inflate(build: Build) -> object:
        deflate = build.Deflate(DeflateParameters())
        return [deflate.inflate(piece, room, number == len(pieces) - 1) for number, piece in enumerate(pieces)]

    one, other = results(inflate)
    assert one == other


# --- the surface ----------------------------------------------------------------------------------


def public(names: Iterable[str]) -> set[str]:
    """The names that do not begin with an underscore."""
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(
    "make",
    [Build.make, lambda build: build.FrameReader(True, False), lambda build: build.Deflate(DeflateParameters())],
    ids=["Protocol", "FrameReader", "Deflate"],
)
def test_builds_have_the_same_public_names(make: Callable[[Build], object]) -> None:
    one, other = (make(build) for build in BUILDS)
    assert public(dir(one)) == public(dir(other))


@pytest.mark.parametrize("method", ["receive_data", "close", "handle_timeout", "next_deadline", "messages_handed_over"])
def test_builds_have_the_same_documentation(method: str) -> None:
    # CPython 3.13 takes the indentation away when it compiles, Cython leaves it.
    one, other = (inspect.getdoc(getattr(build.Protocol, method)) for build in BUILDS)
    assert one
    assert one == other


@pytest.mark.parametrize("events", [["text", b"data"]])
def test_builds_share_the_event_types(events: list[str | bytes]) -> None:
    data = wire.frame(wire.TEXT, b"text") + wire.frame(wire.BINARY, b"data")
    for build in BUILDS:
        seen = build.make(Role.CLIENT).receive_data(data, START)
        assert plain(seen) == events
        assert [type(event) for event in seen] == [str, bytes]
