"""The threads flavour under stress: full queues, exceptions at any moment, and busy applications."""

from __future__ import annotations

import codecs
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, Self

import pytest

from tests.support import LIMIT, SOON
from tests.support.waiting import in_thread, until
from tests.support.ways import CLIENT, IN_THREADS, SERVER, Link, Opener, Way
from tests.support.wire_peer import PING, PONG, TEXT, WirePeer, tcp_pair
from watershed_mw import ConnectionClosed, ThreadConnection, Watershed, implementation
from watershed_mw.connection.limit import ConnectionLimit

in_threads = pytest.mark.parametrize("way", IN_THREADS, ids=str)
plain = pytest.mark.parametrize("way", [Way("threads", "socket", False, SERVER)], ids=str)
# Seconds by which a timeout may be missed.
LATE = 0.5
# Seconds of the stress test; a minute of it is for a change of the machinery.
STRESS = float(os.environ.get("WATERSHED_MW_STRESS", "3"))
# Pieces of a stream that the kernel cannot hold.
LARGE = 300_000


def pair(**options: Any) -> tuple[ThreadConnection, ThreadConnection]:
    """A server's and a client's connection at the two ends of a socket pair."""
    ours, theirs = socket.socketpair()
    shed = Watershed(**options)
    key = shed.generate_key()
    request = shed.request_headers(key)
    server = shed.accept(dict([("Host", "x"), *request]), ours)
    head = b""
    while b"\r\n\r\n" not in head:
        head += theirs.recv(1)
    client = shed.connect(head, theirs, key=key, request=request)
    _opened.extend((server, client))
    return server, client


_opened: list[ThreadConnection] = []


@pytest.fixture(autouse=True)
def no_thread_is_left_waiting() -> Iterator[None]:
    """A failing test must not leave threads behind that compete with later tests for the interpreter."""
    yield
    while _opened:
        _opened.pop().destroy()


# --- a waiting writer also reads -------------------------------------------------------------------------------


@in_threads
def test_a_receiver_keeps_reading_while_two_senders_wait(link: Link) -> None:
    """The first sender found the queue full, and the second waits for the first."""
    live, peer = link(small=True, ping_interval=None, max_queued_messages=4)
    first = live.begin("send", b"x" * 4_000_000)
    until(lambda: live.conn._core.write_paused)
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(40)))
    until(lambda: live.conn._queue.full)
    second = live.begin("send", "second")
    until(lambda: live.conn.stats.messages_sent == 2)
    assert [live.receive(2.0) for _ in range(40)] == [str(number) for number in range(40)]
    peer.send(TEXT, "last")
    assert live.receive(2.0) == "last"
    with pytest.raises(TimeoutError):
        live.receive(0.1)
    assert peer.read().payload == b"x" * 4_000_000
    assert peer.read().payload == b"second"
    first.result(LIMIT)
    second.result(LIMIT)


@pytest.mark.slow
@in_threads
def test_timeouts_hold_while_the_peer_does_not_read(link: Link) -> None:
    live, peer = link(small=True, ping_interval=None, max_queued_messages=2, close_timeout=0.3)
    sending = [live.begin("send", b"x" * 4_000_000) for _ in range(3)]
    until(lambda: live.conn._core.write_paused)
    receiving = [live.begin("receive", 0.2) for _ in range(3)]
    began = time.monotonic()
    for future in receiving:
        assert isinstance(future.exception(LIMIT), TimeoutError)
    assert time.monotonic() - began < 0.2 + LATE
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(10)))
    until(lambda: live.conn._queue.full)
    began = time.monotonic()
    live.call("end")
    assert time.monotonic() - began < 0.3 + LATE
    for future in sending:
        assert isinstance(future.exception(LATE), ConnectionClosed)


@plain
def test_receive_keeps_its_timeout_during_an_end(link: Link) -> None:
    """The closing handshake is over, and the peer leaves the TCP stream open."""
    live, peer = link(close_timeout=LIMIT)
    peer.send_close(1000)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        live.receive(0.2)
    assert time.monotonic() - began < 0.2 + LATE
    peer.expect_close(1000)
    peer.close()
    with pytest.raises(ConnectionClosed):
        live.receive(LIMIT)


@pytest.mark.slow
@in_threads
def test_keepalive_ends_a_connection_without_receiver_whose_peer_does_not_read(link: Link) -> None:
    live, peer = link(small=True, max_queued_messages=2, ping_interval=0.1, ping_timeout=0.2, close_timeout=0.2)
    sending = live.begin("send", b"x" * 4_000_000)
    until(lambda: live.conn._core.write_paused)
    peer.write(*(peer.frame(TEXT, str(number)) for number in range(10)))
    assert isinstance(sending.exception(0.5 + 2 * LATE), ConnectionClosed)
    assert live.conn.close_code == 1011


@pytest.mark.slow
@in_threads
@pytest.mark.parametrize("call", ["send", "receive"])
def test_run_in_background_is_refused_while_another_thread_waits(call: str, link: Link) -> None:
    """The waiting thread would wake with the new owner's bytes, or write in between."""
    live, peer = link(small=True)
    noise = b"n" * 2_000_000
    waiting = live.begin("receive") if call == "receive" else live.begin("send", noise)
    until(lambda: live.conn._stream.turns.reader < 0 if call == "receive" else live.conn._core.write_paused)
    with pytest.raises(RuntimeError, match="expected no other thread in"):
        live.call("run_in_background")
    assert not live.conn.in_background
    if call == "receive":
        peer.send(TEXT, "for the one who waits")
        assert waiting.result(LIMIT) == "for the one who waits"
    else:
        assert peer.read().payload == noise
        waiting.result(LIMIT)
    live.on("text", lambda text: live.conn.send(text.upper()))
    live.call("run_in_background")
    peer.send(TEXT, "now")
    assert peer.read().payload == b"NOW"


@pytest.fixture
def restless() -> Iterator[None]:
    """Switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.timeout(STRESS + 60)
@pytest.mark.usefixtures("restless")
def test_many_threads_send_receive_end_and_destroy_on_full_queues() -> None:
    """Runs for a minute with ``WATERSHED_MW_STRESS=60``."""
    until_then = time.monotonic() + STRESS
    rounds = 0
    while time.monotonic() < until_then:
        _struggle(rounds)
        rounds += 1
    assert rounds


def _struggle(number: int) -> None:
    """Both ends send and receive more than any buffer holds, from several threads; then they end in several ways."""
    ends = pair(max_queued_messages=2, close_timeout=1.0, compression=number % 2 == 1)
    told: list[list[int]] = [[], []]
    for conn, codes in zip(ends, told, strict=True):
        conn.on("end", lambda code, reason, codes=codes: codes.append(code))
    got: list[list[str]] = [[], []]
    enough = [threading.Event(), threading.Event()]
    stop = threading.Event()

    def send(conn: ThreadConnection, name: str) -> None:
        count = 0
        while not stop.is_set():
            conn.send(f"{name} {count} " + "x" * (LARGE if count % 5 == 0 else 20))
            count += 1

    def receive(place: int) -> None:
        waits = (None, 0.01, 0.3)
        while True:
            timeout = waits[len(got[place]) % 3]
            began = time.monotonic()
            try:
                got[place].append(str(ends[place].receive(timeout)))
            except TimeoutError:
                assert timeout is not None
                assert time.monotonic() - began < timeout + LATE
            if len(got[place]) > 60:
                enough[place].set()

    calls = [in_thread(partial(send, conn, f"{name}")) for conn in ends for name in range(3)]
    calls += [in_thread(partial(receive, place)) for place in (0, 1) for _ in range(2)]
    for event in enough:
        assert event.wait(LIMIT), f"stuck at {[len(messages) for messages in got]}"
    stop.set()
    before_the_end = [list(messages) for messages in got]
    began = time.monotonic()
    methods = (("end", "end"), ("destroy", "end"), ("end", "destroy"), ("destroy", "destroy"))[number % 4]
    endings = [in_thread(getattr(conn, method)) for conn, method in zip(ends, methods, strict=True)]
    for call in endings:
        call.result(LIMIT)
    assert time.monotonic() - began < 1.0 + 2 * LATE
    for call in calls:
        assert isinstance(call.exception(LIMIT), ConnectionClosed | None)
    assert [len(codes) for codes in told] == [1, 1]
    for messages, earlier in zip(got, before_the_end, strict=True):
        for name in range(3):
            counts = sorted(_counts(messages, name))
            assert len(counts) == len(set(counts)), "none came twice"
            # Two threads note what they got, in any order; but whatever came before the last one has been noted.
            last = max(_counts(earlier, name), default=-1)
            assert counts[: last + 1] == list(range(last + 1)), "none is missing"


def _counts(messages: list[str], name: int) -> list[int]:
    return [int(text.split(" ")[1]) for text in messages if text.startswith(f"{name} ")]


@pytest.mark.slow
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("compression", [False, True])
def test_send_returns_if_its_message_was_written_before_the_end(compression: bool) -> None:
    """If it is destroyed once the peer has the message, the sender must not notice."""
    for size in range(200):
        server, client = pair(compression=compression, ping_interval=None)
        sending = in_thread(partial(client.send, "x" * size))
        assert server.receive(LIMIT) == "x" * size
        client.destroy()
        server.destroy()
        assert sending.exception(LIMIT) is None


@pytest.mark.slow
@pytest.mark.usefixtures("restless")
def test_each_of_several_sends_returns_if_its_message_was_written() -> None:
    """The result depends neither on messages queued behind it nor on which thread writes it."""
    for _ in range(200):
        server, client = pair(ping_interval=None)
        sending = [in_thread(partial(client.send, str(number))) for number in range(4)]
        got = [server.receive(LIMIT) for _ in range(2)]
        client.destroy()
        with suppress(ConnectionClosed):
            while True:
                got.append(server.receive(LIMIT))
        server.destroy()
        outcomes = [one.exception(LIMIT) for one in sending]
        assert [outcomes[int(text)] for text in got] == [None] * len(got)


# --- exceptions out of nowhere ---------------------------------------------------------------------------------


def strike_once(condition: Callable[[], object]) -> None:
    """Send this process a signal, which the main thread handles, as soon as a condition holds."""
    until(condition)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


class Tick(Exception):
    """The exception that the signal handler raises."""


class Ticking:
    """Raises exceptions in the main thread at random moments, one after another, while wanted."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self.count = 0

    def _raise(self, *_: Any) -> None:
        if self._wanted():
            raise Tick

    def __enter__(self) -> Self:
        codecs.lookup("ascii")  # an import that is interrupted leaves its file to the collector
        # A finalizer swallows an exception that is raised inside it, and no further one would come. So the objects of
        # earlier tests are collected before, and none meanwhile.
        gc.collect()
        gc.disable()
        self._before = signal.signal(signal.SIGALRM, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        gc.enable()

    def arm(self) -> None:
        self.count += 1
        signal.setitimer(signal.ITIMER_REAL, (self.count * 7919 % 3000 + 10) * 1e-6)


@pytest.mark.parametrize("compression", [False, True])
def test_exceptions_in_receive_neither_lose_nor_duplicate_messages(compression: bool) -> None:
    count = 6000
    server, client = pair(compression=compression, ping_interval=None)

    def send() -> None:
        for number in range(count):
            client.send(f"{number} " + "x" * (number % 700))

    sending = in_thread(send)
    got: list[str | bytes] = []
    with Ticking(lambda: len(got) < count and not server.closed) as ticking:
        while len(got) < count:
            try:
                ticking.arm()
                while len(got) < count:
                    got.append(server.receive())
            except Tick:
                pass
            except ConnectionClosed:
                # The interpreter came between the steps of the core: the connection ends, with no gap before.
                assert implementation == "interpreted"
                break
    assert [str(text).split(" ")[0] for text in got] == [str(number) for number in range(len(got))]
    server.destroy()
    client.destroy()
    assert sending.exception(LIMIT) is None or implementation == "interpreted"
    assert ticking.count > 1


@pytest.mark.parametrize("compression", [False, True])
def test_exceptions_in_send_neither_tear_nor_duplicate_messages(compression: bool) -> None:
    count = 3000
    server, client = pair(compression=compression, ping_interval=None)
    receiving = in_thread(lambda: [int(str(text).split(" ")[0]) for text in server])
    sent: list[int] = []
    number = 0
    with Ticking(lambda: number < count and not client.closed) as ticking:
        while number < count:
            try:
                ticking.arm()
                while number < count:
                    number += 1
                    client.send(f"{number} " + "y" * (200_000 if number % 50 == 0 else number % 5000))
                    sent.append(number)
            except Tick:
                pass
            except ConnectionClosed:
                assert implementation == "interpreted"
                break
    client.end()
    seen = receiving.result(LIMIT)
    assert all(earlier < later for earlier, later in pairwise(seen))
    if implementation == "compiled":
        assert set(sent) <= set(seen)
        assert server.close_code == 1000
    server.destroy()


@in_threads
def test_a_timeout_error_from_a_signal_handler_is_not_the_peers_end(link: Link) -> None:
    live, peer = link()

    def late(*_: Any) -> None:
        raise TimeoutError("too late")

    before = signal.signal(signal.SIGUSR1, late)
    try:
        for wait in (None, LIMIT):
            in_thread(lambda: strike_once(lambda: live.conn._stream.turns.reader < 0))
            with pytest.raises(TimeoutError, match="too late"):
                live.conn.receive(wait)
    finally:
        signal.signal(signal.SIGUSR1, before)
    peer.send(TEXT, "still there")
    assert live.receive() == "still there"


@pytest.mark.slow
@in_threads
@pytest.mark.parametrize("wait", [None, LIMIT], ids=["for ever", "so long"])
def test_a_signal_outside_a_system_call_is_handled_promptly(wait: float | None, link: Link) -> None:
    """The signal is delivered to another thread, or in the last moment before the call."""
    live, _ = link(ping_interval=None)

    def interrupt(*_: Any) -> None:
        raise Tick

    def strike() -> None:
        blocked.wait(LIMIT)
        until(lambda: live.conn._stream.turns.reader < 0)
        os.kill(os.getpid(), signal.SIGUSR1)  # to this thread, as the main one has it blocked

    blocked = threading.Event()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        in_thread(strike)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        blocked.set()
        began = time.monotonic()
        with pytest.raises(Tick):
            live.conn.receive(wait)
        assert time.monotonic() - began < SOON
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)


@plain
def test_a_signal_handler_may_end_the_connection_of_its_own_thread(link: Link) -> None:
    live, peer = link(close_timeout=LIMIT)
    before = signal.signal(signal.SIGUSR1, lambda *_: live.conn.end("stop", code=1001))
    try:
        in_thread(lambda: strike_once(lambda: live.conn._stream.turns.reader < 0))
        answering = in_thread(lambda: peer.answer_close(1001, "stop"))
        began = time.monotonic()
        with pytest.raises(ConnectionClosed):
            live.conn.receive()
        assert time.monotonic() - began < SOON
    finally:
        signal.signal(signal.SIGUSR1, before)
    answering.result(LIMIT)


@in_threads
@pytest.mark.parametrize("method", ["run", "end"])
def test_the_end_is_emitted_once_after_an_interrupt(link: Link, method: str) -> None:
    live, peer = link(close_timeout=0.5)
    live.on("text", print)

    def interrupt(*_: Any) -> None:
        raise Tick

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        in_thread(lambda: strike_once(lambda: live.conn._stream.turns.reader < 0))
        with pytest.raises(Tick):
            getattr(live.conn, method)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    if method == "run":
        assert live.endings.events == []
        answering = in_thread(lambda: peer.answer_close(1000))
        live.call("end")
        answering.result(LIMIT)
    else:
        peer.answer_close(1000)
    live.endings.wait_for("end", 1000)
    live.gone()
    assert live.endings.count("end") == 1


def test_a_max_connections_slot_is_released_exactly_once() -> None:
    limit = ConnectionLimit(2)
    first, second = limit.enter(), limit.enter()
    first.leave()
    first.leave()
    assert limit.taken == 1
    del second
    gc.collect()
    assert limit.taken == 0


# --- connections without a reader ------------------------------------------------------------------------------


@pytest.mark.slow
@in_threads
def test_pings_are_answered_and_sent_while_the_application_is_busy(link: Link) -> None:
    live, peer = link(ping_interval=0.3, ping_timeout=5.0)
    peer.send(PING, b"busy?")
    peer.send(TEXT, "one")
    peer.expect(PONG, b"busy?")
    frame = peer.read()
    assert frame.opcode == PING
    peer.send(PONG, frame.payload)
    until(lambda: live.conn.latency is not None)
    assert live.receive(0) == "one"
    assert live.conn.close_code is None


@in_threads
def test_the_end_is_noticed_while_the_application_is_busy(link: Link) -> None:
    live, peer = link(reply_timeout=0.1, close_timeout=LIMIT)
    peer.send(TEXT, "last")
    peer.send_close(1000)
    peer.expect_close(1000)
    peer.close()
    until(lambda: live.conn.gone)
    assert live.endings.events == [], "handlers are called by the application's threads"
    assert live.receive(0) == "last"
    with pytest.raises(ConnectionClosed):
        live.receive(0)
    assert live.endings.count("end") == 1


@pytest.mark.slow
@plain
def test_data_without_a_receiver_is_bounded(link: Link) -> None:
    live, peer = link(small=True, max_queued_messages=4, max_queued_bytes=40_000, ping_interval=0.1, ping_timeout=0.2)
    frame = peer.frame(TEXT, "x" * 10_000)
    begun = peer.flood(frame, 4_000_000)
    threading.Event().wait(0.6)  # several timeouts: a length of time is what this is about
    assert live.conn.close_code is None
    assert live.conn.stats.messages_received < 40
    finishing = in_thread(peer.finish_flood)
    assert [live.receive() for _ in range(begun)] == ["x" * 10_000] * begun
    finishing.result(LIMIT)


@plain
def test_the_rest_of_an_interrupted_send_is_written_without_another_call(link: Link) -> None:
    live, peer = link(small=True)

    def interrupt(*_: Any) -> None:
        raise Tick

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        in_thread(lambda: strike_once(lambda: live.conn._stream.turns.writer < 0))
        with pytest.raises(Tick):
            live.conn.send(b"x" * 4_000_000)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert peer.read().payload == b"x" * 4_000_000


@pytest.mark.parametrize("way", [Way("background", "socket", tls, SERVER) for tls in (False, True)], ids=str)
def test_a_watched_connection_may_move_to_the_background(opener: Opener, way: Way) -> None:
    live, peer = opener.open(way, record=("text",))
    peer.send(TEXT, "early")
    peer.send(PING, b"there?")
    peer.expect(PONG, b"there?")  # so the text is in the queue
    over = live.run()
    live.log.wait_for("text", "early")
    peer.send(TEXT, "late")
    live.log.wait_for("text", "late")
    peer.begin_close()
    assert over.result(LIMIT) == (1000, "")


def test_one_thread_watches_all_connections() -> None:
    shed = Watershed()
    conns, peers = [], []
    for _ in range(50):
        ours, theirs = tcp_pair()
        key = shed.generate_key()
        conns.append(shed.accept(dict([("Host", "x"), *shed.request_headers(key)]), ours))
        peer = WirePeer(theirs, CLIENT)
        peer.read_head()
        peers.append(peer)
    for peer in peers:
        peer.send(PING, b"all")
    for peer in peers:
        peer.expect(PONG, b"all")
    assert sum(thread.name == "watershed-watcher" for thread in threading.enumerate()) == 1
    for conn, peer in zip(conns, peers, strict=True):
        conn.destroy()
        peer.close()
