"""Round trips (RFC 6455 sections 5 and 6, RFC 7692 section 7.2).

Any messages and control frames, any fragments, any chunks, both roles, with and without permessage-deflate.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire
from tests.support.builds import START, Build
from tests.support.deliveries import feed, plain
from tests.support.strategies import Stream, agreements, chunked, closes, datas, mirrored, short, streams, texts
from watershed_mw.core.events import CloseReceived, Event, Ping, Pong
from watershed_mw.core.handshake.extensions import DeflateParameters
from watershed_mw.core.states import Role, State


@given(stream=streams(), data=st.data())
def test_every_message_of_a_peer_is_received(build: Build, stream: Stream, data: st.DataObject) -> None:
    subject = build.make(stream.role, parameters=stream.parameters)
    events = feed(subject, data.draw(chunked(stream.data)))
    assert plain(events) == stream.events
    assert [type(event) for event in events] == [type(event) for event in stream.events]
    answered = [frame.payload for frame in wire.frames(subject.data_to_send()) if frame.opcode == wire.PONG]
    assert answered == [event.payload for event in stream.events if isinstance(event, Ping)]
    closed = any(isinstance(event, CloseReceived) for event in stream.events)
    assert (subject.state is State.OPEN) is not closed


@given(stream=streams(), data=st.data())
def test_a_stream_may_end_anywhere(build: Build, stream: Stream, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(stream.data)))
    subject = build.make(stream.role, parameters=stream.parameters)
    events = plain(subject.receive_data(stream.data[:size], START))
    subject.receive_eof()
    assert events == stream.events[: len(events)]
    assert subject.state is State.CLOSED


messages = st.lists(texts | datas | st.builds(Ping, short), max_size=8)


@given(
    items=messages,
    end=closes,
    role=st.sampled_from(Role),
    parameters=st.none() | agreements,
    data=st.data(),
)
def test_every_message_sent_by_one_end_reaches_the_other(
    build: Build,
    items: list[str | bytes | Ping],
    end: CloseReceived,
    role: Role,
    parameters: DeflateParameters | None,
    data: st.DataObject,
) -> None:
    sender = build.make(role, parameters=parameters)
    other = Role.CLIENT if role is Role.SERVER else Role.SERVER
    receiver = build.make(other, parameters=None if parameters is None else mirrored(parameters))
    for item in items:
        if isinstance(item, Ping):
            sender.ping(item.payload, START)
        elif isinstance(item, str):
            sender.send_text(item)
        else:
            sender.send_binary(item)
    sender.close(end.code, end.reason, START)
    wanted = sender.outgoing.unsent_size
    sent = sender.data_to_send()
    assert len(sent) == wanted == sender.counts().bytes_sent
    received = feed(receiver, data.draw(chunked(sent)))
    assert plain(received) == [*items, end]
    # Back go the PONGs and, once the messages are handed over, the Close.
    receiver.messages_handed_over(START)
    answers: list[Event] = [Pong(item.payload) for item in items if isinstance(item, Ping)]
    assert feed(sender, data.draw(chunked(receiver.data_to_send()))) == [*answers, end]
    assert sender.state is receiver.state is State.ENDING
    assert (sender.close_code, sender.close_reason) == (receiver.close_code, receiver.close_reason)
    assert sender.half_close is not receiver.half_close
    for mine, theirs in ((sender, receiver), (receiver, sender)):
        assert mine.counts().bytes_sent == theirs.counts().bytes_received
        assert mine.counts().frames_sent == theirs.counts().frames_received
        assert mine.messages_sent == theirs.counts().messages_received
