"""Events, PING and PONG, trace hooks and the properties of a connection, for every kind of connection."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import pytest

from tests.support import LIMIT
from tests.support.waiting import until
from tests.support.ways import CLIENT, FEW, PULLING, SERVER, Link, Log, Opener, Way
from tests.support.wire_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close_payload
from watershed_mw import ConnectionClosed, LocalProtocolError, Stats

pulling = pytest.mark.parametrize("way", PULLING, ids=str)
few = pytest.mark.parametrize("way", FEW, ids=str)


# --- handlers -----------------------------------------------------------------------------------------


def test_events_of_every_kind_arrive_in_order(link: Link) -> None:
    live, peer = link(record=("text", "binary", "ping", "pong", "end"))
    over = live.run()
    peer.send_all(
        [
            Frame(TEXT, b"1"),
            Frame(PING, b"2"),
            Frame(BINARY, b"3"),
            Frame(PONG, b"4"),
            Frame(TEXT, b"5", False),
            Frame(PING, b"6"),
            Frame(CONTINUATION, b"7"),
            Frame(CLOSE, close_payload(3000, "8")),
        ]
    )
    peer.expect(PONG, b"2")
    peer.expect(PONG, b"6")
    peer.expect_close(3000, "8")
    peer.finish()
    assert over.result(LIMIT) == (3000, "8")
    assert live.log.events == [
        ("text", "1"),
        ("ping", b"2"),
        ("binary", b"3"),
        ("pong", b"4"),
        ("ping", b"6"),
        ("text", "57"),
        ("end", 3000, "8"),
    ]


def test_handlers_are_called_in_the_order_in_which_they_were_registered(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        for name in "abc":
            conn.on("text", lambda text, name=name: log.note(name, text))

    live, peer = link(setup=setup)
    live.run()
    peer.write(peer.frame(TEXT, "1"), peer.frame(TEXT, "2"))
    assert log.wait_for("c", "2") == [(name, text) for text in "12" for name in "abc"]


def test_once_calls_a_handler_once_and_off_removes_it(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        def always(text: str) -> None:
            log.note("always", text)

        def first(text: str) -> None:
            log.note("first", text)

        def never(text: str) -> None:
            log.note("never", text)

        assert conn.on("text", always) is always
        assert conn.once("text", first) is first
        conn.once("text", never)
        conn.off("text", never)
        conn.on("text", never)
        conn.off("text", never)
        conn.off("binary", never)  # it was never there: nothing happens

    live, peer = link(setup=setup)
    live.run()
    peer.write(*(peer.frame(TEXT, text) for text in "123"))
    assert log.wait_for("always", "3") == [("always", "1"), ("first", "1"), ("always", "2"), ("always", "3")]


def test_on_is_a_decorator_too(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        @conn.on("text")  # type: ignore[untyped-decorator]  # the driver hands it out as Any
        def handler(text: str) -> None:
            log.note(text)

        assert handler.__name__ == "handler"

    live, peer = link(setup=setup)
    live.run()
    peer.send(TEXT, "decorated")
    log.wait_for("decorated")


def test_a_handler_may_remove_itself(link: Link) -> None:
    log = Log()

    def setup(conn: Any) -> None:
        def handler(text: str) -> None:
            log.note("first", text)
            conn.off("text", handler)

        conn.on("text", handler)
        conn.on("text", lambda text: log.note("second", text))

    live, peer = link(setup=setup)
    live.run()
    peer.write(peer.frame(TEXT, "1"), peer.frame(TEXT, "2"))
    assert log.wait_for("second", "2") == [("first", "1"), ("second", "1"), ("second", "2")]


@few
@pytest.mark.parametrize("event", ["message", "close", "Text", "", None])
def test_an_unknown_event_is_refused(link: Link, event: Any) -> None:
    live, _peer = link()
    with pytest.raises(ValueError, match="expected one of the events binary, "):
        live.on(event, print)
    with pytest.raises(ValueError, match="expected one of the events"):
        live.call("once", event, print)


def test_queued_messages_are_passed_to_a_new_handler_in_order(link: Link) -> None:
    """Handlers may be registered after the first message has arrived."""
    live, peer = link()
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(20)))
    live.on("text", live.log.note)
    live.run()
    assert live.log.wait_for("19") == [(str(number),) for number in range(20)]


# --- PING and PONG ------------------------------------------------------------------------------------


def test_a_ping_is_answered_and_reported(link: Link) -> None:
    live, peer = link(record=("text", "ping"))
    live.run()
    for payload in (b"", b"x" * 125, bytes(range(100))):
        peer.send(PING, payload)
        peer.expect(PONG, payload)
    live.log.wait(lambda events: len(events) == 3)
    assert [event for event, _ in live.log.events] == ["ping"] * 3


@pytest.mark.need(16)
@pytest.mark.parametrize("data", [b"", b"abc", "text", b"x" * 125], ids=["empty", "bytes", "str", "longest"])
def test_latency_is_known_after_a_pong(link: Link, data: Any) -> None:
    live, peer = link(record=("text", "pong"))
    live.run()
    payload = data.encode() if isinstance(data, str) else data
    live.call("ping", data)
    peer.expect(PING, payload)
    peer.send(PONG, payload)
    live.log.wait_for("pong", payload)
    latency: float | None = live.conn.latency
    assert latency is not None
    assert 0 <= latency < LIMIT


def test_a_ping_of_more_than_125_bytes_is_refused_and_nothing_is_sent(link: Link) -> None:
    live, peer = link(record=("text",))
    live.run()
    with pytest.raises(LocalProtocolError, match="at most 125 bytes"):
        live.call("ping", b"x" * 126)
    live.send("fine")
    peer.expect(TEXT, "fine")


def test_an_unsolicited_pong_is_emitted_and_gives_no_latency(link: Link) -> None:
    live, peer = link(record=("text", "pong"))
    live.run()
    peer.send(PONG, b"nobody asked")
    live.log.wait_for("pong", b"nobody asked")
    assert live.conn.latency is None


def test_one_pong_may_answer_several_pings(link: Link) -> None:
    """Section 5.5.3: only the most recently processed PING need be answered."""
    live, peer = link(record=("text", "pong"))
    live.run()
    for payload in (b"1", b"2", b"3"):
        live.call("ping", payload)
    for payload in (b"1", b"2", b"3"):
        peer.expect(PING, payload)
    peer.send(PONG, b"3")
    live.log.wait_for("pong", b"3")
    assert live.conn.latency is not None


@pytest.mark.need(15)
def test_after_the_end_nothing_can_be_sent(link: Link) -> None:
    live, peer = link()
    over = live.run()
    peer.begin_close(4000, "over")
    over.result(LIMIT)
    for method in ("send", "ping"):
        with pytest.raises(ConnectionClosed) as caught:
            live.call(method, b"too late")
        assert (caught.value.code, caught.value.reason) == (4000, "over")
    live.call("end")
    live.call("destroy")
    assert live.endings.events == [("end", 4000, "over")]


# --- properties of a connection ---------------------------------------------------------------------------


def test_the_connection_has_addresses_request_and_state(link: Link, way: Way) -> None:
    live, peer = link(record=("text",))
    ours, theirs = peer.sock.getpeername(), peer.sock.getsockname()
    assert live.conn.local == f"127.0.0.1:{ours[1]}"
    assert live.conn.remote == f"127.0.0.1:{theirs[1]}"
    before: tuple[Any, ...] = (live.conn.closed, live.conn.close_code, live.conn.close_reason, live.conn.latency)
    assert before == (False, None, None, None)
    assert live.conn.get_protocol() is None
    if way.role is SERVER:
        assert live.conn.request.target == "/chat"
        assert live.conn.request.headers.get("host") == "127.0.0.1"
    else:
        assert live.conn.request.status == 101
    name = "AsyncioConnection" if way.on_loop else "ThreadConnection"
    shown = f"<{name} {live.conn.id} open 127.0.0.1:{theirs[1]} protocol=None>"
    assert repr(live.conn) == shown
    live.call("destroy")
    live.ended()
    assert repr(live.conn) == shown.replace("open", "closed")
    after: tuple[Any, ...] = (live.conn.closed, live.conn.close_code, live.conn.close_reason)
    assert after == (True, 1006, "")


def test_every_connection_has_its_own_id(link: Link) -> None:
    numbers = [link()[0].conn.id for _ in range(3)]
    assert numbers == sorted(set(numbers))


def test_the_subprotocol_is_the_negotiated_one(link: Link, way: Way) -> None:
    """The client's order counts among those that the server supports."""
    if way.role is CLIENT:
        live, _peer = link(offer=("b", "a"), fields=(("Sec-WebSocket-Protocol", "a"),))
    else:
        live, _peer = link(accept={"protocols": ["x", "b", "a"]}, fields=(("Sec-WebSocket-Protocol", "A, a, b"),))
    assert live.conn.protocol == live.conn.get_protocol() == "a"
    assert repr(live.conn).endswith("protocol='a'>")


def test_counters_count_messages_and_bytes(link: Link, way: Way) -> None:
    live, peer = link(record=("text", "pong"))
    live.run()
    assert live.conn.stats == Stats(0, 0, 0, 0, 0, 0)
    came = [peer.frame(TEXT, "ab", fin=False), peer.frame(CONTINUATION, b"cd"), peer.frame(PONG), peer.frame(PING)]
    peer.write(*came)
    peer.expect(PONG)
    live.send("x" * 200)
    peer.expect(TEXT, "x" * 200)
    until(lambda: live.conn.stats.frames_received == 4)
    mask = 4 if way.role is CLIENT else 0
    sent = (2 + mask) + (4 + mask + 200)
    assert live.conn.stats == Stats(4, 2, 1, 1, sum(map(len, came)), sent)


def test_state_is_the_applications_own(link: Link) -> None:
    live, _ = link()
    conn = live.conn
    conn.state.user = "Ann"
    conn.state.user = conn.state.room = "Ben"
    conn.state.send = "a name that the connection has, too"
    assert vars(conn.state) == {"user": "Ben", "room": "Ben", "send": "a name that the connection has, too"}
    assert callable(conn.send)
    del conn.state.user
    assert not hasattr(conn.state, "user")
    with pytest.raises(AttributeError, match="state"):
        conn.state = "something else"


@pytest.mark.parametrize("name", ["user", "send", "receive", "end", "on", "_emit", "closed"])
def test_a_connection_takes_no_attributes_and_its_methods_cannot_be_replaced(link: Link, name: str) -> None:
    """On both builds: with a dictionary, each call between methods would look for an override there."""
    live, peer = link()
    with pytest.raises(AttributeError, match=name):
        setattr(live.conn, name, print)
    live.send("still sent")
    peer.expect(TEXT, "still sent")


def test_state_does_not_keep_the_connection_alive(opener: Opener, way: Way) -> None:
    live, peer = opener.open(way, setup=lambda conn: conn.on("text", conn.send))
    live.conn.state.myself = live.conn
    conn = ref(live.conn)
    over = live.run()
    peer.begin_close()
    peer.close()
    over.result(LIMIT)
    opener.close()
    del live, over
    until(lambda: gc.collect() >= 0 and conn() is None, "a connection that holds itself is collected")


# --- trace --------------------------------------------------------------------------------------------------


def test_trace_sees_everything_in_order_with_the_connection(link: Link, way: Way) -> None:
    probes = Log()
    live, peer = link(record=("text",), trace=lambda probe, conn, data: probes.note(probe, conn.id, data))
    over = live.run()
    came = [peer.frame(opcode, b"in") for opcode in (TEXT, BINARY, PING, PONG)]
    peer.write(*came)
    peer.expect(PONG, b"in")
    live.log.wait_for("text", "in")
    live.send("out")
    live.send(b"out")
    live.call("ping", b"out")
    for opcode in (TEXT, BINARY, PING):
        peer.expect(opcode, b"out")
    ending = live.begin("end", "bye", code=4000)
    peer.answer_close(4000)
    ending.result(LIMIT)
    over.result(LIMIT)
    events = probes.wait_for("end")
    assert {number for _, number, _ in events} == {live.conn.id}
    read = b"".join(data for probe, _, data in events if probe == "read-buffer")
    assert read == b"".join(came) + peer.frame(CLOSE, close_payload(4000))
    assert [(probe, data) for probe, _, data in events if probe != "read-buffer"] == [
        ("start", way.role.value.encode()),
        ("recv-text", b"in"),
        ("recv-binary", b"in"),
        ("recv-ping", b"in"),
        ("send-pong", b"in"),
        ("recv-pong", b"in"),
        ("send-text", b"out"),
        ("send-binary", b"out"),
        ("send-ping", b"out"),
        ("send-close", b"4000 bye"),
        ("recv-close", b"4000 "),
        ("end", b"4000 "),
    ]


def test_trace_sees_the_close_that_answers_the_peer(link: Link) -> None:
    probes = Log()
    live, peer = link(trace=lambda probe, conn, data: probes.note(probe, data))
    over = live.run()
    peer.begin_close(4000, "bye")
    over.result(LIMIT)
    names = [probe for probe, _ in probes.wait_for("end") if probe != "read-buffer"]
    assert names == ["start", "recv-close", "send-close", "end"]
